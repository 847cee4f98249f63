//! The discard service of RFC 863 over TCP, which also counts.

use super::service::{Answered, Next, Replies, Service};

/// Takes a byte stream until the peer closes it, and drops it.
#[derive(Debug, Default, Clone, Copy)]
pub struct Sink {
    /// Bytes taken so far, of all connections.
    pub bytes: u64,
}

impl<'s> Service<'s> for Sink {
    fn answer(&mut self, input: &[u8], _is_end: bool, _replies: &mut Replies<'s>) -> Answered {
        self.bytes += input.len() as u64;
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
    fn all_that_comes_is_taken_and_counted() {
        let mut sink = Sink::default();
        let mut replies = Replies::default();
        for (input, sum) in [(&b"hello\0\xff"[..], 7), (b"", 7), (b"x", 8)] {
            let answered = sink.answer(input, input.is_empty(), &mut replies);
            assert_eq!(
                (answered.consumed, answered.next),
                (input.len(), Next::Read)
            );
            assert_eq!((replies.pieces(), sink.bytes), (&[][..], sum));
        }
    }
}
