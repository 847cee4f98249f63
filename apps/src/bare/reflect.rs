//! The bare reflector: UDP packets go back as they came, addresses and ports swapped.

use std::io;

use interruptlet::Instant;
use interruptlet::arena::Owner;
use interruptlet::port::Port;

use super::frame::turn_around;
use super::{Lane, Program, Turn};

/// Sends back what comes to a port.
#[derive(Debug, Clone, Copy)]
pub struct Reflector {
    port: u16,
}

impl Reflector {
    /// A reflector for a UDP port.
    pub fn new(port: u16) -> Self {
        Self { port }
    }
}

impl<P: Port> Program<P> for Reflector {
    fn turn(&mut self, lane: &mut Lane<P>, now: Instant) -> io::Result<Turn> {
        let received = lane.receive(now);
        for mut frame in lane.received.drain(..) {
            let len = frame.len();
            let bytes = &mut lane.arena.buffer_mut(&mut frame)[..len];
            // The difference between what was received and what was sent tells how many were not.
            if turn_around(bytes, self.port).is_some() {
                lane.arena.hand_over(&frame, Owner::Tx);
                lane.outgoing.push(frame);
            } else {
                lane.arena.free(frame);
            }
        }
        Ok(Turn::from(lane.transmit(now)? | received))
    }
}

#[cfg(test)]
mod tests {
    use interruptlet::arena::Arena;
    use interruptlet::port::memory;

    use super::super::frame::tests::{dissect, udp};
    use super::*;

    #[test]
    fn its_port_is_reflected_and_the_rest_dropped() {
        let (port, peer) = memory::pair();
        let mut lane = Lane::new(port, Arena::anonymous(128, 1792, 0));
        let mut reflector = Reflector::new(9);
        let turn = |reflector: &mut Reflector, lane: &mut Lane<_>| {
            reflector.turn(lane, Instant::ZERO).unwrap()
        };
        assert_eq!(turn(&mut reflector, &mut lane), Turn::Idle);
        let from = "192.0.2.1:4000".parse().unwrap();
        for to in ["192.0.2.2:9", "192.0.2.2:10"] {
            peer.inject(&udp(from, to.parse().unwrap(), b"hello"));
        }
        peer.inject(b"");
        assert_eq!(turn(&mut reflector, &mut lane), Turn::Worked);
        let (source, destination, payload) = dissect(&peer.take().unwrap());
        assert_eq!(source, "192.0.2.2:9".parse().unwrap());
        assert_eq!((destination, &payload[..]), (from, &b"hello"[..]));
        assert_eq!(peer.take(), None);
        assert!(lane.arena.is_at_rest());
    }
}
