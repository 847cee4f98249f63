//! The echo service of RFC 862 over TCP and UDP: replies are made in the frame of the request.

use interruptlet::interruptlet::{
    DatagramInterruptlet, DatagramReply, DatagramRequest, StreamInterruptlet, StreamReply,
    StreamRequest,
};

/// Echoes a byte stream until the peer closes it (RFC 862, TCP based echo).
#[derive(Debug, Default, Clone, Copy)]
pub struct StreamEcho;

impl StreamInterruptlet for StreamEcho {
    fn handle(&mut self, request: StreamRequest<'_>) -> StreamReply {
        let len = request.bytes().len();
        if len == 0 {
            // Only at the end of the stream, when everything was echoed.
            return request.close();
        }
        request.reply_in_place(len).send(len)
    }
}

/// Echoes datagrams, empty ones included (RFC 862, UDP based echo).
#[derive(Debug, Default, Clone, Copy)]
pub struct DatagramEcho;

impl DatagramInterruptlet for DatagramEcho {
    fn handle(&mut self, request: DatagramRequest<'_>) -> DatagramReply {
        if !is_safe_to_answer(request.peer().port()) {
            return request.ignore();
        }
        let len = request.bytes().len();
        request.reply_in_place().send(len)
    }
}

/// Whether an echo to this source port is harmless. Services that answer anything (echo, daytime, qotd,
/// chargen, time, DNS, NTP) would bounce the reply back for ever if somebody spoofed their address once
/// (CERT CA-1996-01).
pub(crate) fn is_safe_to_answer(port: u16) -> bool {
    !matches!(port, 0 | 7 | 13 | 17 | 19 | 37 | 53 | 123)
}

#[cfg(test)]
mod tests {
    use super::*;
    use interruptlet::Instant;
    use interruptlet::testing::{Called, handle, request_info};

    #[test]
    fn a_stream_comes_back_as_it_is() {
        let info = request_info(Instant::ZERO);
        assert_eq!(
            handle(&mut StreamEcho, b"hello\0\xff", &info),
            Called::Reply {
                consumed: 7,
                bytes: b"hello\0\xff".to_vec(),
                close: false
            }
        );
    }

    #[test]
    fn the_end_of_the_stream_closes_after_the_last_bytes() {
        let mut info = request_info(Instant::ZERO);
        info.end_of_stream = true;
        assert!(matches!(
            handle(&mut StreamEcho, b"x", &info),
            Called::Reply { close: false, .. }
        ));
        assert!(matches!(
            handle(&mut StreamEcho, b"", &info),
            Called::Reply { close: true, .. }
        ));
    }

    #[test]
    fn no_loop_between_two_services_that_answer_anything() {
        assert!(!is_safe_to_answer(7));
        assert!(!is_safe_to_answer(19));
        assert!(is_safe_to_answer(40_000));
    }
}
