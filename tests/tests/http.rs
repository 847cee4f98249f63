//! `ilet-httpd` as a well-behaved client meets it: methods, persistence, pipelining, targets and the
//! headers that every response has.

use std::time::Duration;

use interruptlet_tests::echo::pattern;
use interruptlet_tests::lab::VERSIONS;
use interruptlet_tests::site::{CONTENT_TYPES, Site, get, request};

#[test]
fn curl_loads_pages_over_both_versions() {
    let Some(site) = Site::new() else { return };
    let server = site.serve();
    for version in VERSIONS {
        assert_eq!(
            site.curl(&[&site.url(version, "/small.txt")]),
            Site::SMALL.as_bytes()
        );
        assert!(site.curl(&[&site.url(version, "/medium.bin")]) == pattern(1, 300_000));
        // Two files over one connection: the second transfer opens none.
        let url = site.url(version, "/");
        let connects = site.curl(&[
            "--output",
            "/dev/null",
            "--output",
            "/dev/null",
            "--write-out",
            "%{num_connects} ",
            &url,
            &url,
        ]);
        assert_eq!(String::from_utf8_lossy(&connects), "1 0 ");
        let head = site.curl(&["--head", &site.url(version, "/small.txt")]);
        let head = String::from_utf8_lossy(&head).to_lowercase();
        assert!(
            head.starts_with("http/1.1 200") && head.contains("content-length: 128"),
            "{head}"
        );
        let part = site.curl(&["--range", "10-19", &site.url(version, "/small.txt")]);
        assert_eq!(part, &Site::SMALL.as_bytes()[10..20]);
    }
    let report = server.stop();
    // On the core, or by the slow path.
    let requests = report.counter("tcp_requests") + report.counter("deferred");
    assert!(requests >= 12, "{report:?}");
    assert!(
        report.counter("deferred") >= 2,
        "the first read of a file is the slow path's: {report:?}"
    );
}

#[test]
fn get_and_head_agree_on_every_header() {
    let Some(site) = Site::new() else { return };
    let server = site.serve();
    // Twice: from the disk, then from the cache.
    for _ in 0..2 {
        let mut connection = site.connect();
        for target in ["/small.txt", "/empty.txt", "/medium.bin", "/"] {
            connection.send(request("HEAD", target, ""));
            let head = connection.head_response();
            connection.send(get(target, ""));
            let body = connection.response();
            assert_eq!((head.status, body.status), (200, 200), "{target}");
            for name in ["content-length", "content-type", "etag", "last-modified"] {
                assert_eq!(
                    head.expect_header(name),
                    body.expect_header(name),
                    "{name} of {target}"
                );
            }
        }
    }
    server.stop();
}

#[test]
fn every_response_has_its_date_and_length() {
    let Some(site) = Site::new() else { return };
    let server = site.serve();
    for target in ["/small.txt", "/nowhere"] {
        for _ in 0..2 {
            let response = site.get(target, "");
            // As in "Sun, 06 Nov 1994 08:49:37 GMT".
            let date = response.expect_header("date");
            assert!(
                date.len() == 29 && date.ends_with(" GMT") && date.as_bytes()[3] == b',',
                "{date}"
            );
            assert_eq!(response.version, "HTTP/1.1");
        }
    }
    // The date moves on also for what comes from the cache.
    let first = site.get("/small.txt", "").expect_header("date").to_owned();
    std::thread::sleep(Duration::from_millis(2100));
    assert_ne!(site.get("/small.txt", "").expect_header("date"), first);
    server.stop();
}

#[test]
fn content_types_follow_the_extension() {
    let Some(site) = Site::new() else { return };
    let server = site.serve();
    for (name, media_type) in CONTENT_TYPES {
        let response = site.get(&format!("/{name}"), "");
        let found = response
            .expect_header("content-type")
            .split(';')
            .next()
            .map(str::trim);
        assert_eq!(found, Some(media_type), "{name}");
    }
    assert!(
        site.get("/", "")
            .expect_header("content-type")
            .starts_with("text/html")
    );
    server.stop();
}

#[test]
fn a_connection_persists_unless_either_side_says_otherwise() {
    let Some(site) = Site::new() else { return };
    let server = site.serve();

    let mut connection = site.connect();
    for _ in 0..3 {
        connection.send(get("/small.txt", ""));
        assert_eq!(connection.response().body, Site::SMALL.as_bytes());
        // Also after an answer that is no file.
        connection.send(get("/nowhere", ""));
        assert_eq!(connection.response().status, 404);
    }
    connection.send(get("/small.txt", "Connection: close\r\n"));
    let last = connection.response();
    assert!(
        last.expect_header("connection")
            .eq_ignore_ascii_case("close")
    );
    connection.expect_end();

    // HTTP/1.0 closes by default, with or without Host.
    for headers in ["", "Host: test\r\n"] {
        let mut connection = site.connect();
        connection.send(format!("GET /small.txt HTTP/1.0\r\n{headers}\r\n"));
        assert_eq!(connection.response().body, Site::SMALL.as_bytes());
        connection.expect_end();
    }

    let mut connection = site.connect();
    for _ in 0..2 {
        connection.send("GET /small.txt HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        let response = connection.response();
        assert!(
            response
                .expect_header("connection")
                .eq_ignore_ascii_case("keep-alive")
        );
    }

    // A client that half-closes after its request still gets the answer.
    let mut connection = site.connect();
    connection.send(get("/medium.bin", ""));
    connection.finish_sending();
    assert!(connection.response().body == pattern(1, 300_000));
    connection.expect_end();
    server.stop();
}

#[test]
fn a_request_may_arrive_in_any_pieces() {
    let Some(site) = Site::new() else { return };
    let server = site.serve();
    let mut connection = site.connect();
    // Warm, so that the fast path meets the pieces too.
    connection.send(get("/small.txt", ""));
    connection.response();
    let whole = get("/small.txt", "X-Filler: abc\r\n");
    for cut in [
        1,
        3,
        4,
        14,
        20,
        whole.len() - 3,
        whole.len() - 2,
        whole.len() - 1,
    ] {
        connection.send(&whole[..cut]);
        // Let the first piece arrive as a segment of its own.
        std::thread::sleep(Duration::from_millis(20));
        connection.send(&whole[cut..]);
        assert_eq!(
            connection.response().body,
            Site::SMALL.as_bytes(),
            "cut at {cut}"
        );
    }
    // Empty lines before a request are to be skipped (RFC 9112, 2.2).
    connection.send(format!("\r\n{whole}"));
    assert_eq!(connection.response().status, 200);
    server.stop();
}

#[test]
fn pipelined_responses_come_in_order_whoever_makes_them() {
    let Some(site) = Site::new() else { return };
    for n in 0..30 {
        site.put(&format!("cold{n}.txt"), format!("cold {n}"));
    }
    let server = site.serve();
    let mut connection = site.connect();
    connection.send(get("/small.txt", ""));
    connection.response();
    // Warm and cold files by turns: the fast path's answers must wait for the slow path's.
    let mut requests = String::new();
    for n in 0..30 {
        requests += &get("/small.txt", "");
        requests += &get(&format!("/cold{n}.txt"), "");
        requests += &request("HEAD", "/small.txt", "");
    }
    connection.send(&requests);
    for n in 0..30 {
        assert_eq!(
            connection.response().body,
            Site::SMALL.as_bytes(),
            "before {n}"
        );
        assert_eq!(connection.response().body, format!("cold {n}").as_bytes());
        assert_eq!(
            connection.head_response().expect_header("content-length"),
            "128"
        );
    }
    // Large answers one behind another, more than any window.
    connection.send(get("/medium.bin", "").repeat(5) + &get("/small.txt", "Connection: close\r\n"));
    for _ in 0..5 {
        assert!(connection.response().body == pattern(1, 300_000));
    }
    assert_eq!(connection.response().body, Site::SMALL.as_bytes());
    connection.expect_end();
    server.stop();
}

#[test]
fn what_follows_connection_close_is_not_served() {
    let Some(site) = Site::new() else { return };
    let server = site.serve();
    let mut connection = site.connect();
    connection.send(get("/small.txt", "Connection: close\r\n") + &get("/small.txt", ""));
    assert_eq!(connection.response().status, 200);
    connection.expect_end();
    server.stop();
}

#[test]
fn targets_are_decoded_and_directories_have_an_index() {
    let Some(site) = Site::new() else { return };
    let server = site.serve();
    for (target, body) in [
        ("/", "<!doctype html><title>top</title>"),
        ("/index.html", "<!doctype html><title>top</title>"),
        ("/sub/", "<!doctype html><title>sub</title>"),
        ("/with%20space.txt", "space"),
        ("/%C3%BCmlaut.txt", "umlaut"),
        ("/%73mall.txt", Site::SMALL),
        ("/small.txt?query=1&more", Site::SMALL),
        ("/small.txt?", Site::SMALL),
        ("http://test/small.txt", Site::SMALL),
        ("http://test:80/small.txt?query", Site::SMALL),
        ("HTTP://other.example/small.txt", Site::SMALL),
        ("http://test", "<!doctype html><title>top</title>"),
        ("/empty.txt", ""),
    ] {
        for _ in 0..2 {
            let response = site.get(target, "");
            assert_eq!(response.status, 200, "{target}");
            assert_eq!(String::from_utf8_lossy(&response.body), body, "{target}");
        }
    }
    server.stop();
}

#[test]
fn a_body_nobody_wants_does_not_become_a_request() {
    let Some(site) = Site::new() else { return };
    let server = site.serve();
    let mut connection = site.connect();
    let body = get("/nowhere", "");
    let length = format!("Content-Length: {}\r\n", body.len());
    connection.send(get("/small.txt", &length) + &body + &get("/with%20space.txt", ""));
    assert_eq!(connection.response().body, Site::SMALL.as_bytes());
    // Either the body was skipped, or the connection closed: its bytes are never taken for a request.
    if let Some(next) = connection.response_or_end() {
        assert_eq!(next.body, b"space");
    }
    server.stop();
}
