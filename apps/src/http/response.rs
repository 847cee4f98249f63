//! The bytes of response heads and of the small answers.

use interruptlet::interruptlet::StreamWriter;

use super::answer::{Exchange, Status};
use super::plan::Plan;
use super::range::ByteRange;
use super::representation::Representation;
use super::request::Version;

/// Where a head is written to.
pub trait Sink {
    /// Appends bytes.
    fn put(&mut self, bytes: &[u8]);

    /// Appends a number in decimal digits.
    fn put_number(&mut self, number: u64) {
        self.put(itoa::Buffer::new().format(number).as_bytes());
    }
}

impl Sink for StreamWriter<'_> {
    fn put(&mut self, bytes: &[u8]) {
        self.write(bytes);
    }
}

impl Sink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// What an answer without a file says besides its status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail<'a> {
    /// Nothing.
    None,
    /// The length that a range must be within, in bytes (RFC 9110 section 14.4).
    Length(u64),
    /// Where to go instead.
    Location(&'a [u8]),
}

/// Writes a whole answer that is not about the content of a file.
pub fn answer(
    sink: &mut impl Sink,
    exchange: Exchange,
    date: &[u8],
    status: Status,
    detail: Detail<'_>,
) {
    start(sink, exchange, date, status);
    match status {
        Status::MethodNotAllowed | Status::NoContent => {
            sink.put(b"Allow: GET, HEAD, OPTIONS\r\n");
        }
        Status::ServiceUnavailable => sink.put(b"Retry-After: 1\r\n"),
        _ => {}
    }
    match detail {
        Detail::None => {}
        Detail::Length(len) => {
            sink.put(b"Content-Range: bytes */");
            sink.put_number(len);
            sink.put(b"\r\n");
        }
        Detail::Location(location) => {
            sink.put(b"Location: ");
            sink.put(location);
            sink.put(b"\r\n");
        }
    }
    if status == Status::NoContent {
        // RFC 9110 section 8.6: no Content-Length either.
        sink.put(b"\r\n");
        return;
    }
    let text = status.as_str().as_bytes();
    sink.put(b"Content-Type: text/plain; charset=utf-8\r\nContent-Length: ");
    sink.put_number(text.len() as u64 + 1);
    sink.put(b"\r\n\r\n");
    if !exchange.head_only {
        sink.put(text);
        sink.put(b"\n");
    }
}

/// Writes the head of a reply about `file`, or all of it if `plan` sends nothing of the file.
/// `multipart` is needed for [`Plan::Parts`] only.
pub fn file_head(
    sink: &mut impl Sink,
    exchange: Exchange,
    date: &[u8],
    file: &Representation,
    plan: &Plan,
    multipart: Multipart<'_>,
) {
    match plan {
        Plan::Whole => {
            start(sink, exchange, date, Status::Ok);
            sink.put(file.full());
        }
        Plan::NotModified => {
            start(sink, exchange, date, Status::NotModified);
            sink.put(file.validators());
            sink.put(b"\r\n");
        }
        Plan::PreconditionFailed => {
            let status = Status::PreconditionFailed;
            answer(sink, exchange, date, status, Detail::None);
        }
        Plan::Unsatisfiable => {
            let status = Status::RangeNotSatisfiable;
            answer(sink, exchange, date, status, Detail::Length(file.len));
        }
        Plan::Part(range) => {
            start(sink, exchange, date, Status::PartialContent);
            sink.put(file.content_type());
            content_range(sink, *range, file.len);
            partial_end(sink, file, range.len());
        }
        Plan::Parts(_) => {
            start(sink, exchange, date, Status::PartialContent);
            sink.put(b"Content-Type: multipart/byteranges; boundary=");
            sink.put(multipart.boundary.as_bytes());
            sink.put(b"\r\n");
            partial_end(sink, file, multipart.len);
        }
    }
}

/// What the head of a multipart reply says.
#[derive(Debug, Clone, Copy, Default)]
pub struct Multipart<'a> {
    /// Separates the parts (RFC 2046 section 5.1.1).
    pub boundary: &'a str,
    /// Bytes of the body, with the heads of the parts.
    pub len: u64,
}

/// Writes the Content-Range line of a part of a file of `len` bytes.
pub fn content_range(sink: &mut impl Sink, range: ByteRange, len: u64) {
    sink.put(b"Content-Range: bytes ");
    sink.put_number(range.start);
    sink.put(b"-");
    sink.put_number(range.end.saturating_sub(1));
    sink.put(b"/");
    sink.put_number(len);
    sink.put(b"\r\n");
}

fn partial_end(sink: &mut impl Sink, file: &Representation, body_len: u64) {
    sink.put(b"Content-Length: ");
    sink.put_number(body_len);
    sink.put(b"\r\nAccept-Ranges: bytes\r\n");
    sink.put(file.validators());
    sink.put(b"\r\n");
}

/// Status line and the lines that every reply has. We speak HTTP/1.1 to everybody (RFC 9110 section
/// 6.2), but say what happens to the connection in the client's terms (RFC 9112 section 9.3).
fn start(sink: &mut impl Sink, exchange: Exchange, date: &[u8], status: Status) {
    match status {
        Status::Ok => sink.put(b"HTTP/1.1 200 OK\r\nServer: interruptlet\r\n"),
        _ => {
            sink.put(b"HTTP/1.1 ");
            sink.put(status.as_str().as_bytes());
            sink.put(b"\r\nServer: interruptlet\r\n");
        }
    }
    sink.put(date);
    match (exchange.keep_alive, exchange.version) {
        (false, _) => sink.put(b"Connection: close\r\n"),
        (true, Version::Http10) => sink.put(b"Connection: keep-alive\r\n"),
        (true, Version::Http11) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATE: &[u8] = b"Date: now\r\n";

    fn exchange() -> Exchange {
        Exchange {
            head_only: false,
            version: Version::Http11,
            keep_alive: true,
        }
    }

    fn answered(exchange: Exchange, status: Status, detail: Detail<'_>) -> String {
        let mut bytes = Vec::new();
        answer(&mut bytes, exchange, DATE, status, detail);
        String::from_utf8(bytes).unwrap()
    }

    fn headed(plan: Plan) -> String {
        let file = Representation::new("a.txt", 100, "\"t\"".into(), None);
        let multipart = Multipart {
            boundary: "B",
            len: 77,
        };
        let mut bytes = Vec::new();
        file_head(&mut bytes, exchange(), DATE, &file, &plan, multipart);
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_small_answer() {
        assert_eq!(
            answered(exchange(), Status::NotFound, Detail::None),
            "HTTP/1.1 404 Not Found\r\nServer: interruptlet\r\nDate: now\r\n\
             Content-Type: text/plain; charset=utf-8\r\nContent-Length: 14\r\n\r\n404 Not Found\n"
        );
        let head = answered(Exchange::last(true), Status::NotFound, Detail::None);
        assert!(head.contains("Content-Length: 14\r\n") && head.ends_with("\r\n\r\n"));
    }

    #[test]
    fn details() {
        let has = |status, detail, line| answered(exchange(), status, detail).contains(line);
        assert!(has(
            Status::MethodNotAllowed,
            Detail::None,
            "Allow: GET, HEAD, OPTIONS\r\n"
        ));
        assert!(has(
            Status::ServiceUnavailable,
            Detail::None,
            "Retry-After: 1\r\n"
        ));
        assert!(has(
            Status::RangeNotSatisfiable,
            Detail::Length(9),
            "Content-Range: bytes */9\r\n"
        ));
        assert!(has(
            Status::MovedPermanently,
            Detail::Location(b"/a/"),
            "Location: /a/\r\n"
        ));
        let options = answered(exchange(), Status::NoContent, Detail::None);
        assert!(options.ends_with("Allow: GET, HEAD, OPTIONS\r\n\r\n"));
        assert!(!options.contains("Content-Length"));
    }

    #[test]
    fn persistence_is_said_where_it_is_not_the_default() {
        let old = Exchange {
            version: Version::Http10,
            ..exchange()
        };
        assert!(
            answered(old, Status::NotFound, Detail::None).contains("Connection: keep-alive\r\n")
        );
        let last = answered(Exchange::last(false), Status::NotFound, Detail::None);
        assert!(last.contains("Connection: close\r\n"));
        assert!(!answered(exchange(), Status::NotFound, Detail::None).contains("Connection"));
    }

    #[test]
    fn heads_about_a_file() {
        let whole = headed(Plan::Whole);
        assert!(whole.starts_with("HTTP/1.1 200 OK\r\nServer: interruptlet\r\nDate: now\r\n"));
        assert!(whole.contains("Content-Length: 100\r\n") && whole.ends_with("\r\n\r\n"));

        let part = headed(Plan::Part(ByteRange { start: 10, end: 20 }));
        assert!(part.contains("Content-Range: bytes 10-19/100\r\n"));
        assert!(part.contains("Content-Length: 10\r\n") && part.contains("ETag: \"t\"\r\n"));

        let unmodified = headed(Plan::NotModified);
        assert!(unmodified.contains("ETag: \"t\"\r\n") && !unmodified.contains("Content-"));
        assert!(unmodified.ends_with("\r\n\r\n"));

        assert!(headed(Plan::Unsatisfiable).contains("Content-Range: bytes */100\r\n"));
        assert!(headed(Plan::PreconditionFailed).starts_with("HTTP/1.1 412 "));
    }
}
