//! The oracle finds what it is for: for each rule a segment that breaks it, beside one that does not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::oracle::{Oracle, Rule};
use common::packets::*;
use common::*;
use interruptlet::Instant;

const MTU: usize = 1500;
/// What fits a packet of either version.
const MSS_1440: [u8; 4] = [2, 4, 0x05, 0xa0];
const MSS_1000: [u8; 4] = [2, 4, 0x03, 0xe8];
const SACK_PERMITTED: [u8; 4] = [4, 2, 1, 1];

/// Two ends whose segments are made by hand; "we" are who is checked.
struct Bench {
    oracle: Oracle,
    version: Version,
    isn: u32,
    peer_isn: u32,
}

/// The rule that a segment broke.
type Broken = Option<Rule>;

/// Sets up a case: the peer's SYN with its options is behind us.
type Case = fn(&mut Bench) -> Broken;

impl Bench {
    fn new(version: Version, isn: u32, peer_isn: u32) -> Self {
        Self {
            oracle: Oracle::new("stack", MTU),
            version,
            isn,
            peer_isn,
        }
    }

    /// A segment of the peer's, with relative numbers.
    fn theirs(&self, flags: u8, seq: u32, ack: u32, payload: &[u8]) -> Segment {
        Segment {
            source_port: 5000,
            destination_port: PORT,
            seq: self.peer_isn.wrapping_add(seq),
            ack: if flags & ACK != 0 {
                self.isn.wrapping_add(ack)
            } else {
                0
            },
            flags,
            window: 1000,
            options: Vec::new(),
            payload: payload.to_vec(),
        }
    }

    /// A segment of ours, with relative numbers.
    fn ours(&self, flags: u8, seq: u32, ack: u32, payload: &[u8]) -> Segment {
        Segment {
            source_port: PORT,
            destination_port: 5000,
            seq: self.isn.wrapping_add(seq),
            ack: if flags & ACK != 0 {
                self.peer_isn.wrapping_add(ack)
            } else {
                0
            },
            flags,
            window: 2000,
            options: Vec::new(),
            payload: payload.to_vec(),
        }
    }

    fn deliver(&mut self, segment: &Segment) {
        let frame = segment.frame((self.version.client(), self.version.server()));
        self.oracle.delivered(&frame, Instant::ZERO);
    }

    fn arrives(&mut self, flags: u8, seq: u32, ack: u32, payload: &[u8]) {
        self.deliver(&self.theirs(flags, seq, ack, payload));
    }

    fn frame(&self, segment: &Segment) -> Vec<u8> {
        let mut frame = segment.frame((self.version.server(), self.version.client()));
        frame[..6].copy_from_slice(&CLIENT_LINK);
        frame[6..12].copy_from_slice(&SERVER_LINK);
        frame
    }

    fn check(&mut self, frame: &[u8]) -> Broken {
        let violation = self.oracle.check(frame, Instant::ZERO).err()?;
        Some(violation.rule)
    }

    fn emit(&mut self, segment: &Segment) -> Broken {
        self.check(&self.frame(segment))
    }

    fn send(&mut self, flags: u8, seq: u32, ack: u32, payload: &[u8]) -> Broken {
        self.emit(&self.ours(flags, seq, ack, payload))
    }

    /// Something that is right.
    fn sends(&mut self, flags: u8, seq: u32, ack: u32, payload: &[u8]) {
        assert_eq!(self.send(flags, seq, ack, payload), None);
    }

    /// The peer opens a connection, both sides with these options.
    fn opened_with(&mut self, theirs: &[u8], ours: &[u8]) {
        let syn = Segment {
            options: theirs.to_vec(),
            ..self.theirs(SYN, 0, 0, b"")
        };
        self.deliver(&syn);
        assert_eq!(self.answer_syn(ours), None);
        self.arrives(ACK, 1, 1, b"");
    }

    fn opened(&mut self) {
        self.opened_with(&MSS_1440, &MSS_1440);
    }

    fn answer_syn(&mut self, options: &[u8]) -> Broken {
        self.emit(&Segment {
            options: options.to_vec(),
            ..self.ours(SYN | ACK, 0, 1, b"")
        })
    }

    /// We open a connection: its SYN.
    fn opens(&mut self, options: &[u8]) -> Broken {
        self.emit(&Segment {
            options: options.to_vec(),
            ..self.ours(SYN, 0, 0, b"")
        })
    }
}

/// Runs `case` with numbers that wrap at different places, and requires each to end with `expected`.
fn each(expected: Broken, case: Case) {
    for version in BOTH {
        for isn in [1000, u32::MAX, u32::MAX - 5, 0x7fff_fffe] {
            for peer_isn in [77, u32::MAX, u32::MAX - 5, 0x7fff_fffe] {
                let mut bench = Bench::new(version, isn, peer_isn);
                let broken = case(&mut bench);
                assert_eq!(
                    broken, expected,
                    "{version:?}, numbers {isn} and {peer_isn}"
                );
            }
        }
    }
}

fn right(case: Case) {
    each(None, case);
}

fn wrong(rule: Rule, case: Case) {
    each(Some(rule), case);
}

#[test]
fn a_whole_conversation_breaks_nothing() {
    right(|bench| {
        bench.opened();
        bench.arrives(ACK, 1, 1, b"request");
        bench.sends(ACK | PSH, 1, 8, b"reply");
        bench.sends(ACK | PSH, 1, 8, b"reply");
        bench.arrives(ACK, 8, 6, b"next");
        bench.sends(ACK, 6, 12, b"");
        bench.sends(ACK | PSH, 6, 12, b"more");
        bench.arrives(FIN | ACK, 12, 10, b"");
        bench.sends(FIN | ACK, 10, 13, b"");
        bench.sends(FIN | ACK, 10, 13, b"");
        bench.arrives(ACK, 13, 11, b"");
        // A retransmitted FIN is acknowledged, with whatever window.
        bench.arrives(FIN | ACK, 12, 10, b"");
        let last = Segment {
            window: 0,
            ..bench.ours(ACK, 11, 13, b"")
        };
        assert_eq!(bench.emit(&last), None);
        // A new connection between the same ends.
        bench.isn = bench.isn.wrapping_add(100_000);
        bench.peer_isn = bench.peer_isn.wrapping_add(100_000);
        bench.opened();
        bench.arrives(ACK, 1, 1, b"again");
        bench.send(ACK, 1, 6, b"again")
    });
}

#[test]
fn opening_a_connection_breaks_nothing() {
    right(|bench| {
        assert_eq!(bench.opens(&MSS_1440), None);
        assert_eq!(bench.opens(&MSS_1440), None);
        bench.arrives(SYN | ACK, 0, 1, b"");
        bench.sends(ACK, 1, 1, b"");
        bench.sends(ACK | PSH, 1, 1, b"request");
        bench.arrives(ACK, 1, 8, b"reply");
        bench.sends(ACK, 8, 6, b"");
        bench.sends(FIN | ACK, 8, 6, b"");
        bench.send(RST | ACK, 9, 6, b"")
    });
}

#[test]
fn checksums_and_lengths() {
    for at in [14 + 10, 14 + 40 + 16] {
        let mut bench = Bench::new(Version::V4, 1, 1);
        bench.opened();
        let mut frame = bench.frame(&bench.ours(ACK, 1, 1, &pattern(100)));
        frame[at] ^= 1;
        assert_eq!(bench.check(&frame), Some(Rule::Malformed), "{at}");
    }
    let mut bench = Bench::new(Version::V6, 1, 1);
    bench.opened();
    let mut frame = bench.frame(&bench.ours(ACK, 1, 1, &pattern(100)));
    frame.pop();
    assert_eq!(bench.check(&frame), Some(Rule::Malformed));
}

/// What arrives damaged did not arrive.
#[test]
fn damaged_deliveries_do_not_count() {
    wrong(Rule::AckUnsent, |bench| {
        bench.opened();
        let request = bench.theirs(ACK, 1, 1, b"request");
        let mut frame = request.frame((bench.version.client(), bench.version.server()));
        *frame.last_mut().unwrap() ^= 4;
        bench.oracle.delivered(&frame, Instant::ZERO);
        bench.send(ACK, 1, 8, b"")
    });
}

#[test]
fn addresses() {
    wrong(Rule::Addresses, |bench| bench.send(ACK, 1, 1, b""));
    wrong(Rule::Addresses, |bench| {
        bench.opened();
        let other_port = Segment {
            destination_port: 5001,
            ..bench.ours(ACK, 1, 1, b"")
        };
        bench.emit(&other_port)
    });
    wrong(Rule::Addresses, |bench| {
        bench.opened();
        let mut frame = bench.frame(&bench.ours(ACK, 1, 1, b""));
        frame[5] ^= 1;
        bench.check(&frame)
    });
}

#[test]
fn sizes() {
    let with_mss = |theirs: &'static [u8], len| {
        let mut bench = Bench::new(Version::V4, 1, 1);
        bench.opened_with(theirs, &MSS_1440);
        let wide = Segment {
            window: 5000,
            ..bench.theirs(ACK, 1, 1, b"")
        };
        bench.deliver(&wide);
        bench.send(ACK, 1, 1, &pattern(len))
    };
    assert_eq!(with_mss(&MSS_1000, 1000), None);
    assert_eq!(with_mss(&MSS_1000, 1001), Some(Rule::Size));
    assert_eq!(with_mss(&[2, 4, 0x05, 0xb4], 1460), None);
    assert_eq!(with_mss(&[2, 4, 0x05, 0xb4], 1461), Some(Rule::Size));
    // Who announces none has 536.
    assert_eq!(with_mss(&[], 536), None);
    assert_eq!(with_mss(&[], 537), Some(Rule::Size));
    // An MSS beyond our own MTU is of no use.
    assert_eq!(with_mss(&[2, 4, 0xff, 0xff], 1461), Some(Rule::Size));
}

#[test]
fn flags() {
    for flags in [PSH, FIN, FIN | RST, SYN | FIN, SYN | RST, ACK | 0x20, 0] {
        let mut bench = Bench::new(Version::V4, 1, 1);
        bench.opened();
        assert_eq!(
            bench.send(flags, 1, 1, b""),
            Some(Rule::Flags),
            "{flags:#x}"
        );
    }
    wrong(Rule::Flags, |bench| {
        bench.opened();
        bench.send(RST, 1, 1, b"because")
    });
}

#[test]
fn syns() {
    // A SYN-ACK may be repeated, with another number as time goes by.
    right(|bench| {
        bench.arrives(SYN, 0, 0, b"early data");
        assert_eq!(bench.answer_syn(&MSS_1440), None);
        assert_eq!(bench.answer_syn(&MSS_1440), None);
        let old = bench.isn;
        bench.isn = bench.isn.wrapping_add(1 << 20);
        bench.arrives(SYN, 0, 0, b"early data");
        assert_eq!(bench.answer_syn(&MSS_1440), None);
        bench.isn = old;
        bench.arrives(ACK, 1, 1, b"request");
        bench.send(ACK, 1, 8, b"")
    });
    wrong(Rule::Syn, |bench| {
        bench.opened();
        bench.sends(ACK, 1, 1, b"");
        bench.answer_syn(&MSS_1440)
    });
    wrong(Rule::Syn, |bench| {
        bench.arrives(SYN, 0, 0, b"early data");
        // Its data is not acknowledged.
        bench.send(SYN | ACK, 0, 11, b"");
        let wrong = Segment {
            options: MSS_1440.to_vec(),
            ..bench.ours(SYN | ACK, 0, 11, b"")
        };
        bench.emit(&wrong)
    });
    wrong(Rule::Syn, |bench| {
        assert_eq!(bench.opens(&MSS_1440), None);
        bench.isn = bench.isn.wrapping_add(1);
        bench.opens(&MSS_1440)
    });
}

#[test]
fn options() {
    let answer = |theirs: &[u8], ours: &[u8]| {
        let mut bench = Bench::new(Version::V4, 1, 1);
        let syn = Segment {
            options: theirs.to_vec(),
            ..bench.theirs(SYN, 0, 0, b"")
        };
        bench.deliver(&syn);
        bench.answer_syn(&[&MSS_1440, ours].concat())
    };
    let scale = [3, 3, 7, 1];
    let timestamps = [8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 1];
    for option in [&scale[..], &SACK_PERMITTED, &timestamps] {
        assert_eq!(answer(option, option), None);
        assert_eq!(answer(&[], option), Some(Rule::Options), "{option:?}");
    }
    // Fast open.
    assert_eq!(answer(&[], &[34, 2, 1, 1]), Some(Rule::Options));
    wrong(Rule::Options, |bench| {
        bench.arrives(SYN, 0, 0, b"");
        bench.answer_syn(&[2, 4, 0x05, 0xb5])
    });
    // An option that is for SYNs.
    wrong(Rule::Options, |bench| {
        bench.opened();
        bench.emit(&Segment {
            options: MSS_1440.to_vec(),
            ..bench.ours(ACK, 1, 1, b"")
        })
    });
}

fn selective(bench: &Bench, from: u32, to: u32) -> Segment {
    let mut options = vec![1, 1, 5, 10];
    options.extend(bench.peer_isn.wrapping_add(from).to_be_bytes());
    options.extend(bench.peer_isn.wrapping_add(to).to_be_bytes());
    Segment {
        options,
        ..bench.ours(ACK, 1, 1, b"")
    }
}

#[test]
fn selective_acknowledgements() {
    right(|bench| {
        let options = [MSS_1440, SACK_PERMITTED].concat();
        bench.opened_with(&options, &options);
        bench.arrives(ACK, 10, 1, b"apart");
        bench.emit(&selective(bench, 10, 15))
    });
    wrong(Rule::Options, |bench| {
        let options = [MSS_1440, SACK_PERMITTED].concat();
        bench.opened_with(&options, &options);
        bench.arrives(ACK, 10, 1, b"apart");
        bench.emit(&selective(bench, 10, 16))
    });
    wrong(Rule::Options, |bench| {
        bench.opened_with(&[MSS_1440, SACK_PERMITTED].concat(), &MSS_1440);
        bench.arrives(ACK, 10, 1, b"apart");
        bench.emit(&selective(bench, 10, 15))
    });
}

#[test]
fn sequence_numbers() {
    wrong(Rule::Sequence, |bench| {
        bench.opened();
        bench.send(ACK, 2, 1, b"")
    });
    // A gap.
    wrong(Rule::Sequence, |bench| {
        bench.opened();
        bench.sends(ACK, 1, 1, b"abc");
        bench.send(ACK, 5, 1, b"def")
    });
    // Before the first byte.
    wrong(Rule::Sequence, |bench| {
        bench.opened();
        bench.sends(ACK, 1, 1, b"abc");
        bench.send(ACK, 0, 1, b"abcd")
    });
    // An acknowledgement that takes an old number: a peer takes it for an old segment.
    wrong(Rule::Sequence, |bench| {
        bench.opened();
        bench.sends(ACK, 1, 1, b"abc");
        bench.send(ACK, 1, 1, b"")
    });
    wrong(Rule::Sequence, |bench| {
        bench.opened();
        bench.sends(FIN | ACK, 1, 1, b"abc");
        bench.send(ACK, 4, 1, b"")
    });
}

#[test]
fn keep_alive_probes() {
    let probe = |keep_alive, payload: &[u8]| {
        let mut bench = Bench::new(Version::V4, 1, 1);
        bench.oracle.keep_alive = keep_alive;
        bench.opened();
        bench.sends(ACK, 1, 1, b"abc");
        let broken = bench.send(ACK, 3, 1, payload);
        broken.or_else(|| bench.send(ACK, 4, 1, b"def"))
    };
    assert_eq!(probe(true, b""), None);
    assert_eq!(probe(true, &[0]), None);
    assert_eq!(probe(true, &[0, 0]), Some(Rule::OtherBytes));
    assert_eq!(probe(false, b""), Some(Rule::Sequence));
    assert_eq!(probe(false, &[0]), Some(Rule::OtherBytes));
}

#[test]
fn bytes_that_change() {
    right(|bench| {
        bench.opened();
        bench.sends(ACK, 1, 1, b"abcdef");
        bench.send(ACK, 3, 1, b"cdefgh")
    });
    wrong(Rule::OtherBytes, |bench| {
        bench.opened();
        bench.sends(ACK, 1, 1, b"abcdef");
        bench.send(ACK, 3, 1, b"cdeFgh")
    });
    wrong(Rule::OtherBytes, |bench| {
        bench.opened();
        bench.sends(ACK, 1, 1, b"abcdef");
        bench.send(ACK, 2, 1, b"B")
    });
}

#[test]
fn the_peers_window() {
    right(|bench| {
        bench.opened();
        bench.sends(ACK, 1, 1, &pattern(1000));
        // The window goes, what was in it may be sent again, a probe may look.
        let closed = Segment {
            window: 0,
            ..bench.theirs(ACK, 1, 501, b"")
        };
        bench.deliver(&closed);
        bench.sends(ACK, 501, 1, &pattern(1000)[500..]);
        bench.sends(ACK, 1001, 1, b"p");
        bench.arrives(ACK, 1, 1001, b"");
        bench.send(ACK, 1001, 1, b"probed")
    });
    wrong(Rule::BeyondWindow, |bench| {
        bench.opened();
        bench.send(ACK, 1, 1, &pattern(1001))
    });
    wrong(Rule::BeyondWindow, |bench| {
        bench.opened();
        bench.sends(ACK, 1, 1, &pattern(1000));
        bench.send(ACK, 1001, 1, b"two")
    });
    // A probe with a FIN behind it.
    right(|bench| {
        bench.opened();
        bench.sends(ACK, 1, 1, &pattern(1000));
        bench.send(FIN | ACK, 1001, 1, b"p")
    });
    // The FIN itself is as much of a probe as a byte is.
    right(|bench| {
        bench.opened();
        bench.sends(ACK, 1, 1, &pattern(1000));
        bench.sends(FIN | ACK, 1001, 1, b"");
        bench.send(ACK, 1002, 1, b"")
    });
    // After a probe: a peer whose window is closed takes nothing behind its edge.
    wrong(Rule::Sequence, |bench| {
        bench.opened();
        bench.sends(ACK, 1, 1, &pattern(1000));
        bench.sends(ACK, 1001, 1, b"p");
        bench.send(ACK, 1002, 1, b"")
    });
    // The window of a segment that acknowledges what was never sent does not count.
    wrong(Rule::BeyondWindow, |bench| {
        bench.opened();
        bench.sends(ACK, 1, 1, b"a");
        bench.arrives(ACK, 1, 500, b"");
        bench.send(ACK, 2, 1, &pattern(1000))
    });
}

#[test]
fn scaled_windows() {
    let scaled = |theirs: u8, ours: Option<u8>, len: usize| {
        let option = |shift: u8| [&MSS_1440[..], &[3, 3, shift, 1]].concat();
        let mut bench = Bench::new(Version::V4, 1, 1);
        bench.opened_with(&option(theirs), &ours.map_or(MSS_1440.to_vec(), option));
        // The handshake's acknowledgement has a window of 1000 units.
        let sent = pattern(len);
        let mut broken = None;
        for (number, chunk) in sent.chunks(1000).enumerate() {
            let seq = 1 + 1000 * number as u32;
            broken = broken.or_else(|| bench.send(ACK, seq, 1, chunk));
        }
        broken
    };
    assert_eq!(scaled(3, Some(0), 8000), None);
    assert_eq!(scaled(3, Some(0), 8002), Some(Rule::BeyondWindow));
    // Only if both sides offer it.
    assert_eq!(scaled(3, None, 1002), Some(Rule::BeyondWindow));
    // More than fourteen is fourteen.
    assert_eq!(scaled(200, Some(0), 20_000), None);
}

#[test]
fn fins() {
    wrong(Rule::AfterFin, |bench| {
        bench.opened();
        bench.sends(FIN | ACK, 1, 1, b"abc");
        bench.send(ACK, 4, 1, b"d")
    });
    wrong(Rule::AfterFin, |bench| {
        bench.opened();
        bench.sends(FIN | ACK, 1, 1, b"abc");
        bench.send(FIN | ACK, 1, 1, b"ab")
    });
    wrong(Rule::AfterFin, |bench| {
        bench.opened();
        bench.sends(FIN | ACK, 1, 1, b"abc");
        bench.send(FIN | ACK, 5, 1, b"")
    });
    wrong(Rule::AfterFin, |bench| {
        bench.opened();
        bench.sends(ACK, 1, 1, b"abc");
        bench.send(FIN | ACK, 1, 1, b"ab")
    });
}

#[test]
fn acknowledgements() {
    wrong(Rule::AckUnsent, |bench| {
        bench.opened();
        bench.arrives(ACK, 1, 1, b"request");
        bench.send(ACK, 1, 9, b"")
    });
    // Behind a gap.
    wrong(Rule::AckUnsent, |bench| {
        bench.opened();
        bench.arrives(ACK, 5, 1, b"request");
        bench.send(ACK, 1, 12, b"")
    });
    right(|bench| {
        bench.opened();
        bench.arrives(ACK, 5, 1, b"request");
        bench.arrives(ACK, 1, 1, b"abcd");
        bench.send(ACK, 1, 12, b"")
    });
    wrong(Rule::AckBack, |bench| {
        bench.opened();
        bench.arrives(ACK, 1, 1, b"request");
        bench.sends(ACK, 1, 8, b"");
        bench.send(ACK, 1, 7, b"")
    });
    wrong(Rule::AckBack, |bench| {
        bench.opened();
        bench.sends(ACK, 1, 1, b"");
        bench.send(ACK, 1, 0, b"")
    });
}

#[test]
fn our_window() {
    right(|bench| {
        bench.opened();
        bench.arrives(ACK, 1, 1, b"request");
        let smaller = Segment {
            window: 1993,
            ..bench.ours(ACK, 1, 8, b"")
        };
        bench.emit(&smaller)
    });
    wrong(Rule::Shrunk, |bench| {
        bench.opened();
        bench.arrives(ACK, 1, 1, b"request");
        let smaller = Segment {
            window: 1992,
            ..bench.ours(ACK, 1, 8, b"")
        };
        bench.emit(&smaller)
    });
    // With a scale, what is lost by rounding is no matter.
    let scaled = |window| {
        let options = [&MSS_1440[..], &[3, 3, 4, 1]].concat();
        let mut bench = Bench::new(Version::V6, 1, 1);
        bench.opened_with(&options, &options);
        bench.arrives(ACK, 1, 1, b"12345");
        let announced = Segment {
            window,
            ..bench.ours(ACK, 1, 6, b"")
        };
        bench.emit(&announced)
    };
    assert_eq!(scaled(124), None);
    assert_eq!(scaled(123), Some(Rule::Shrunk));
}

#[test]
fn resets() {
    // Each answers one segment.
    right(|bench| {
        bench.arrives(ACK, 5, 9, b"stray");
        bench.send(RST, 9, 0, b"")
    });
    wrong(Rule::Reset, |bench| {
        bench.arrives(ACK, 5, 9, b"stray");
        bench.sends(RST, 9, 0, b"");
        bench.send(RST, 9, 0, b"")
    });
    wrong(Rule::Reset, |bench| {
        bench.arrives(ACK, 5, 9, b"stray");
        bench.send(RST, 10, 0, b"")
    });
    // To a segment without ACK: number zero, and an acknowledgement of all that it takes.
    let refused = |seq, ack| {
        let mut bench = Bench::new(Version::V4, 0, 77);
        bench.arrives(SYN, 0, 0, b"data");
        bench.send(RST | ACK, seq, ack, b"")
    };
    assert_eq!(refused(0, 5), None);
    assert_eq!(refused(0, 4), Some(Rule::Reset));
    assert_eq!(refused(1, 5), Some(Rule::Reset));
    // Never to a reset.
    wrong(Rule::Reset, |bench| {
        bench.arrives(RST, 5, 0, b"");
        bench.send(RST, 9, 0, b"")
    });
    // The end of a connection.
    right(|bench| {
        bench.opened();
        bench.arrives(ACK, 1, 1, b"request");
        bench.sends(ACK, 1, 8, b"reply");
        bench.send(RST | ACK, 6, 8, b"")
    });
    wrong(Rule::Reset, |bench| {
        bench.opened();
        bench.sends(ACK, 1, 1, b"reply");
        bench.send(RST | ACK, 7, 1, b"")
    });
    // A segment that arrives meanwhile may be answered with one of its own.
    right(|bench| {
        bench.opened();
        bench.arrives(ACK, 1, 1, b"request");
        bench.sends(ACK, 1, 8, b"reply");
        bench.arrives(ACK, 8, 1, b"more");
        bench.sends(RST, 1, 0, b"");
        bench.send(RST | ACK, 6, 8, b"")
    });
    wrong(Rule::AfterReset, |bench| {
        bench.opened();
        bench.sends(ACK, 1, 1, b"");
        bench.sends(RST | ACK, 1, 1, b"");
        bench.arrives(ACK, 1, 1, b"more");
        bench.send(ACK, 1, 5, b"")
    });
}

#[test]
fn a_violation_shows_the_last_segments() {
    let mut bench = Bench::new(Version::V4, u32::MAX, 1);
    bench.opened();
    bench.sends(ACK, 1, 1, b"abc");
    let frame = bench.frame(&bench.ours(ACK, 9, 1, b"def"));
    let violation = bench.oracle.check(&frame, Instant::ZERO).unwrap_err();
    let text = violation.to_string();
    for line in [
        "Sequence: the stack sent number 9, when it has sent to 4",
        "<- [S] seq 0 len 0",
        "-> [S.] seq 0 len 0 ack 1",
        "-> [.] seq 1 len 3 ack 1 window 2000",
        "-> [.] seq 9 len 3 ack 1 window 2000",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    assert_eq!(bench.oracle.checked(), 3);
}
