//! Owns the raw HTTP client: sends the bytes it is given, as they are, and reads responses.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use crate::netns::Netns;

/// A response, with its body as delimited by Content-Length.
#[derive(Debug, Clone)]
pub struct Response {
    /// The version and status line's first word, such as `HTTP/1.1`.
    pub version: String,
    /// The status code.
    pub status: u16,
    headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// The value of a header that may occur once; panics if it occurs more often.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self
            .headers
            .iter()
            .filter(|(n, _)| n.eq_ignore_ascii_case(name));
        let value = values.next();
        assert!(
            values.next().is_none(),
            "{name} occurs twice: {:?}",
            self.headers
        );
        value.map(|(_, value)| value.as_str())
    }

    /// The value of a header that must be there.
    pub fn expect_header(&self, name: &str) -> &str {
        self.header(name)
            .unwrap_or_else(|| panic!("no {name} header: {:?}", self.headers))
    }
}

/// One connection to an HTTP server.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Connection {
    /// Connects from inside `client`.
    pub fn open(client: &Netns, to: SocketAddr) -> Self {
        let stream = client
            .tcp(to)
            .unwrap_or_else(|error| panic!("connect to {to}: {error}"));
        Self::over(stream)
    }

    /// Takes over a TCP connection on which nothing was received yet.
    pub fn over(stream: TcpStream) -> Self {
        Self {
            stream,
            received: Vec::new(),
        }
    }

    /// The TCP connection, for options of its own.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Gives the TCP connection back, without what was received and not asked for.
    pub fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// Sends bytes as they are. The server may already have refused and closed: that is for the
    /// reading side to find out.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        match self.stream.write_all(bytes.as_ref()) {
            Err(error) if !is_closed(&error) => panic!("send: {error}"),
            _ => {}
        }
    }

    /// Says that nothing more will be sent.
    pub fn finish_sending(&mut self) {
        // Fails only if the connection is gone already, which reading shows.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Limits how long reads may take, where the usual limit is too short.
    pub fn set_read_limit(&mut self, limit: Duration) {
        self.stream
            .set_read_timeout(Some(limit))
            .expect("set the read timeout");
    }

    /// Reads the response to anything but HEAD; panics if there is none.
    pub fn response(&mut self) -> Response {
        self.next(true)
            .expect("a response, not the end of the connection")
    }

    /// Reads the response to HEAD: its Content-Length describes a body that does not follow.
    pub fn head_response(&mut self) -> Response {
        self.next(false)
            .expect("a response, not the end of the connection")
    }

    /// Reads a response, or gives `None` if the connection ends before one begins.
    pub fn response_or_end(&mut self) -> Option<Response> {
        self.next(true)
    }

    /// Panics unless the connection ends without another byte (a reset counts as an end).
    pub fn expect_end(&mut self) {
        let more = self.fill();
        assert!(
            !more,
            "expected the end, got {:?}",
            String::from_utf8_lossy(&self.received)
        );
        assert!(
            self.received.is_empty(),
            "left over: {:?}",
            String::from_utf8_lossy(&self.received)
        );
    }

    /// Reads at most `limit` bytes of what comes next, and gives how many there were.
    pub fn read_some(&mut self, limit: usize) -> usize {
        if self.received.is_empty() {
            self.fill();
        }
        let count = limit.min(self.received.len());
        self.received.drain(..count);
        count
    }

    /// Looks for at most `limit` whether the server has sent anything or ended the connection.
    pub fn has_ended_or_answered(&mut self, limit: Duration) -> bool {
        let usual = self.stream.read_timeout().expect("get the read timeout");
        self.set_read_limit(limit);
        let waiting = matches!(
            self.stream.peek(&mut [0]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
        );
        self.stream
            .set_read_timeout(usual)
            .expect("set the read timeout");
        !waiting
    }

    fn next(&mut self, with_body: bool) -> Option<Response> {
        let head_len = loop {
            if let Some(at) = find(&self.received, b"\r\n\r\n") {
                break at + 4;
            }
            if !self.fill() {
                assert!(
                    self.received.is_empty(),
                    "ended within a head: {:?}",
                    String::from_utf8_lossy(&self.received)
                );
                return None;
            }
        };
        let head: Vec<u8> = self.received.drain(..head_len).collect();
        let mut response = parse_head(&head);
        if with_body && response.status != 304 && response.status >= 200 {
            let length = response
                .expect_header("content-length")
                .parse()
                .expect("a length");
            while self.received.len() < length {
                assert!(
                    self.fill(),
                    "ended after {} of {length} bytes of body",
                    self.received.len()
                );
            }
            response.body = self.received.drain(..length).collect();
        }
        Some(response)
    }

    /// Reads more; false at the end of the connection.
    fn fill(&mut self) -> bool {
        let mut chunk = [0; 64 * 1024];
        match self.stream.read(&mut chunk) {
            Ok(0) => false,
            Ok(count) => {
                self.received.extend_from_slice(&chunk[..count]);
                true
            }
            Err(error) if is_closed(&error) => false,
            Err(error) => panic!("read: {error}"),
        }
    }
}

/// Opens a connection for one request and gives its response.
pub fn exchange(client: &Netns, to: SocketAddr, request: impl AsRef<[u8]>) -> Response {
    let mut connection = Connection::open(client, to);
    connection.send(request);
    connection.response()
}

fn is_closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe
    )
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}

fn parse_head(head: &[u8]) -> Response {
    let text = std::str::from_utf8(head).expect("a head in UTF-8");
    let mut lines = text.trim_end().split("\r\n");
    let mut status_line = lines.next().unwrap_or("").splitn(3, ' ');
    let version = status_line.next().unwrap_or("").to_owned();
    let status = status_line.next().and_then(|code| code.parse().ok());
    let status = status.unwrap_or_else(|| panic!("not a status line: {text:?}"));
    let headers = lines.map(|line| {
        let (name, value) = line
            .split_once(':')
            .unwrap_or_else(|| panic!("not a header: {line:?}"));
        (name.to_owned(), value.trim().to_owned())
    });
    Response {
        version,
        status,
        headers: headers.collect(),
        body: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::parse_head;

    #[test]
    fn a_head_is_taken_apart() {
        let head =
            b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-1/2\r\nETag: \"a:b\"\r\n\r\n";
        let response = parse_head(head);
        assert_eq!(
            (response.version.as_str(), response.status),
            ("HTTP/1.1", 206)
        );
        assert_eq!(response.header("etag"), Some("\"a:b\""));
        assert_eq!(response.header("date"), None);
    }
}
