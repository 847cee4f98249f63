//! The discard service of RFC 863 over TCP: what comes is dropped where it is.

use interruptlet::interruptlet::{StreamInterruptlet, StreamReply, StreamRequest};

/// Takes a byte stream until the peer closes it, and drops it (RFC 863, TCP based discard).
#[derive(Debug, Default, Clone, Copy)]
pub struct StreamSink;

impl StreamInterruptlet for StreamSink {
    fn handle(&mut self, request: StreamRequest<'_>) -> StreamReply {
        let len = request.bytes().len();
        if len == 0 {
            // Only at the end of the stream, when everything was taken.
            return request.close();
        }
        request.ignore(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use interruptlet::Instant;
    use interruptlet::testing::{Called, handle, request_info};

    fn silent(consumed: usize, close: bool) -> Called {
        let bytes = Vec::new();
        Called::Reply {
            consumed,
            bytes,
            close,
        }
    }

    #[test]
    fn everything_is_taken_and_nothing_said() {
        let info = request_info(Instant::ZERO);
        assert_eq!(
            handle(&mut StreamSink, b"hello\0\xff", &info),
            silent(7, false)
        );
    }

    #[test]
    fn the_end_of_the_stream_closes() {
        let mut info = request_info(Instant::ZERO);
        info.end_of_stream = true;
        let last = handle(&mut StreamSink, b"x", &info);
        assert_eq!(last, silent(1, false));
        assert_eq!(handle(&mut StreamSink, b"", &info), silent(0, true));
    }
}
