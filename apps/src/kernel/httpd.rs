//! HTTP/1.0 and HTTP/1.1 over a [`Site`].
//!
//! Requests are read and paths resolved as by `ilet-httpd`, so that both mean the same. Neither validators
//! nor ranges are offered, and no date: responses are what they are from the start.

use super::service::{Answered, MAX_PIECES, Next, Piece, Replies, Service};
use super::site::{Page, Site};
use crate::http::answer::Status;
use crate::http::request::{self, Method, Request, Version, header_storage};
use crate::http::target;

/// Longer requests are read every time.
const MAX_KNOWN_BYTES: usize = 1024;

/// Answers requests.
#[derive(Debug)]
pub struct Httpd<'s> {
    site: &'s Site,
    /// The last request, to the byte. The site does not change, so the same bytes mean the same reply.
    known_request: Vec<u8>,
    known_reply: Reply<'s>,
}

/// What is sent, and whether the connection stays open.
#[derive(Debug, Clone, Copy)]
struct Reply<'s> {
    parts: [&'s [u8]; 2],
    next: Next,
}

impl<'s> Httpd<'s> {
    /// A server of `site`.
    pub fn new(site: &'s Site) -> Self {
        Self {
            site,
            known_request: Vec::with_capacity(MAX_KNOWN_BYTES),
            known_reply: Reply::new(site.without_file(Status::NotFound), false, false),
        }
    }

    /// The reply to what is at the front of `input`, and how much of it is answered by that; `None` if it
    /// is not a whole request yet.
    fn reply(&mut self, input: &[u8], is_end: bool) -> Option<(usize, Reply<'s>)> {
        if !self.known_request.is_empty() && input.starts_with(&self.known_request) {
            return Some((self.known_request.len(), self.known_reply));
        }
        let mut storage = header_storage();
        let request = match request::parse(input, &mut storage) {
            Ok(Some(request)) => request,
            Ok(None) if is_end && !request::is_blank(input) => {
                return Some(self.refuse(input, Status::BadRequest));
            }
            Ok(None) => return None,
            Err(status) => return Some(self.refuse(input, status)),
        };
        let page = self
            .page(&request)
            .unwrap_or_else(|status| self.site.without_file(status));
        // To keep such a connection alive takes a field that no page has.
        let keep_alive = request.keep_alive && request.version == Version::Http11;
        let reply = Reply::new(page, keep_alive, request.method == Method::Head);
        let consumed = request.consumed;
        // Where other requests end may depend on what follows.
        let is_framed = matches!(request.method, Method::Get | Method::Head);
        if is_framed && consumed <= MAX_KNOWN_BYTES {
            self.known_request.clear();
            self.known_request.extend_from_slice(&input[..consumed]);
            self.known_reply = reply;
        }
        Some((consumed, reply))
    }

    fn refuse(&self, input: &[u8], status: Status) -> (usize, Reply<'s>) {
        let page = self.site.without_file(status);
        let reply = Reply {
            next: Next::Refuse,
            ..Reply::new(page, false, request::looks_like_head(input))
        };
        (input.len(), reply)
    }

    fn page(&self, request: &Request<'_, '_>) -> Result<&'s Page, Status> {
        match request.method {
            Method::Get | Method::Head => {}
            Method::Options | Method::NotAllowed => return Err(Status::MethodNotAllowed),
            Method::Unknown => return Err(Status::NotImplemented),
        }
        if request.expects {
            return Err(Status::ExpectationFailed);
        }
        let path = target::split(request.target)?.path;
        // Most paths are spelled as the file is.
        let as_spelled = path.strip_prefix(b"/").filter(|path| !path.contains(&b'%'));
        if let Some(page) = as_spelled.and_then(|path| self.site.file(path)) {
            return Ok(page);
        }
        let resolved = target::file_path(path)?;
        self.site.file(&resolved).ok_or(Status::NotFound)
    }
}

impl<'s> Reply<'s> {
    fn new(page: &'s Page, keep_alive: bool, head_only: bool) -> Self {
        Self {
            parts: page.parts(keep_alive, head_only),
            next: if keep_alive { Next::Read } else { Next::Close },
        }
    }
}

impl<'s> Service<'s> for Httpd<'s> {
    fn answer(&mut self, input: &[u8], is_end: bool, replies: &mut Replies<'s>) -> Answered {
        const { assert!(MAX_PIECES >= 2) };
        let mut consumed = 0;
        let next = loop {
            let rest = &input[consumed..];
            if rest.is_empty() {
                break Next::Read;
            }
            if !replies.has_room_for(2) {
                break Next::Answer;
            }
            let Some((len, reply)) = self.reply(rest, is_end) else {
                break Next::Read;
            };
            consumed += len;
            for part in reply.parts {
                if !part.is_empty() {
                    replies.push(Piece::Shared(part));
                }
            }
            if reply.next != Next::Read {
                break reply.next;
            }
        };
        Answered { consumed, next }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn site() -> Site {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("d")).unwrap();
        for (name, content) in [
            ("index.html", "index"),
            ("a b", "ab"),
            ("d/index.html", "d"),
        ] {
            fs::write(root.path().join(name), content).unwrap();
        }
        Site::load(root.path()).unwrap()
    }

    /// What one call sends, what it leaves, and what is next.
    fn answer<'i>(httpd: &mut Httpd<'_>, input: &'i str, is_end: bool) -> (String, &'i str, Next) {
        let mut replies = Replies::default();
        let answered = httpd.answer(input.as_bytes(), is_end, &mut replies);
        let pieces = replies.pieces().iter();
        let sent: Vec<&[u8]> = pieces.map(|piece| piece.bytes(input.as_bytes())).collect();
        let sent = String::from_utf8(sent.concat()).unwrap();
        (sent, &input[answered.consumed..], answered.next)
    }

    /// Status and body of the reply to one request, and what is next.
    fn one(request: &str) -> (String, String, Next) {
        let site = site();
        let mut httpd = Httpd::new(&site);
        let first = answer(&mut httpd, request, false);
        // Known or not, it is the same.
        assert_eq!(answer(&mut httpd, request, false), first);
        let (sent, rest, next) = first;
        assert_eq!(rest, "", "{request}");
        let (head, body) = sent.split_once("\r\n\r\n").unwrap();
        let closes = head.contains("\r\nConnection: close");
        assert_eq!(closes, next != Next::Read, "{head}");
        (head[9..12].to_owned(), body.to_owned(), next)
    }

    #[test]
    fn requests_and_what_is_said_to_them() {
        let get = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n");
        for (request, status, body, next) in [
            (get("/"), "200", "index", Next::Read),
            (get("/index.html?q"), "200", "index", Next::Read),
            (get("/a%20b"), "200", "ab", Next::Read),
            (get("/x/../d/"), "200", "d", Next::Read),
            (get("http://h/d/"), "200", "d", Next::Read),
            (get("/d"), "404", "404 Not Found\n", Next::Read),
            (get("/a%2520b"), "404", "404 Not Found\n", Next::Read),
            (get("/../a"), "400", "400 Bad Request\n", Next::Read),
            (get("/").replace("GET", "HEAD"), "200", "", Next::Read),
            (
                get("/").replace("GET", "POST"),
                "405",
                "405 Method Not Allowed\n",
                Next::Read,
            ),
            (
                get("/").replace("GET", "BREW"),
                "501",
                "501 Not Implemented\n",
                Next::Read,
            ),
            (get("/").replace("1.1", "1.0"), "200", "index", Next::Close),
            (
                get("/").replace("\r\nHost", "\r\nConnection: x, Close\r\nHost"),
                "200",
                "index",
                Next::Close,
            ),
            (
                get("/").replace("Host", "Hst"),
                "400",
                "400 Bad Request\n",
                Next::Refuse,
            ),
            (
                "nonsense\r\n\r\n".to_owned(),
                "400",
                "400 Bad Request\n",
                Next::Refuse,
            ),
            (
                get("/").replace("1.1", "2.0"),
                "505",
                "505 HTTP Version Not Supported\n",
                Next::Refuse,
            ),
        ] {
            let expected = (status.to_owned(), body.to_owned(), next);
            assert_eq!(one(&request), expected, "{request}");
        }
    }

    #[test]
    fn a_known_request_is_not_mistaken_for_a_longer_one() {
        let site = site();
        let mut httpd = Httpd::new(&site);
        let known = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";
        let (index, ..) = answer(&mut httpd, known, false);
        let other = "GET /d/ HTTP/1.1\r\nHost: h\r\n\r\n";
        let (d, ..) = answer(&mut httpd, other, false);
        assert_ne!(index, d);
        let in_a_row = [known, other, known, "GET"].concat();
        let (all, rest, next) = answer(&mut httpd, &in_a_row, false);
        assert_eq!(all, [index.clone(), d, index].concat());
        assert_eq!((rest, next), ("GET", Next::Read));
    }

    #[test]
    fn more_requests_than_one_call_answers() {
        let site = site();
        let mut httpd = Httpd::new(&site);
        let one = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";
        let all = one.repeat(MAX_PIECES + 5);
        let (sent, rest, next) = answer(&mut httpd, &all, false);
        assert_eq!(next, Next::Answer);
        assert!(!sent.is_empty() && rest.len() < all.len());
        assert_eq!(answer(&mut httpd, rest, false).2, Next::Read);
    }

    #[test]
    fn the_end_of_the_stream() {
        let site = site();
        let mut httpd = Httpd::new(&site);
        let part = "GET / HTTP/1.1\r\nHo";
        assert_eq!(
            answer(&mut httpd, part, false),
            (String::new(), part, Next::Read)
        );
        let (sent, _, next) = answer(&mut httpd, part, true);
        assert!(sent.starts_with("HTTP/1.1 400 ") && next == Next::Refuse);
        assert_eq!(answer(&mut httpd, "", true).0, "");
        assert_eq!(answer(&mut httpd, "\r\n", true).0, "");
    }
}
