//! The echo service of RFC 862 over TCP.

use super::service::{Answered, Next, Piece, Replies, Service};

/// Echoes a byte stream until the peer closes it.
#[derive(Debug, Default, Clone, Copy)]
pub struct Echo;

impl<'s> Service<'s> for Echo {
    fn answer(&mut self, input: &[u8], _is_end: bool, replies: &mut Replies<'s>) -> Answered {
        if !input.is_empty() {
            replies.push(Piece::Input(0..input.len()));
        }
        Answered {
            consumed: input.len(),
            next: Next::Read,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_comes_goes_back() {
        for (input, pieces) in [(&b"hello\0\xff"[..], &[Piece::Input(0..7)][..]), (b"", &[])] {
            let mut replies = Replies::default();
            let answered = Echo.answer(input, false, &mut replies);
            assert_eq!(replies.pieces(), pieces);
            assert_eq!(
                (answered.consumed, answered.next),
                (input.len(), Next::Read)
            );
        }
    }
}
