//! What is a request, what is the beginning of one, and what is neither.

use super::*;
use proptest::prelude::*;

/// The whole request, its consumed bytes, or the refusal.
fn read(bytes: &[u8]) -> Result<Option<usize>, Status> {
    let mut storage = header_storage();
    parse(bytes, &mut storage).map(|request| request.map(|request| request.consumed))
}

fn refused(bytes: &str) -> Status {
    match read(bytes.as_bytes()) {
        Err(status) => status,
        other => panic!("{bytes:?} gave {other:?}"),
    }
}

fn keep_alive(bytes: &str) -> bool {
    let mut storage = header_storage();
    let request = parse(bytes.as_bytes(), &mut storage).unwrap().unwrap();
    request.keep_alive
}

#[test]
fn a_request_and_its_fields() {
    let bytes = b"GET /a?b HTTP/1.1\r\nHost: h\r\nRange:  bytes=0-1 \r\nX: 1\r\nx: 2\r\n\r\nGET";
    let mut storage = header_storage();
    let request = parse(bytes, &mut storage).unwrap().unwrap();
    assert_eq!(
        (request.method, request.version),
        (Method::Get, Version::Http11)
    );
    assert_eq!(request.target, b"/a?b");
    assert_eq!(request.consumed, bytes.len() - 3);
    assert!(request.keep_alive && request.conditional && !request.expects);
    assert_eq!(request.single("range"), Some(&b"bytes=0-1"[..]));
    assert_eq!(request.single("X"), None);
    assert_eq!(request.values("X").collect::<Vec<_>>(), [b"1", b"2"]);
}

#[test]
fn smuggling_shapes_are_refused() {
    let h = "Host: h\r\n";
    for (fields, status) in [
        // Two lengths, even equal ones, and lengths that are none.
        (
            "Content-Length: 1\r\nContent-Length: 2\r\n",
            Status::BadRequest,
        ),
        (
            "Content-Length: 1\r\nContent-Length: 1\r\n",
            Status::BadRequest,
        ),
        ("Content-Length: 1, 1\r\n", Status::BadRequest),
        ("Content-Length: +1\r\n", Status::BadRequest),
        ("Content-Length: -1\r\n", Status::BadRequest),
        ("Content-Length: 0x1\r\n", Status::BadRequest),
        ("Content-Length: 1 1\r\n", Status::BadRequest),
        ("Content-Length: \r\n", Status::BadRequest),
        (
            "Content-Length: 99999999999999999999999\r\n",
            Status::BadRequest,
        ),
        ("Content-Length: 9000\r\n", Status::ContentTooLarge),
        // A length and a coding.
        (
            "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            Status::BadRequest,
        ),
        (
            "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n",
            Status::BadRequest,
        ),
        // Codings.
        ("Transfer-Encoding: chunked\r\n", Status::ContentTooLarge),
        ("Transfer-Encoding: Chunked\r\n", Status::ContentTooLarge),
        (
            "Transfer-Encoding: gzip, chunked\r\n",
            Status::NotImplemented,
        ),
        ("Transfer-Encoding: xchunked\r\n", Status::BadRequest),
        ("Transfer-Encoding: gzip\r\n", Status::BadRequest),
        ("Transfer-Encoding: identity\r\n", Status::BadRequest),
        (
            "Transfer-Encoding: chunked, identity\r\n",
            Status::BadRequest,
        ),
        (
            "Transfer-Encoding: chunked, chunked\r\n",
            Status::BadRequest,
        ),
        ("Transfer-Encoding: chunked;q=1\r\n", Status::BadRequest),
        ("Transfer-Encoding: \"chunked\"\r\n", Status::BadRequest),
        ("Transfer-Encoding: \x0bchunked\r\n", Status::BadRequest),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            Status::BadRequest,
        ),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
            Status::BadRequest,
        ),
        ("Transfer-Encoding:\r\n", Status::BadRequest),
        ("Transfer-Encoding : chunked\r\n", Status::BadRequest),
        (" Transfer-Encoding: chunked\r\n", Status::BadRequest),
        // Lines.
        ("A: b\n", Status::BadRequest),
        ("A: b\nTransfer-Encoding: chunked\r\n", Status::BadRequest),
        ("A: b\rTransfer-Encoding: chunked\r\n", Status::BadRequest),
        ("A: b\r\n continued\r\n", Status::BadRequest),
        ("A: b\r\n\tcontinued\r\n", Status::BadRequest),
        ("A: b\r\r\n", Status::BadRequest),
        ("A\r\n", Status::BadRequest),
        (": b\r\n", Status::BadRequest),
        ("A : b\r\n", Status::BadRequest),
        ("A\t: b\r\n", Status::BadRequest),
        ("A: \0b\r\n", Status::BadRequest),
        ("A\0: b\r\n", Status::BadRequest),
        ("A: b\x07\r\n", Status::BadRequest),
        ("A: b\x7f\r\n", Status::BadRequest),
        ("A(b): c\r\n", Status::BadRequest),
        ("\u{e4}: c\r\n", Status::BadRequest),
    ] {
        assert_eq!(
            refused(&format!("GET / HTTP/1.1\r\n{h}{fields}\r\n")),
            status,
            "{fields:?}"
        );
        assert_eq!(
            refused(&format!("GET / HTTP/1.1\r\n{fields}{h}\r\n")),
            status,
            "{fields:?}"
        );
    }
}

#[test]
fn hosts() {
    for (fields, valid) in [
        ("", false),
        ("Host: a\r\nHost: a\r\n", false),
        ("Host: a\r\nhost: b\r\n", false),
        ("Host: a b\r\n", false),
        ("Host: a/b\r\n", false),
        ("Host: u@a\r\n", false),
        ("Host: a:b\r\n", false),
        ("Host: [::1\r\n", false),
        ("Host: []\r\n", false),
        ("Host: [::1]x\r\n", false),
        ("Host:\r\n", true),
        ("Host: a.example:80\r\n", true),
        ("Host: [::1]:80\r\n", true),
        ("Host: 192.0.2.1\r\n", true),
    ] {
        let bytes = format!("GET / HTTP/1.1\r\n{fields}\r\n");
        assert_eq!(read(bytes.as_bytes()).is_ok(), valid, "{fields:?}");
    }
    assert!(read(b"GET / HTTP/1.0\r\n\r\n").is_ok());
    assert!(read(b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n").is_err());
}

#[test]
fn request_lines() {
    for (line, status) in [
        ("GET / HTTP/2.0", Status::VersionNotSupported),
        ("GET / HTTP/0.9", Status::VersionNotSupported),
        ("GET / HTTP/1", Status::BadRequest),
        ("GET / HTTP/1.10", Status::BadRequest),
        ("GET / http/1.1", Status::BadRequest),
        ("GET / HTTX/1.1", Status::BadRequest),
        ("GET /", Status::BadRequest),
        ("GET", Status::BadRequest),
        ("GET  / HTTP/1.1", Status::BadRequest),
        ("GET / HTTP/1.1 ", Status::BadRequest),
        ("GET /a b HTTP/1.1", Status::BadRequest),
        ("GET\t/\tHTTP/1.1", Status::BadRequest),
        ("GET /\0 HTTP/1.1", Status::BadRequest),
        ("GET /\u{e4} HTTP/1.1", Status::BadRequest),
        ("G(T / HTTP/1.1", Status::BadRequest),
        (" GET / HTTP/1.1", Status::BadRequest),
        ("\x16\x03\x01", Status::BadRequest),
    ] {
        assert_eq!(
            refused(&format!("{line}\r\nHost: h\r\n\r\n")),
            status,
            "{line:?}"
        );
    }
    assert_eq!(read(b"GET / HTTP/1.7\r\nHost: h\r\n\r\n"), Ok(Some(27)));
    assert_eq!(refused("\x16"), Status::BadRequest);
}

#[test]
fn empty_lines_before_a_request() {
    assert_eq!(read(b"\r\n"), Ok(None));
    assert_eq!(read(b"\r\n\r\nGET / HTTP/1.0\r\n\r\n"), Ok(Some(22)));
    assert_eq!(
        refused("\r\n\r\n\r\nGET / HTTP/1.0\r\n\r\n"),
        Status::BadRequest
    );
    assert_eq!(refused("\nGET / HTTP/1.0\r\n\r\n"), Status::BadRequest);
    assert_eq!(refused("\rGET / HTTP/1.0\r\n\r\n"), Status::BadRequest);
}

#[test]
fn limits() {
    let target = |len: usize| format!("GET /{} HTTP/1.0\r\n\r\n", "a".repeat(len - 1));
    assert!(read(target(MAX_TARGET_BYTES).as_bytes()).is_ok());
    assert_eq!(refused(&target(MAX_TARGET_BYTES + 1)), Status::UriTooLong);
    assert_eq!(
        refused(&format!("GET /{}", "a".repeat(5000))),
        Status::UriTooLong
    );
    assert_eq!(refused(&"A".repeat(10_000)), Status::UriTooLong);
    assert_eq!(
        refused(&format!("{} / HTTP/1.0\r\n\r\n", "A".repeat(33))),
        Status::NotImplemented
    );

    let start = "GET / HTTP/1.0\r\nA: ";
    let head = |len: usize| format!("{start}{}\r\n\r\n", "a".repeat(len - start.len() - 4));
    assert_eq!(
        read(head(MAX_HEAD_BYTES).as_bytes()),
        Ok(Some(MAX_HEAD_BYTES))
    );
    assert_eq!(
        refused(&head(MAX_HEAD_BYTES + 1)),
        Status::HeaderFieldsTooLarge
    );
    assert_eq!(
        refused(&head(MAX_HEAD_BYTES + 9)[..MAX_HEAD_BYTES + 1]),
        Status::HeaderFieldsTooLarge
    );

    let fields = |count| format!("GET / HTTP/1.0\r\n{}\r\n", "A: b\r\n".repeat(count));
    assert!(read(fields(MAX_HEADERS).as_bytes()).is_ok());
    assert_eq!(
        refused(&fields(MAX_HEADERS + 1)),
        Status::HeaderFieldsTooLarge
    );
}

#[test]
fn bodies_that_mean_nothing() {
    let get = |body: &str| format!("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n{body}");
    assert_eq!(read(get("1234").as_bytes()), Ok(None));
    let whole = get("12345");
    assert_eq!(read(get("12345GET").as_bytes()), Ok(Some(whole.len())));
    assert!(keep_alive(&whole));

    let waiting = "GET / HTTP/1.1\r\nHost: h\r\nExpect: 100-Continue\r\nContent-Length: 5\r\n\r\n";
    assert_eq!(refused(waiting), Status::ExpectationFailed);
    assert!(keep_alive(&format!("{waiting}12345")));
}

#[test]
fn methods_with_bodies_end_the_connection() {
    for fields in ["Content-Length: 100\r\n", "Transfer-Encoding: chunked\r\n"] {
        for method in ["POST", "PUT", "OPTIONS", "BREW"] {
            let bytes = format!("{method} / HTTP/1.1\r\nHost: h\r\n{fields}\r\nbody");
            assert!(!keep_alive(&bytes));
            assert_eq!(read(bytes.as_bytes()), Ok(Some(bytes.len())));
        }
    }
    assert!(keep_alive(
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n"
    ));
}

#[test]
fn persistence() {
    for (version, fields, keeps) in [
        ("1.1", "", true),
        ("1.1", "Connection: close\r\n", false),
        ("1.1", "Connection: Upgrade, CLOSE\r\n", false),
        (
            "1.1",
            "Connection: keep-alive\r\nConnection: close\r\n",
            false,
        ),
        ("1.1", "Connection: closed\r\n", true),
        ("1.0", "", false),
        ("1.0", "Connection: Keep-Alive\r\n", true),
        ("1.0", "Connection: keep-alive, close\r\n", false),
    ] {
        let bytes = format!("GET / HTTP/{version}\r\nHost: h\r\n{fields}\r\n");
        assert_eq!(keep_alive(&bytes), keeps, "{bytes:?}");
    }
}

#[test]
fn heads_are_told_from_afar() {
    assert!(looks_like_head(b"HEAD /"));
    assert!(looks_like_head(b"\r\nHEAD / HTTP"));
    assert!(!looks_like_head(b"HEADER"));
    assert!(!looks_like_head(b"GET /"));
    assert!(is_blank(b"\r\n\r") && is_blank(b"") && !is_blank(b"\r\nG"));
}

fn any_valid_request() -> impl Strategy<Value = String> {
    let field = "[A-Za-z-]{1,12}X: [ -~]{0,20}\r\n";
    (
        "(\r\n){0,2}(GET|HEAD|POST|BREW) /[a-z%/?]{0,20} HTTP/1\\.[01]\r\nHost: [a-z]{0,5}\r\n",
        proptest::collection::vec(field, 0..8),
        proptest::option::of(0_usize..50),
    )
        .prop_map(|(start, fields, body)| {
            let fields = fields.concat();
            match body {
                Some(len) if !start.contains("POST") && !start.contains("BREW") => {
                    format!(
                        "{start}{fields}Content-Length: {len}\r\n\r\n{}",
                        "b".repeat(len)
                    )
                }
                _ => format!("{start}{fields}\r\n"),
            }
        })
}

proptest! {
    #[test]
    fn a_request_is_whole_at_its_last_byte(request in any_valid_request()) {
        let bytes = request.as_bytes();
        for len in 0..bytes.len() {
            prop_assert_eq!(read(&bytes[..len]), Ok(None), "{} bytes of {:?}", len, request);
        }
        prop_assert_eq!(read(bytes), Ok(Some(bytes.len())));
        // What follows changes nothing.
        let pipelined = format!("{request}GET / HT");
        prop_assert_eq!(read(pipelined.as_bytes()), Ok(Some(bytes.len())));
    }

    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(Some(consumed)) = read(&bytes) {
            prop_assert!(consumed <= bytes.len());
        }
    }

    #[test]
    fn nearly_valid_bytes_are_survived(request in any_valid_request(), at: usize, byte: u8) {
        let mut bytes = request.into_bytes();
        let at = at % bytes.len();
        bytes[at] = byte;
        if let Ok(Some(consumed)) = read(&bytes) {
            prop_assert!(consumed > 0 && consumed <= bytes.len());
        }
    }

    /// What our strictness lets through, the whole head is free of what other parsers may differ in.
    #[test]
    fn accepted_heads_are_clean(request in any_valid_request(), at: usize, byte: u8) {
        let mut bytes = request.into_bytes();
        let at = at % bytes.len();
        bytes[at] = byte;
        if let Ok(Some(_)) = read(&bytes) {
            let start = skip_empty_lines(&bytes).unwrap();
            let head = find_head(&bytes[start..]).unwrap().unwrap().head;
            let head = &bytes[start..start + head];
            for (i, &byte) in head.iter().enumerate() {
                match byte {
                    b'\n' => prop_assert_eq!(head[i - 1], b'\r'),
                    b'\r' => prop_assert_eq!(head[i + 1], b'\n'),
                    _ => prop_assert!(byte == b'\t' || (byte >= b' ' && byte != 0x7f)),
                }
            }
        }
    }
}
