//! One connection to a sink: what is to be sent before we close our side.

use super::pattern::{Pattern, Place, SLICE_MAX};

/// The state of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Upload {
    /// Where the next byte that is to be sent is in the pattern.
    next: Place,
    /// Bytes that are to be sent.
    unsent: u32,
}

impl Upload {
    /// A new connection that sends `size` bytes; `number` decides which.
    pub fn new(number: u64, size: u32) -> Self {
        Self {
            next: Place::of_connection(number),
            unsent: size,
        }
    }

    /// Whether everything was given to `send`.
    pub fn is_sent(&self) -> bool {
        self.unsent == 0
    }

    /// Gives what is to be sent to `send`, which returns how much it took, until that is less than it got.
    /// Returns the bytes that it took in all.
    pub fn send(&mut self, pattern: &Pattern, mut send: impl FnMut(&[u8]) -> usize) -> usize {
        let before = self.unsent;
        while self.unsent > 0 {
            let len = (self.unsent as usize).min(SLICE_MAX);
            let taken = send(pattern.slice(self.next, len));
            self.next = self.next.plus(taken as u32);
            self.unsent -= taken as u32;
            if taken < len {
                break;
            }
        }
        (before - self.unsent) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    #[test]
    fn the_pattern_goes_out_in_any_pieces() {
        let pattern = Pattern::new(&mut SmallRng::seed_from_u64(1));
        let size = 3 * SLICE_MAX as u32 + 5;
        let mut upload = Upload::new(7, size);
        let mut wire = Vec::new();
        for mut room in [0, 1, 100_000, 65_536, usize::MAX, usize::MAX] {
            let before = wire.len();
            let taken = upload.send(&pattern, |bytes| {
                let taken = bytes.len().min(room);
                room -= taken;
                wire.extend_from_slice(&bytes[..taken]);
                taken
            });
            assert_eq!(taken, wire.len() - before);
        }
        assert!(upload.is_sent());
        assert_eq!(wire.len(), size as usize);
        assert!(pattern.matches(Place::of_connection(7), &wire));
    }
}
