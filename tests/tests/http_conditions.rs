//! `ilet-httpd`: ranges and conditional requests.

// Clippy knows test functions, but not their helpers.
#![allow(clippy::expect_used)]

use interruptlet_tests::echo::pattern;
use interruptlet_tests::http::Response;
use interruptlet_tests::site::{Site, get};

/// A date that is after any file's.
const FUTURE: &str = "Fri, 31 Dec 2100 23:59:59 GMT";
/// A date that is before any file's.
const PAST: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

/// Splits a multipart/byteranges body into (Content-Range, bytes).
fn parts(response: &Response) -> Vec<(String, Vec<u8>)> {
    let content_type = response.expect_header("content-type");
    let boundary = content_type
        .strip_prefix("multipart/byteranges; boundary=")
        .expect("a boundary");
    let delimiter = format!("--{}", boundary.trim_matches('"'));
    let body = String::from_utf8(response.body.clone()).expect("text");
    let mut pieces: Vec<&str> = body.split(&delimiter).collect();
    assert_eq!(
        pieces.pop().map(str::trim_end),
        Some("--"),
        "the closing delimiter"
    );
    pieces.remove(0);
    let part = |piece: &str| {
        let (head, content) = piece.split_once("\r\n\r\n").expect("a head in each part");
        let lines = head
            .lines()
            .map(|line| line.split_once(": ").unwrap_or((line, "")));
        let range = lines.filter(|(name, _)| name.eq_ignore_ascii_case("content-range"));
        let range = range
            .map(|(_, value)| value.to_owned())
            .next_back()
            .expect("a Content-Range");
        (
            range,
            content
                .strip_suffix("\r\n")
                .expect("a line end after each part")
                .as_bytes()
                .to_vec(),
        )
    };
    pieces.into_iter().map(part).collect()
}

#[test]
fn single_ranges() {
    let Some(site) = Site::new() else { return };
    let server = site.serve();
    let small = Site::SMALL.as_bytes();
    for (range, expected, first, last) in [
        ("bytes=0-9", &small[..10], 0, 9),
        ("bytes=0-0", &small[..1], 0, 0),
        ("bytes=100-", &small[100..], 100, 127),
        ("bytes=-5", &small[123..], 123, 127),
        ("bytes=-1000", small, 0, 127),
        ("bytes=120-1000", &small[120..], 120, 127),
    ] {
        let response = site.get("/small.txt", &format!("Range: {range}\r\n"));
        assert_eq!(response.status, 206, "{range}");
        assert_eq!(
            response.expect_header("content-range"),
            format!("bytes {first}-{last}/128")
        );
        assert_eq!(response.body, expected, "{range}");
    }
    let medium = site.get("/medium.bin", "Range: bytes=100000-299999\r\n");
    assert!(medium.status == 206 && medium.body == pattern(1, 300_000)[100_000..]);
    server.stop();
}

#[test]
fn several_ranges_make_a_multipart() {
    let Some(site) = Site::new() else { return };
    let server = site.serve();
    let response = site.get("/small.txt", "Range: bytes=0-3, 10-12,-2\r\n");
    assert_eq!(response.status, 206);
    assert!(response.header("content-range").is_none());
    let expected = [
        ("bytes 0-3/128", "0123"),
        ("bytes 10-12/128", "abc"),
        ("bytes 126-127/128", "-_"),
    ];
    let expected = expected.map(|(range, bytes)| (range.to_owned(), bytes.as_bytes().to_vec()));
    assert_eq!(parts(&response), expected);

    // Ranges that cannot be had are left out of those that can. What remains is one range, which may
    // be sent either way.
    let response = site.get("/small.txt", "Range: bytes=0-3,500-600\r\n");
    assert_eq!(response.status, 206);
    match response.header("content-range") {
        Some(range) => assert_eq!(
            (range, response.body.as_slice()),
            ("bytes 0-3/128", &b"0123"[..])
        ),
        None => assert_eq!(parts(&response), expected[..1]),
    }
    server.stop();
}

#[test]
fn a_hostile_number_of_ranges_does_not_multiply_the_file() {
    let Some(site) = Site::new() else { return };
    let server = site.serve();
    let ranges = vec!["0-"; 500].join(",");
    let response = site.get("/medium.bin", &format!("Range: bytes={ranges}\r\n"));
    assert!(
        [200, 206, 400, 416, 431].contains(&response.status),
        "{}",
        response.status
    );
    assert!(
        response.body.len() <= 600_000,
        "{} bytes",
        response.body.len()
    );
    site.assert_serves();
    server.stop();
}

#[test]
fn ranges_that_cannot_be_satisfied_or_understood() {
    let Some(site) = Site::new() else { return };
    let server = site.serve();
    for range in ["bytes=128-", "bytes=500-600", "bytes=-0"] {
        let response = site.get("/small.txt", &format!("Range: {range}\r\n"));
        assert_eq!(response.status, 416, "{range}");
        assert_eq!(response.expect_header("content-range"), "bytes */128");
    }
    // An unknown unit must be ignored, an invalid set may be (RFC 9110, 14.2).
    let lines = site.get("/small.txt", "Range: lines=1-2\r\n");
    assert_eq!(lines.status, 200);
    for range in [
        "bytes=9-3",
        "bytes=a-b",
        "bytes",
        "bytes=99999999999999999999999-",
    ] {
        let response = site.get("/small.txt", &format!("Range: {range}\r\n"));
        assert!(
            [200, 400, 416].contains(&response.status),
            "{range}: {}",
            response.status
        );
    }
    server.stop();
}

#[test]
fn validators_save_the_transfer() {
    let Some(site) = Site::new() else { return };
    let server = site.serve();
    let first = site.get("/small.txt", "");
    let etag = first.expect_header("etag").to_owned();
    let modified = first.expect_header("last-modified").to_owned();
    let weak = format!("W/{}", etag.trim_start_matches("W/"));

    let mut connection = site.connect();
    for headers in [
        format!("If-None-Match: {etag}\r\n"),
        format!("If-None-Match: \"other\", {etag}\r\n"),
        format!("If-None-Match: {weak}\r\n"),
        "If-None-Match: *\r\n".to_owned(),
        format!("If-Modified-Since: {modified}\r\n"),
        format!("If-Modified-Since: {FUTURE}\r\n"),
        // The stronger validator decides.
        format!("If-None-Match: {etag}\r\nIf-Modified-Since: {PAST}\r\n"),
    ] {
        connection.send(get("/small.txt", &headers));
        let response = connection.response();
        assert_eq!(response.status, 304, "{headers}");
        assert_eq!(response.expect_header("etag"), etag);
        // No body came: the next response starts where it should.
        connection.send(get("/small.txt", ""));
        assert_eq!(connection.response().body, Site::SMALL.as_bytes());
    }
    for headers in [
        "If-None-Match: \"other\"\r\n".to_owned(),
        format!("If-Modified-Since: {PAST}\r\n"),
        "If-Modified-Since: yesterday\r\n".to_owned(),
        format!("If-None-Match: \"other\"\r\nIf-Modified-Since: {FUTURE}\r\n"),
    ] {
        connection.send(get("/small.txt", &headers));
        assert_eq!(connection.response().status, 200, "{headers}");
    }
    server.stop();
}

#[test]
fn preconditions_are_refused_with_412() {
    let Some(site) = Site::new() else { return };
    let server = site.serve();
    let etag = site.get("/small.txt", "").expect_header("etag").to_owned();
    for (headers, status) in [
        (format!("If-Match: {etag}\r\n"), 200),
        ("If-Match: *\r\n".to_owned(), 200),
        (format!("If-Match: \"other\", {etag}\r\n"), 200),
        ("If-Match: \"other\"\r\n".to_owned(), 412),
        (format!("If-Unmodified-Since: {FUTURE}\r\n"), 200),
        (format!("If-Unmodified-Since: {PAST}\r\n"), 412),
    ] {
        assert_eq!(site.get("/small.txt", &headers).status, status, "{headers}");
    }
    server.stop();
}

#[test]
fn if_range_falls_back_to_the_whole_file() {
    let Some(site) = Site::new() else { return };
    let server = site.serve();
    let first = site.get("/small.txt", "");
    let etag = first.expect_header("etag");
    for (validator, status) in [(etag, 206), ("\"other\"", 200), (PAST, 200)] {
        let headers = format!("Range: bytes=0-3\r\nIf-Range: {validator}\r\n");
        let response = site.get("/small.txt", &headers);
        assert_eq!(response.status, status, "{validator}");
        assert_eq!(response.body.len(), if status == 206 { 4 } else { 128 });
    }
    server.stop();
}
