//! One connection to an HTTP server: what is to be sent, and what has to come back.
//!
//! Strict on purpose: a response is 200, of HTTP/1.1 or 1.0, and says its length with `Content-Length` or,
//! if it says that the connection is closed, with its end. Codings are refused. Every byte of every body is
//! compared with a file, or with what the first response had there.

use super::Outcome;
use super::record::ErrorKind;

/// Bytes of a response's head at most.
const HEAD_MAX: usize = 8 * 1024;
/// Header fields at most.
const FIELDS_MAX: usize = 64;
/// Bytes of a body at most: all of it is kept, to compare the others with.
pub const BODY_MAX: u64 = 1 << 30;

/// What all connections share: the request, and what is known of the response.
#[derive(Debug)]
pub struct Http {
    /// Keeps the connection.
    request: Box<[u8]>,
    /// Asks for its end.
    last_request: Box<[u8]>,
    reference: Reference,
    /// The last head that was valid, and what it said: the next one is likely to be the same.
    head: Vec<u8>,
    head_says: Head,
}

/// The state of a connection.
#[derive(Debug)]
pub struct Exchange {
    phase: Phase,
    /// Whether one request is all.
    is_single: bool,
    /// The response at hand is the last.
    closes: bool,
    /// Bytes of the body that are to come, unless it ends with the connection.
    left: u64,
    /// Bytes of the body that were there.
    offset: u64,
    /// Bytes of requests that are to be sent.
    unsent: u32,
    /// A head that is not complete, which is rare.
    partial: Box<[u8]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Head,
    Body,
    /// A body that ends with the connection.
    BodyToEnd,
}

/// What the head of a response says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Head {
    length: Option<u64>,
    closes: bool,
}

impl Exchange {
    /// A new connection; `is_single` says that it is for one request.
    pub fn new(is_single: bool) -> Self {
        Self {
            phase: Phase::Head,
            is_single,
            closes: false,
            left: 0,
            offset: 0,
            unsent: 0,
            partial: Box::default(),
        }
    }
}

impl Http {
    /// For `path` of the server `host`; `body` is what bodies must be, if that is known.
    pub fn new(host: &str, path: &str, body: Option<Vec<u8>>) -> Self {
        let request = |field| format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{field}\r\n");
        Self {
            request: request("").into_bytes().into(),
            last_request: request("Connection: close\r\n").into_bytes().into(),
            reference: Reference::new(body),
            head: Vec::new(),
            head_says: Head::default(),
        }
    }

    /// Bytes of a request.
    pub fn request_len(&self) -> usize {
        self.last_request.len()
    }

    /// Has another request sent.
    pub fn ask(&self, exchange: &mut Exchange) {
        exchange.unsent += self.request_of(exchange).len() as u32;
    }

    /// Gives what is to be sent to `send`, which returns how much it took, until that is less than it got.
    pub fn send(&self, exchange: &mut Exchange, mut send: impl FnMut(&[u8]) -> usize) {
        let request = self.request_of(exchange);
        while exchange.unsent > 0 {
            let rest = (exchange.unsent as usize - 1) % request.len() + 1;
            let taken = send(&request[request.len() - rest..]);
            exchange.unsent -= taken as u32;
            if taken < rest {
                break;
            }
        }
    }

    fn request_of(&self, exchange: &Exchange) -> &[u8] {
        if exchange.is_single {
            &self.last_request
        } else {
            &self.request
        }
    }

    /// Takes what came; `outstanding` requests wait for their answers.
    pub fn receive(
        &mut self,
        exchange: &mut Exchange,
        mut bytes: &[u8],
        outstanding: u32,
    ) -> Outcome {
        let mut outcome = Outcome::default();
        while !bytes.is_empty() {
            if outcome.answers == outstanding || outcome.close {
                outcome.failure = Some(ErrorKind::Unexpected);
                return outcome;
            }
            match self.receive_some(exchange, bytes) {
                Ok((used, complete)) => {
                    bytes = &bytes[used..];
                    outcome.answers += u32::from(complete);
                    outcome.close = complete && exchange.closes;
                }
                Err(kind) => {
                    outcome.failure = Some(kind);
                    return outcome;
                }
            }
        }
        outcome
    }

    /// The server has closed its side.
    pub fn end(&mut self, exchange: &mut Exchange) -> Outcome {
        if exchange.phase != Phase::BodyToEnd {
            return Outcome::failure(ErrorKind::ClosedEarly);
        }
        if !self.reference.has_length(exchange.offset) {
            return Outcome::failure(ErrorKind::BadLength);
        }
        exchange.phase = Phase::Head;
        Outcome {
            answers: 1,
            failure: None,
            close: true,
        }
    }

    /// Takes a part of what came; returns its length, and whether it completes a response.
    fn receive_some(
        &mut self,
        exchange: &mut Exchange,
        bytes: &[u8],
    ) -> Result<(usize, bool), ErrorKind> {
        let mut used = 0;
        if exchange.phase == Phase::Head {
            let Some((says, len)) = self.receive_head(exchange, bytes)? else {
                return Ok((bytes.len(), false));
            };
            used = len;
            exchange.closes = says.closes;
            exchange.offset = 0;
            match says.length {
                Some(length) if !self.reference.has_length(length) => {
                    return Err(ErrorKind::BadLength);
                }
                Some(length) => (exchange.phase, exchange.left) = (Phase::Body, length),
                None => (exchange.phase, exchange.left) = (Phase::BodyToEnd, u64::MAX),
            }
        }
        let rest = &bytes[used..];
        let len = usize::try_from(exchange.left).map_or(rest.len(), |left| left.min(rest.len()));
        self.reference.check(exchange.offset, &rest[..len])?;
        exchange.offset += len as u64;
        used += len;
        if exchange.phase == Phase::BodyToEnd {
            return Ok((used, false));
        }
        exchange.left -= len as u64;
        let complete = exchange.left == 0;
        if complete {
            exchange.phase = Phase::Head;
        }
        Ok((used, complete))
    }

    /// Takes the head of a response; returns what it says and how many of `bytes` belong to it, or nothing
    /// if it is not complete.
    #[inline]
    fn receive_head(
        &mut self,
        exchange: &mut Exchange,
        bytes: &[u8],
    ) -> Result<Option<(Head, usize)>, ErrorKind> {
        if exchange.partial.is_empty() && !self.head.is_empty() && bytes.starts_with(&self.head) {
            return Ok(Some((self.head_says, self.head.len())));
        }
        self.receive_new_head(exchange, bytes)
    }

    fn receive_new_head(
        &mut self,
        exchange: &mut Exchange,
        bytes: &[u8],
    ) -> Result<Option<(Head, usize)>, ErrorKind> {
        let mut head = std::mem::take(&mut exchange.partial).into_vec();
        let before = head.len();
        head.extend_from_slice(&bytes[..bytes.len().min(HEAD_MAX - before)]);
        match parse(&head)? {
            Some((says, len)) => {
                head.truncate(len);
                self.head = head;
                self.head_says = says;
                Ok(Some((says, len - before)))
            }
            None if head.len() == HEAD_MAX => Err(ErrorKind::BadResponse),
            None => {
                exchange.partial = head.into();
                Ok(None)
            }
        }
    }
}

/// Parses a head; returns what it says and its length, or nothing if it is not complete.
fn parse(bytes: &[u8]) -> Result<Option<(Head, usize)>, ErrorKind> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut response = httparse::Response::new(&mut fields);
    let len = match response.parse(bytes) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(ErrorKind::BadResponse),
    };
    // The parser lets bare line feeds pass.
    let head = &bytes[..len];
    if memchr::memchr_iter(b'\n', head).any(|at| at == 0 || head[at - 1] != b'\r') {
        return Err(ErrorKind::BadResponse);
    }
    if response.code != Some(200) {
        return Err(ErrorKind::BadStatus);
    }
    let mut length = None;
    let mut says_close = false;
    let mut says_keep_alive = false;
    for field in response.headers.iter() {
        if field.name.eq_ignore_ascii_case("content-length") {
            let value = decimal(field.value).ok_or(ErrorKind::BadResponse)?;
            if length.replace(value).is_some() {
                return Err(ErrorKind::BadResponse);
            }
        } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(ErrorKind::BadResponse);
        } else if field.name.eq_ignore_ascii_case("connection") {
            for option in field.value.split(|byte| *byte == b',') {
                let option = option.trim_ascii();
                says_close |= option.eq_ignore_ascii_case(b"close");
                says_keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
            }
        }
    }
    // RFC 9112 section 9.3.
    let closes = says_close || response.version == Some(0) && !says_keep_alive;
    if length.is_none() && !closes {
        return Err(ErrorKind::BadResponse);
    }
    Ok(Some((Head { length, closes }, len)))
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// What bodies must be. Without a file, the connection that is ahead of the others says what is to come,
/// and all others are compared with that.
#[derive(Debug)]
struct Reference {
    bytes: Vec<u8>,
    length: Option<u64>,
}

impl Reference {
    fn new(body: Option<Vec<u8>>) -> Self {
        Self {
            length: body.as_ref().map(|body| body.len() as u64),
            bytes: body.unwrap_or_default(),
        }
    }

    /// Whether a body may be so long; the first says how long they are.
    fn has_length(&mut self, length: u64) -> bool {
        let known = self.bytes.len() as u64;
        length <= BODY_MAX && length >= known && *self.length.get_or_insert(length) == length
    }

    /// Compares what a body has at `offset`, up to which it was compared.
    fn check(&mut self, offset: u64, bytes: &[u8]) -> Result<(), ErrorKind> {
        if bytes.is_empty() {
            return Ok(());
        }
        let end = offset + bytes.len() as u64;
        if end > self.length.unwrap_or(BODY_MAX) {
            return Err(ErrorKind::BadLength);
        }
        let known = usize::try_from(offset)
            .ok()
            .and_then(|offset| self.bytes.get(offset..))
            .unwrap_or_default();
        let (compared, new) = bytes.split_at(known.len().min(bytes.len()));
        if *compared != known[..compared.len()] {
            return Err(ErrorKind::BadBody);
        }
        self.bytes.extend_from_slice(new);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RESPONSE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

    fn http(body: Option<&str>) -> Http {
        Http::new("10.0.0.2", "/x", body.map(|body| body.as_bytes().to_vec()))
    }

    /// One response, whole.
    fn one(http: &mut Http, response: &str) -> Outcome {
        http.receive(&mut Exchange::new(false), response.as_bytes(), 1)
    }

    const COMPLETE: Outcome = Outcome {
        answers: 1,
        failure: None,
        close: false,
    };
    const COMPLETE_AND_CLOSE: Outcome = Outcome {
        close: true,
        ..COMPLETE
    };

    fn failure(kind: ErrorKind) -> Outcome {
        Outcome::failure(kind)
    }

    #[test]
    fn requests_in_any_pieces() {
        let http = http(None);
        let keep = "GET /x HTTP/1.1\r\nHost: 10.0.0.2\r\n\r\n";
        let last = "GET /x HTTP/1.1\r\nHost: 10.0.0.2\r\nConnection: close\r\n\r\n";
        for (is_single, request) in [(false, keep), (true, last)] {
            for room in 1..70 {
                let mut exchange = Exchange::new(is_single);
                let mut sent = Vec::new();
                http.ask(&mut exchange);
                http.ask(&mut exchange);
                while exchange.unsent > 0 {
                    let mut room = room;
                    http.send(&mut exchange, |bytes| {
                        let taken = bytes.len().min(room);
                        room -= taken;
                        sent.extend_from_slice(&bytes[..taken]);
                        taken
                    });
                }
                assert_eq!(String::from_utf8(sent).unwrap(), request.repeat(2));
            }
        }
    }

    #[test]
    fn right_responses() {
        let mut http = http(Some("hello"));
        for (response, outcome) in [
            (RESPONSE, COMPLETE),
            (RESPONSE, COMPLETE),
            (
                "HTTP/1.1 200 \r\ncontent-LENGTH:  5\r\nConnection: x, Keep-Alive\r\n\r\nhello",
                COMPLETE,
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: CLOSE\r\n\r\nhello",
                COMPLETE_AND_CLOSE,
            ),
            (
                "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
                COMPLETE_AND_CLOSE,
            ),
            (
                "HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\nhello",
                COMPLETE,
            ),
        ] {
            assert_eq!(one(&mut http, response), outcome, "{response}");
        }
    }

    #[test]
    fn a_body_that_ends_with_the_connection() {
        let mut http = http(None);
        let head = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n";
        let mut all = |body: &str| {
            let mut exchange = Exchange::new(true);
            let bytes = format!("{head}{body}");
            let received = http.receive(&mut exchange, bytes.as_bytes(), 1);
            (received, http.end(&mut exchange))
        };
        assert_eq!(all("hello").1, COMPLETE_AND_CLOSE);
        assert_eq!(all("hello").1, COMPLETE_AND_CLOSE);
        assert_eq!(all("hell").1, failure(ErrorKind::BadLength));
        assert_eq!(all("hello!").0, failure(ErrorKind::BadLength));
        assert_eq!(all("hullo").0, failure(ErrorKind::BadBody));
    }

    #[test]
    fn wrong_responses_have_their_kinds() {
        for (response, kind) in [
            (
                "HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nhello",
                ErrorKind::BadStatus,
            ),
            ("HTTP/1.1 204 No Content\r\n\r\n", ErrorKind::BadStatus),
            ("HTTP/1.1 100 Continue\r\n\r\n", ErrorKind::BadStatus),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhell",
                ErrorKind::BadLength,
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello!",
                ErrorKind::BadLength,
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhellO",
                ErrorKind::BadBody,
            ),
            ("HTTP/1.1 200 OK\r\n\r\nhello", ErrorKind::BadResponse),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
                ErrorKind::BadResponse,
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
                ErrorKind::BadResponse,
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
                ErrorKind::BadResponse,
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\nhello",
                ErrorKind::BadResponse,
            ),
            (
                "HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
                ErrorKind::BadResponse,
            ),
            ("HTTP/2 200\r\n\r\n", ErrorKind::BadResponse),
            ("SSH-2.0-OpenSSH_9.2\r\n", ErrorKind::BadResponse),
            ("\0\0\0\0", ErrorKind::BadResponse),
        ] {
            let outcome = one(&mut http(Some("hello")), response);
            assert_eq!(outcome, failure(kind), "{response}");
        }
        let long = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(HEAD_MAX));
        assert_eq!(one(&mut http(None), &long), failure(ErrorKind::BadResponse));
        let huge = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
            BODY_MAX + 1
        );
        assert_eq!(one(&mut http(None), &huge), failure(ErrorKind::BadLength));
    }

    #[test]
    fn what_nobody_asked_for() {
        let mut http = http(None);
        let mut exchange = Exchange::new(false);
        let none = http.receive(&mut exchange, b"H", 0);
        assert_eq!(none, failure(ErrorKind::Unexpected));
        let twice = RESPONSE.repeat(2);
        let outcome = http.receive(&mut Exchange::new(false), twice.as_bytes(), 1);
        assert_eq!(
            (outcome.answers, outcome.failure),
            (1, Some(ErrorKind::Unexpected))
        );
        // More than one that says it is the last.
        let last =
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello".repeat(2);
        let outcome = http.receive(&mut Exchange::new(false), last.as_bytes(), 2);
        assert_eq!(
            (outcome.answers, outcome.failure),
            (1, Some(ErrorKind::Unexpected))
        );
    }

    #[test]
    fn an_end_that_comes_early() {
        let mut http = http(None);
        for part in 0..RESPONSE.len() {
            let mut exchange = Exchange::new(false);
            let outcome = http.receive(&mut exchange, &RESPONSE.as_bytes()[..part], 1);
            assert_eq!(outcome, Outcome::default());
            assert_eq!(http.end(&mut exchange), failure(ErrorKind::ClosedEarly));
        }
    }

    #[test]
    fn connections_in_parallel_are_compared_with_the_one_ahead() {
        let mut http = http(None);
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n";
        let mut exchanges: Vec<Exchange> = (0..3).map(|_| Exchange::new(false)).collect();
        let mut receive =
            |index: usize, bytes: &[u8]| http.receive(&mut exchanges[index], bytes, 1).failure;
        for index in 0..3 {
            assert_eq!(receive(index, head), None);
        }
        assert_eq!(receive(0, b"0123"), None);
        assert_eq!(receive(1, b"012345"), None);
        assert_eq!(receive(0, b"456789"), None);
        assert_eq!(receive(1, b"6788"), Some(ErrorKind::BadBody));
        assert_eq!(receive(2, b"0124"), Some(ErrorKind::BadBody));
    }

    #[test]
    fn empty_bodies() {
        let mut http = http(None);
        let empty = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        let outcome = http.receive(&mut Exchange::new(false), empty.repeat(3).as_bytes(), 3);
        assert_eq!((outcome.answers, outcome.failure), (3, None));
        assert_eq!(one(&mut http, RESPONSE), failure(ErrorKind::BadLength));
    }

    proptest! {
        #[test]
        fn responses_in_any_pieces(
            count in 1u32..5,
            len in 0usize..300,
            pieces in prop::collection::vec(1usize..100, 1..50),
        ) {
            let mut http = http(None);
            let mut exchange = Exchange::new(false);
            let body = "b".repeat(len);
            // Heads that differ and heads that are the same.
            let wire: String = (0..count)
                .map(|n| format!("HTTP/1.1 200 OK\r\nN: {}\r\nContent-Length: {len}\r\n\r\n{body}", n / 2))
                .collect();
            let mut rest = wire.as_bytes();
            let mut pieces = pieces.into_iter().cycle();
            let mut answers = 0;
            while !rest.is_empty() {
                let piece = pieces.next().unwrap().min(rest.len());
                let outcome = http.receive(&mut exchange, &rest[..piece], count - answers);
                prop_assert_eq!(outcome.failure, None);
                answers += outcome.answers;
                rest = &rest[piece..];
            }
            prop_assert_eq!(answers, count);
        }

        #[test]
        fn any_bytes_are_taken(
            start in 0..=RESPONSE.len(),
            bytes: Vec<u8>,
            split: prop::sample::Index,
            outstanding in 0u32..3,
        ) {
            let mut http = http(None);
            let mut exchange = Exchange::new(false);
            let all = [&RESPONSE.as_bytes()[..start], &bytes].concat();
            let split = split.index(all.len() + 1).min(all.len());
            let first = http.receive(&mut exchange, &all[..split], outstanding);
            prop_assert!(first.answers <= outstanding);
            if first.failure.is_none() && !first.close {
                http.receive(&mut exchange, &all[split..], outstanding - first.answers);
            }
        }

        #[test]
        fn a_changed_body_is_noticed(len in 1usize..3000, at: prop::sample::Index, bit in 0u8..8) {
            let mut body = vec![b'x'; len];
            let mut http = Http::new("h", "/", Some(body.clone()));
            body[at.index(len)] ^= 1 << bit;
            let mut wire = format!("HTTP/1.1 200 OK\r\nContent-Length: {len}\r\n\r\n").into_bytes();
            wire.extend_from_slice(&body);
            let outcome = http.receive(&mut Exchange::new(false), &wire, 1);
            prop_assert_eq!(outcome, failure(ErrorKind::BadBody));
        }
    }
}
