//! [Dialogues](super::dialogue) with [`Lines`].

use std::sync::Arc;

use interruptlet::sim::SimConfig;

use super::dialogue::{Plan, Send};
use super::handlers::{Lines, answer};
use super::stream;

/// A server of lines with few frames.
pub fn config() -> SimConfig {
    let mut service = stream(Lines);
    service.slow = Some(Arc::new(Lines));
    let mut config = SimConfig {
        streams: vec![service],
        ..SimConfig::default()
    };
    config.limits.frames = 64;
    config
}

/// A plan of one stream of lines.
pub fn plan(name: &'static str, stream: &[u8], sends: Vec<Send>) -> Plan {
    let lines = stream.split_inclusive(|byte| *byte == b'\n');
    let whole = lines.filter(|line| line.ends_with(b"\n"));
    Plan {
        name,
        stream: stream.to_vec(),
        sends,
        answer: whole.flat_map(answer).collect(),
        resets: false,
    }
}

/// At most eight segments each, with the SYN.
pub fn plans() -> Vec<Plan> {
    use Send::{Ack, Data, KeepAlive, Syn, Window, WithOptions};
    let one = b"place hello\n";
    let three = b"place hello\nreply you\nplace again\n";
    let large = [b"place ".to_vec(), vec![b'x'; 2800], b"\n".to_vec()].concat();
    vec![
        plan("a request", one, vec![Ack, Data(0, 12), Ack, Data(12, 13)]),
        plan(
            "data with the handshake's last",
            one,
            vec![Data(0, 12), Ack, Data(12, 13)],
        ),
        plan("all at once", one, vec![Data(0, 13)]),
        plan("a FIN with the request", one, vec![Ack, Data(0, 13), Ack]),
        plan(
            "one after the other",
            three,
            vec![Ack, Data(0, 12), Data(12, 22), Data(22, 34), Data(34, 35)],
        ),
        plan(
            "pipelined",
            three,
            vec![Ack, Data(0, 34), Ack, Data(34, 35)],
        ),
        plan(
            "pipelined, in pieces",
            three,
            vec![
                Ack,
                Data(0, 17),
                Data(17, 29),
                Ack,
                Data(29, 34),
                Data(34, 35),
            ],
        ),
        plan(
            "in two halves",
            one,
            vec![Ack, Data(0, 4), Data(4, 12), Data(12, 13)],
        ),
        plan(
            "byte by byte",
            b"reply\n",
            vec![
                Data(0, 1),
                Data(1, 2),
                Data(2, 3),
                Data(3, 4),
                Data(4, 5),
                Data(5, 7),
            ],
        ),
        plan(
            "the second half first",
            one,
            vec![Ack, Data(6, 12), Data(0, 6), Ack, Data(12, 13)],
        ),
        plan(
            "the FIN first",
            one,
            vec![Ack, Data(12, 13), Data(0, 12), Ack, Data(12, 13)],
        ),
        plan(
            "twice",
            three,
            vec![
                Ack,
                Data(0, 12),
                Data(0, 12),
                Data(12, 34),
                Data(12, 34),
                Data(34, 35),
            ],
        ),
        plan(
            "overlapping",
            three,
            vec![Ack, Data(0, 12), Data(6, 20), Data(17, 34), Data(30, 35)],
        ),
        plan(
            "deferred",
            b"defer place slow\nplace fast\n",
            vec![Ack, Data(0, 17), Data(17, 28), Ack, Data(28, 29)],
        ),
        plan(
            "a download",
            b"content 9000\nplace after\n",
            vec![Ack, Data(0, 13), Ack, Data(13, 25), Ack, Data(25, 26)],
        ),
        plan(
            "chunks",
            b"defer source 6000 1000\nplace after\n",
            vec![Ack, Data(0, 35), Ack, Ack, Data(35, 36)],
        ),
        plan(
            "a large request",
            &large,
            vec![
                Ack,
                Data(0, 1400),
                Data(1400, 2800),
                Data(2800, 2807),
                Ack,
                Data(2807, 2808),
            ],
        ),
        plan(
            "no reply",
            b"silence\nplace x\n",
            vec![Ack, Data(0, 8), Data(8, 16), Data(16, 17)],
        ),
        plan(
            "half a line at the end",
            b"place a\nplace b",
            vec![Ack, Data(0, 8), Data(8, 16), Ack],
        ),
        plan("nothing but a FIN", b"", vec![Ack, Data(0, 1), Ack]),
        plan(
            "the server closes",
            b"close\n",
            vec![Ack, Data(0, 6), Ack, Data(6, 7)],
        ),
        plan(
            "the server closes, the client goes on",
            b"close\nplace x\n",
            vec![Ack, Data(0, 6), Data(6, 14), Ack, Data(14, 15)],
        ),
        Plan {
            answer: b"HELLO\n".to_vec(),
            resets: true,
            ..plan(
                "a reset",
                b"place hello\nabort\n",
                vec![Ack, Data(0, 12), Ack, Data(12, 18)],
            )
        },
        plan(
            "a small window",
            three,
            vec![
                Window(3),
                Data(0, 22),
                Ack,
                Window(1000),
                Data(22, 34),
                Data(34, 35),
            ],
        ),
        plan(
            "a closed window",
            three,
            vec![
                Window(0),
                Data(0, 22),
                Window(5),
                Window(1000),
                Data(22, 34),
                Data(34, 35),
            ],
        ),
        plan(
            "options",
            three,
            vec![
                Ack,
                WithOptions(0, 12),
                Data(12, 22),
                WithOptions(22, 34),
                Data(34, 35),
            ],
        ),
        plan(
            "a SYN again",
            one,
            vec![Ack, Syn, Data(0, 12), Syn, Ack, Data(12, 13)],
        ),
        plan(
            "keep-alives",
            one,
            vec![
                Ack,
                KeepAlive,
                Data(0, 12),
                KeepAlive,
                Ack,
                KeepAlive,
                Data(12, 13),
            ],
        ),
    ]
}

/// What the answer of a plan is when the server has closed.
pub fn expected(plan: &Plan) -> Vec<u8> {
    let close = b"bye\n";
    let closed = plan.answer.windows(4).position(|bytes| bytes == close);
    match closed {
        Some(at) => plan.answer[..at + 4].to_vec(),
        None => plan.answer.clone(),
    }
}
