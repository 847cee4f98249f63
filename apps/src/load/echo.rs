//! One connection to an echo server: what is to be sent, and what has to come back.

use super::Outcome;
use super::pattern::{Pattern, Place, SLICE_MAX};
use super::record::ErrorKind;

/// The state of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Echo {
    /// Where the next byte that comes back is in the pattern.
    next: Place,
    /// Bytes that were sent and are not back.
    outstanding: u32,
    /// Bytes that are to be sent, behind those.
    unsent: u32,
    /// Bytes of the message at hand that are back.
    back: u32,
}

impl Echo {
    /// A new connection; `number` decides its bytes.
    pub fn new(number: u64) -> Self {
        Self {
            next: Place::of_connection(number),
            outstanding: 0,
            unsent: 0,
            back: 0,
        }
    }

    /// Has another message of `size` bytes sent.
    pub fn ask(&mut self, size: u32) {
        self.unsent += size;
    }

    /// Gives what is to be sent to `send`, which returns how much it took, until that is less than it got.
    pub fn send(&mut self, pattern: &Pattern, mut send: impl FnMut(&[u8]) -> usize) {
        while self.unsent > 0 {
            let len = (self.unsent as usize).min(SLICE_MAX);
            let taken = send(pattern.slice(self.next.plus(self.outstanding), len));
            self.unsent -= taken as u32;
            self.outstanding += taken as u32;
            if taken < len {
                break;
            }
        }
    }

    /// Takes what came back; messages have `size` bytes.
    pub fn receive(&mut self, bytes: &[u8], size: u32, pattern: &Pattern) -> Outcome {
        let due = bytes.len().min(self.outstanding as usize);
        if !pattern.matches(self.next, &bytes[..due]) {
            return Outcome::failure(ErrorKind::Corrupt);
        }
        let len = due as u32;
        self.next = self.next.plus(len);
        self.outstanding -= len;
        let back = u64::from(self.back) + u64::from(len);
        self.back = (back % u64::from(size)) as u32;
        Outcome {
            answers: (back / u64::from(size)) as u32,
            failure: (due < bytes.len()).then_some(ErrorKind::Unexpected),
            close: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    fn pattern() -> Pattern {
        Pattern::new(&mut SmallRng::seed_from_u64(1))
    }

    /// What connection 5 sends for `count` messages of `size` bytes.
    fn asked(echo: &mut Echo, size: u32, count: u32, pattern: &Pattern) -> Vec<u8> {
        let mut sent = Vec::new();
        for _ in 0..count {
            echo.ask(size);
        }
        echo.send(pattern, |bytes| {
            sent.extend_from_slice(bytes);
            bytes.len()
        });
        sent
    }

    #[test]
    fn changed_surplus_and_missing_bytes() {
        let pattern = pattern();
        let mut echo = Echo::new(5);
        let sent = asked(&mut echo, 64, 2, &pattern);
        assert_eq!(sent.len(), 128);

        let mut changed = echo;
        let mut bytes = sent.clone();
        bytes[100] ^= 4;
        let outcome = changed.receive(&bytes, 64, &pattern);
        assert_eq!(outcome.failure, Some(ErrorKind::Corrupt));

        let mut surplus = echo;
        let bytes = [&sent[..], b"x"].concat();
        let outcome = surplus.receive(&bytes, 64, &pattern);
        assert_eq!(
            (outcome.answers, outcome.failure),
            (2, Some(ErrorKind::Unexpected))
        );

        let outcome = echo.receive(&sent[..127], 64, &pattern);
        assert_eq!((outcome.answers, outcome.failure), (1, None));
        let outcome = echo.receive(&sent[127..], 64, &pattern);
        assert_eq!((outcome.answers, outcome.failure), (1, None));
    }

    #[test]
    fn a_new_connection_expects_nothing() {
        let outcome = Echo::new(1).receive(b"hello", 64, &pattern());
        assert_eq!(outcome.failure, Some(ErrorKind::Unexpected));
    }

    proptest! {
        #[test]
        fn messages_come_back_in_any_pieces(
            size in 1u32..100_000,
            count in 1u32..5,
            rooms in prop::collection::vec(0usize..100_000, 1..20),
            pieces in prop::collection::vec(1usize..100_000, 1..20),
        ) {
            let pattern = pattern();
            let mut echo = Echo::new(7);
            let mut wire = Vec::new();
            let mut answers = 0;
            for _ in 0..count {
                echo.ask(size);
            }
            let mut rooms = rooms.into_iter().chain(std::iter::repeat(usize::MAX));
            let mut pieces = pieces.into_iter().chain(std::iter::repeat(usize::MAX));
            while answers < count {
                let mut room = rooms.next().unwrap();
                echo.send(&pattern, |bytes| {
                    let taken = bytes.len().min(room);
                    room -= taken;
                    wire.extend_from_slice(&bytes[..taken]);
                    taken
                });
                let piece = pieces.next().unwrap().min(wire.len());
                let outcome = echo.receive(&wire[..piece], size, &pattern);
                prop_assert_eq!(outcome.failure, None);
                wire.drain(..piece);
                answers += outcome.answers;
            }
            prop_assert_eq!((answers, wire.len()), (count, 0));
        }

        #[test]
        fn a_byte_that_was_changed_lost_doubled_or_swapped_is_noticed(
            size in 64u32..3000,
            at: prop::sample::Index,
            fault in 0..4,
            split: prop::sample::Index,
        ) {
            let pattern = pattern();
            let mut echo = Echo::new(9);
            let sent = asked(&mut echo, size, 2, &pattern);
            let at = at.index(sent.len() - 1);
            let mut wire = sent.clone();
            match fault {
                0 => wire[at] ^= 1,
                1 => drop(wire.remove(at)),
                2 => wire.insert(at, wire[at]),
                _ => wire.swap(at, at + 1),
            }
            // Two equal neighbours swapped, or one of them lost in the middle, are what was sent.
            prop_assume!(wire != sent);
            let split = split.index(wire.len());
            let first = echo.receive(&wire[..split], size, &pattern);
            let mut answers = first.answers;
            let mut failure = first.failure;
            if failure.is_none() {
                let second = echo.receive(&wire[split..], size, &pattern);
                answers += second.answers;
                failure = second.failure;
            }
            // What is lost at the very end is found by the timeout: an answer is missing.
            prop_assert!(failure.is_some() || answers < 2, "{answers} answers, {failure:?}");
        }

        #[test]
        fn any_bytes_are_taken(bytes: Vec<u8>, asked_count in 0u32..3, size in 1u32..100) {
            let pattern = pattern();
            let mut echo = Echo::new(9);
            asked(&mut echo, size, asked_count, &pattern);
            let outcome = echo.receive(&bytes, size, &pattern);
            prop_assert!(outcome.answers <= asked_count);
        }
    }
}
