//! The front of a connection's bytes as one HTTP/1 request, or the reason to refuse it.
//!
//! Framing is stricter than RFC 9112 asks of a lone server: whatever two parsers could read differently
//! (request smuggling) is refused and the connection closed. `httparse` reads the header fields; what it
//! tolerates and we do not is checked here.

use httparse::Header;
use memchr::memchr_iter;

use super::answer::Status;

/// A longer head is refused with 431.
pub const MAX_HEAD_BYTES: usize = 8 * 1024;
/// A longer request target is refused with 414.
pub const MAX_TARGET_BYTES: usize = 4 * 1024;
/// More header fields are refused with 431. At most 64.
pub const MAX_HEADERS: usize = 64;
/// A longer body on GET or HEAD, where it means nothing, is refused with 413.
pub const MAX_IGNORED_BODY_BYTES: u64 = 8 * 1024;
/// Longer than any registered method.
const MAX_METHOD_BYTES: usize = 32;
/// RFC 9112 section 2.2: at least one empty line before a request should be ignored.
const MAX_EMPTY_LINES: usize = 2;

/// Room for the header fields of one request.
pub type HeaderStorage<'b> = [Header<'b>; MAX_HEADERS];

/// Empty [`HeaderStorage`].
pub fn header_storage<'b>() -> HeaderStorage<'b> {
    [httparse::EMPTY_HEADER; MAX_HEADERS]
}

/// The methods that are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// `GET`
    Get,
    /// `HEAD`
    Head,
    /// `OPTIONS`
    Options,
    /// Registered, but nothing here can do it: 405.
    NotAllowed,
    /// Never heard of: 501.
    Unknown,
}

/// The versions that are told apart. A later HTTP/1 minor version is spoken to as HTTP/1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    Http11,
}

/// A whole, well-framed request.
#[derive(Debug)]
pub struct Request<'h, 'b> {
    /// What to do.
    pub method: Method,
    /// The request target as sent: printable ASCII without spaces.
    pub target: &'b [u8],
    /// The version to answer in the manner of.
    pub version: Version,
    /// Whether the connection may serve another request.
    pub keep_alive: bool,
    /// Bytes that this request takes up, leading empty lines and an ignored body included.
    pub consumed: usize,
    /// Whether there is any precondition or range at all.
    pub conditional: bool,
    /// It expects what no server does (RFC 9110 section 10.1.1): 417.
    pub expects: bool,
    headers: &'h [Header<'b>],
}

impl<'h, 'b> Request<'h, 'b> {
    /// The values of all lines of a header field, `name` in any case.
    pub fn values<'n>(&self, name: &'n str) -> impl Iterator<Item = &'b [u8]> + use<'h, 'b, 'n> {
        self.headers
            .iter()
            .filter(move |header| header.name.eq_ignore_ascii_case(name))
            .map(|header| header.value)
    }

    /// The value of a header field that may be there once: `None` also if it is there more often, which
    /// makes it invalid.
    pub fn single(&self, name: &str) -> Option<&'b [u8]> {
        let mut values = self.values(name);
        values.next().filter(|_| values.next().is_none())
    }

    /// Whether a header field is there.
    pub fn has(&self, name: &str) -> bool {
        self.values(name).next().is_some()
    }
}

/// Whether a client that sent these bytes awaits a reply without a body, as far as can be told.
pub fn looks_like_head(bytes: &[u8]) -> bool {
    skip_empty_lines(bytes).is_ok_and(|start| bytes[start..].starts_with(b"HEAD "))
}

/// Whether these bytes are less than the beginning of a request: nothing, or empty lines.
pub fn is_blank(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| matches!(byte, b'\r' | b'\n'))
}

/// Reads the request at the front of `bytes`: `None` while it is not whole.
///
/// # Errors
/// The status to refuse it with; the connection cannot be used any further.
pub fn parse<'h, 'b>(
    bytes: &'b [u8],
    storage: &'h mut HeaderStorage<'b>,
) -> Result<Option<Request<'h, 'b>>, Status> {
    let start = skip_empty_lines(bytes)?;
    let bytes_left = &bytes[start..];
    let Some(&first) = bytes_left.first() else {
        return Ok(None);
    };
    if !is_token(first) && first != b'\r' {
        // Not HTTP at all (TLS, say): no point in waiting for a line.
        return Err(Status::BadRequest);
    }
    let Some(lines) = find_head(bytes_left)? else {
        return Ok(None);
    };
    let line = RequestLine::parse(&bytes_left[..lines.request_line])?;
    let fields_start = lines.request_line + 2;
    let headers = parse_fields(&bytes_left[fields_start..lines.head], storage)?;
    let fields = Fields::read(headers)?;
    if !fields.has_host && line.version == Version::Http11 {
        return Err(Status::BadRequest);
    }

    let head_end = start + lines.head;
    let mut keep_alive = fields.keeps_alive(line.version);
    let mut consumed = head_end;
    match fields.body(line.version)? {
        Announced::Nothing => {}
        // The method decides what is said; nobody reads the body, so nothing can follow it.
        _ if !matches!(line.method, Method::Get | Method::Head) => {
            keep_alive = false;
            consumed = bytes.len();
        }
        Announced::Bytes(len) if len <= MAX_IGNORED_BODY_BYTES => {
            consumed = head_end + len as usize;
            if bytes.len() < consumed {
                // RFC 9110 section 10.1.1: this client sends the body when it is asked to, and we never ask.
                let waits = fields.awaits_continue && line.version == Version::Http11;
                return if waits {
                    Err(Status::ExpectationFailed)
                } else {
                    Ok(None)
                };
            }
        }
        Announced::Bytes(_) | Announced::Chunks => return Err(Status::ContentTooLarge),
    }
    Ok(Some(Request {
        method: line.method,
        target: line.target,
        version: line.version,
        keep_alive,
        consumed,
        conditional: fields.conditional,
        expects: fields.expects_more && line.version == Version::Http11,
        headers,
    }))
}

/// The number of bytes of empty lines before the request line.
fn skip_empty_lines(bytes: &[u8]) -> Result<usize, Status> {
    let mut start = 0;
    while bytes[start..].starts_with(b"\r\n") {
        start += 2;
        if start > 2 * MAX_EMPTY_LINES {
            return Err(Status::BadRequest);
        }
    }
    Ok(start)
}

/// Where the lines of a head end.
struct HeadLines {
    /// Length of the request line without its CRLF.
    request_line: usize,
    /// Length of the head with the empty line at its end.
    head: usize,
}

/// Finds the end of the head; `None` while it is not there. A line may end in CRLF only: what takes a
/// bare LF for an end (RFC 9112 section 2.2 allows it) disagrees with what does not.
fn find_head(bytes: &[u8]) -> Result<Option<HeadLines>, Status> {
    let mut request_line = None;
    let mut line_start = 0;
    for line_feed in memchr_iter(b'\n', bytes) {
        if line_feed >= MAX_HEAD_BYTES {
            break;
        }
        if line_feed == 0 || bytes[line_feed - 1] != b'\r' {
            return Err(Status::BadRequest);
        }
        let end = line_feed - 1;
        match request_line {
            None => request_line = Some(end),
            Some(request_line) if end == line_start => {
                return Ok(Some(HeadLines {
                    request_line,
                    head: line_feed + 1,
                }));
            }
            Some(_) => {}
        }
        line_start = line_feed + 1;
    }
    let endless_line = MAX_METHOD_BYTES + MAX_TARGET_BYTES + " HTTP/1.1\r\n".len() + 1;
    match request_line {
        None if bytes.len() > endless_line => Err(Status::UriTooLong),
        Some(_) if bytes.len() > MAX_HEAD_BYTES => Err(Status::HeaderFieldsTooLarge),
        _ => Ok(None),
    }
}

struct RequestLine<'b> {
    method: Method,
    target: &'b [u8],
    version: Version,
}

impl<'b> RequestLine<'b> {
    /// RFC 9112 section 3: method SP target SP version, single spaces.
    fn parse(line: &'b [u8]) -> Result<Self, Status> {
        let mut parts = line.split(|&byte| byte == b' ');
        let (Some(method), Some(target), Some(version), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Status::BadRequest);
        };
        if method.is_empty() || !method.iter().all(|&byte| is_token(byte)) {
            return Err(Status::BadRequest);
        }
        if target.is_empty() || !target.iter().all(u8::is_ascii_graphic) {
            return Err(Status::BadRequest);
        }
        let version = match version {
            b"HTTP/1.0" => Version::Http10,
            [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'1'..=b'9'] => Version::Http11,
            [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'] => {
                return Err(Status::VersionNotSupported);
            }
            _ => return Err(Status::BadRequest),
        };
        if method.len() > MAX_METHOD_BYTES {
            return Err(Status::NotImplemented);
        }
        if target.len() > MAX_TARGET_BYTES {
            return Err(Status::UriTooLong);
        }
        let method = match method {
            b"GET" => Method::Get,
            b"HEAD" => Method::Head,
            b"OPTIONS" => Method::Options,
            b"POST" | b"PUT" | b"DELETE" | b"PATCH" | b"TRACE" | b"CONNECT" => Method::NotAllowed,
            _ => Method::Unknown,
        };
        Ok(Self {
            method,
            target,
            version,
        })
    }
}

fn parse_fields<'h, 'b>(
    fields: &'b [u8],
    storage: &'h mut HeaderStorage<'b>,
) -> Result<&'h [Header<'b>], Status> {
    match httparse::parse_headers(fields, storage) {
        // It must see the same end as we do.
        Ok(httparse::Status::Complete((len, headers))) if len == fields.len() => Ok(headers),
        Ok(_) => Err(Status::BadRequest),
        Err(httparse::Error::TooManyHeaders) => Err(Status::HeaderFieldsTooLarge),
        Err(_) => Err(Status::BadRequest),
    }
}

/// What the header fields say about framing and the connection.
#[derive(Default)]
struct Fields<'b> {
    has_host: bool,
    content_length: Option<&'b [u8]>,
    transfer_encoding: Option<&'b [u8]>,
    close: bool,
    keep_alive: bool,
    awaits_continue: bool,
    expects_more: bool,
    conditional: bool,
}

/// The body that a request says follows.
#[derive(Debug, PartialEq, Eq)]
enum Announced {
    Nothing,
    Bytes(u64),
    Chunks,
}

impl<'b> Fields<'b> {
    fn read(headers: &[Header<'b>]) -> Result<Self, Status> {
        let mut fields = Self::default();
        for header in headers {
            let is = |name: &str| header.name.eq_ignore_ascii_case(name);
            // By length first: most fields are none of ours.
            match header.name.len() {
                4 if is("Host") => {
                    if fields.has_host || !is_host(header.value) {
                        return Err(Status::BadRequest);
                    }
                    fields.has_host = true;
                }
                14 if is("Content-Length") => {
                    // RFC 9112 section 6.3 lets equal values pass; what is in front of us may not.
                    set_once(&mut fields.content_length, header.value)?;
                }
                17 if is("Transfer-Encoding") => {
                    set_once(&mut fields.transfer_encoding, header.value)?;
                }
                10 if is("Connection") => {
                    for option in list(header.value) {
                        fields.close |= option.eq_ignore_ascii_case(b"close");
                        fields.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                    }
                }
                6 if is("Expect") => {
                    let is_continue = header.value.eq_ignore_ascii_case(b"100-continue");
                    fields.awaits_continue |= is_continue;
                    fields.expects_more |= !is_continue;
                }
                5 if is("Range") => fields.conditional = true,
                8 | 13 | 17 | 19 if header.name.as_bytes()[..3].eq_ignore_ascii_case(b"if-") => {
                    fields.conditional = true;
                }
                _ => {}
            }
        }
        Ok(fields)
    }

    /// RFC 9112 section 9.3.
    fn keeps_alive(&self, version: Version) -> bool {
        match version {
            Version::Http11 => !self.close,
            Version::Http10 => self.keep_alive && !self.close,
        }
    }

    /// RFC 9112 section 6.3, without its leniencies.
    fn body(&self, version: Version) -> Result<Announced, Status> {
        match (self.transfer_encoding, self.content_length) {
            (None, None) => Ok(Announced::Nothing),
            (Some(_), Some(_)) => Err(Status::BadRequest),
            // RFC 9112 section 6.1: HTTP/1.0 has no transfer codings.
            (Some(_), None) if version == Version::Http10 => Err(Status::BadRequest),
            (Some(codings), None) => check_codings(codings),
            (None, Some(length)) => {
                if length.is_empty() || !length.iter().all(u8::is_ascii_digit) {
                    return Err(Status::BadRequest);
                }
                let length = std::str::from_utf8(length)
                    .ok()
                    .and_then(|l| l.parse().ok());
                match length {
                    Some(0) => Ok(Announced::Nothing),
                    Some(length) => Ok(Announced::Bytes(length)),
                    // Beyond 64 bits parsers differ: some wrap around.
                    None => Err(Status::BadRequest),
                }
            }
        }
    }
}

fn set_once<'b>(field: &mut Option<&'b [u8]>, value: &'b [u8]) -> Result<(), Status> {
    match field.replace(value) {
        None => Ok(()),
        Some(_) => Err(Status::BadRequest),
    }
}

/// Only `chunked` is understood. Where it is not the last and only once, the end of the body cannot be
/// told (400); before it, anything else is merely unknown (501).
fn check_codings(codings: &[u8]) -> Result<Announced, Status> {
    if codings.eq_ignore_ascii_case(b"chunked") {
        return Ok(Announced::Chunks);
    }
    let is_chunked = |coding: &[u8]| coding.eq_ignore_ascii_case(b"chunked");
    let chunked = list(codings).filter(|coding| is_chunked(coding)).count();
    let well_formed = list(codings).all(|coding| coding.iter().all(|&byte| is_token(byte)));
    if well_formed && chunked == 1 && list(codings).last().is_some_and(is_chunked) {
        return Err(Status::NotImplemented);
    }
    Err(Status::BadRequest)
}

/// The elements of a comma-separated list, empty ones left out (RFC 9110 section 5.6.1.2).
pub(super) fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value
        .split(|&byte| byte == b',')
        .map(trim)
        .filter(|element| !element.is_empty())
}

/// Without the optional whitespace around it (RFC 9110 section 5.6.3).
pub(super) fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// RFC 9110 section 5.6.2: `tchar`.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// RFC 9110 section 7.2: `uri-host [ ":" port ]`, where the host may be empty.
pub(super) fn is_host(value: &[u8]) -> bool {
    let (host, port) = match value {
        [b'[', rest @ ..] => match rest.iter().position(|&byte| byte == b']') {
            Some(end) if end > 0 => {
                let is_address = |&byte: &u8| byte.is_ascii_hexdigit() || b":.".contains(&byte);
                if !rest[..end].iter().all(is_address) {
                    return false;
                }
                (&b""[..], &rest[end + 1..])
            }
            _ => return false,
        },
        _ => {
            let end = value.iter().position(|&byte| byte == b':');
            value.split_at(end.unwrap_or(value.len()))
        }
    };
    let is_name = |&byte: &u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%".contains(&byte);
    host.iter().all(is_name)
        && match port {
            [] => true,
            [b':', digits @ ..] => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
            _ => false,
        }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
