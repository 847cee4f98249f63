//! `ilet-httpd`: what it must refuse, and with which words: bad requests, smuggling shapes, ways out
//! of the root, and clients that send too much or too slowly.

use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::{Duration, Instant};

use interruptlet_tests::site::{Site, get, request};

/// Longer than any sensible limit for sending a request's headers.
const PATIENCE: Duration = Duration::from_secs(90);

#[test]
fn each_fault_has_its_status() {
    let Some(site) = Site::new() else { return };
    let server = site.serve();
    let long_target = format!("/{}", "a".repeat(20_000));
    for (request, statuses) in [
        (get("/nowhere", ""), &[404][..]),
        (get("/sub/nowhere", ""), &[404]),
        (get("/small.txt/", ""), &[404]),
        (get("/empty/", ""), &[403, 404]),
        (
            request("POST", "/small.txt", "Content-Length: 0\r\n"),
            &[405],
        ),
        (request("DELETE", "/small.txt", ""), &[405]),
        (request("FROBNICATE", "/small.txt", ""), &[501]),
        (
            request("POST", "/small.txt", "Content-Length: 99999999999\r\n"),
            &[413, 405],
        ),
        (get("/small.txt", "Content-Length: 99999999999\r\n"), &[413]),
        (get(&long_target, ""), &[414]),
        (
            get("/small.txt", "Transfer-Encoding: gzip, chunked\r\n"),
            &[501, 400],
        ),
        (
            "GET /small.txt HTTP/2.0\r\nHost: test\r\n\r\n".to_owned(),
            &[505],
        ),
        (
            "GET /small.txt HTTP/0.9\r\nHost: test\r\n\r\n".to_owned(),
            &[505, 400],
        ),
        ("GET /small.txt HTTP/1.1\r\n\r\n".to_owned(), &[400]),
        (get("/small.txt", "Host: twice\r\n"), &[400]),
        (get("/%zz", ""), &[400]),
        (get("/%", ""), &[400]),
        (get("/small.txt%00.html", ""), &[400, 404]),
        (get("small.txt", ""), &[400]),
    ] {
        let response = site.exchange(&request);
        let shown: String = request.chars().take(60).collect();
        assert!(
            statuses.contains(&response.status),
            "{}: {shown:?}",
            response.status
        );
        if response.status == 405 {
            let allow = response.expect_header("allow");
            assert!(allow.contains("GET") && allow.contains("HEAD"), "{allow}");
        }
    }
    site.assert_serves();
    server.stop();
}

#[test]
fn shapes_that_smuggle_are_refused_and_closed() {
    let Some(site) = Site::new() else { return };
    let server = site.serve();
    let with_headers = |headers: &str| get("/small.txt", headers).into_bytes();
    let shapes: Vec<(&str, Vec<u8>)> = vec![
        (
            "two lengths",
            with_headers("Content-Length: 0\r\nContent-Length: 5\r\n"),
        ),
        (
            "one length twice",
            with_headers("Content-Length: 0\r\nContent-Length: 0\r\n"),
        ),
        (
            "a list of lengths",
            with_headers("Content-Length: 0, 0\r\n"),
        ),
        ("a signed length", with_headers("Content-Length: +0\r\n")),
        ("a negative length", with_headers("Content-Length: -1\r\n")),
        (
            "a hexadecimal length",
            with_headers("Content-Length: 0x5\r\n"),
        ),
        (
            "a length with a gap",
            with_headers("Content-Length: 1 0\r\n"),
        ),
        ("an empty length", with_headers("Content-Length: \r\n")),
        (
            "a length beyond 64 bits",
            with_headers("Content-Length: 18446744073709551616\r\n"),
        ),
        (
            "length and encoding",
            with_headers("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
        ),
        (
            "encoding before length",
            with_headers("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"),
        ),
        (
            "chunked not last",
            with_headers("Transfer-Encoding: chunked, identity\r\n"),
        ),
        (
            "chunked twice",
            with_headers("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
        ),
        (
            "almost chunked",
            with_headers("Transfer-Encoding: xchunked\r\n"),
        ),
        (
            "vertical tab before chunked",
            with_headers("Transfer-Encoding: \x0bchunked\r\n"),
        ),
        (
            "space before the colon",
            with_headers("Transfer-Encoding : chunked\r\n"),
        ),
        (
            "space before the length's colon",
            with_headers("Content-Length : 0\r\n"),
        ),
        (
            "chunked in HTTP/1.0",
            b"GET /small.txt HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec(),
        ),
        (
            "bare LF everywhere",
            b"GET /small.txt HTTP/1.1\nHost: test\n\n".to_vec(),
        ),
        (
            "bare LF after a header",
            b"GET /small.txt HTTP/1.1\r\nHost: test\nX: y\r\n\r\n".to_vec(),
        ),
        ("bare CR in a value", with_headers("X: a\rb\r\n")),
        ("folded header", with_headers("X: a\r\n b\r\n")),
        (
            "folded with a tab",
            with_headers("X: a\r\n\tContent-Length: 5\r\n"),
        ),
        (
            "space before the first header",
            b"GET /small.txt HTTP/1.1\r\n Host: test\r\n\r\n".to_vec(),
        ),
        ("NUL in a value", with_headers("X: a\0b\r\n")),
        ("NUL in a name", with_headers("X\0Y: a\r\n")),
        ("NUL in the target", get("/small\0.txt", "").into_bytes()),
        ("space in a name", with_headers("Bad Name: a\r\n")),
        ("no colon", with_headers("NoColon\r\n")),
        ("empty name", with_headers(": a\r\n")),
        (
            "two spaces in the request line",
            b"GET  /small.txt HTTP/1.1\r\nHost: test\r\n\r\n".to_vec(),
        ),
        (
            "a space in the target",
            get("/small.txt and more", "").into_bytes(),
        ),
        (
            "a TLS hello",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec(),
        ),
    ];
    for (name, bytes) in shapes {
        let mut connection = site.connect();
        connection.send(&bytes);
        // What a confused server would take for a request of its own.
        connection.send(get("/with%20space.txt", ""));
        let response = connection
            .response_or_end()
            .unwrap_or_else(|| panic!("{name}: closed without a word"));
        // 501 is right for transfer codings that are not known.
        let coding = bytes
            .windows(17)
            .any(|window| window == b"Transfer-Encoding");
        assert!(
            response.status == 400 || (coding && response.status == 501),
            "{name}: {}",
            response.status
        );
        connection.expect_end();
    }
    site.assert_serves();
    server.stop();
}

#[test]
fn no_way_leads_out_of_the_root() {
    let Some(site) = Site::new() else { return };
    let secret = site.lab().directory().join("secret.txt");
    std::fs::write(&secret, "secret").expect("write the secret");
    symlink(&secret, site.root().join("link.txt")).expect("make a link to the file");
    symlink("../secret.txt", site.root().join("relative.txt")).expect("make a relative link");
    symlink(site.lab().directory(), site.root().join("out")).expect("make a link to the directory");
    symlink("/", site.root().join("everything")).expect("make a link to /");
    symlink("small.txt", site.root().join("inside.txt")).expect("make a link that stays inside");
    let server = site.serve();
    for target in [
        "/../secret.txt",
        "/sub/../../secret.txt",
        "/%2e%2e/secret.txt",
        "/%2E./secret.txt",
        "/..%2fsecret.txt",
        "/..%2Fsecret.txt",
        "/sub/%2e%2e/%2e%2e/secret.txt",
        "/.%00./secret.txt",
        "/..%5csecret.txt",
        "/%252e%252e/secret.txt",
        "/./../secret.txt",
        "//../secret.txt",
        "/link.txt",
        "/relative.txt",
        "/out/secret.txt",
        "/everything/etc/passwd",
        "//etc/passwd",
        "/%2fetc/passwd",
        "http://test/../secret.txt",
    ] {
        // Twice: nothing may have got into the cache.
        for _ in 0..2 {
            let response = site.get(target, "");
            let body = String::from_utf8_lossy(&response.body);
            assert!(
                [400, 403, 404].contains(&response.status),
                "{target}: {}",
                response.status
            );
            assert!(
                !body.contains("secret") || body.contains("secret.txt"),
                "{target}: {body}"
            );
            assert!(!body.contains("root:"), "{target}: {body}");
        }
    }
    // What stays inside is served.
    assert_eq!(site.get("/inside.txt", "").body, Site::SMALL.as_bytes());
    server.stop();
}

#[test]
fn what_is_no_file_is_not_served_and_does_not_block() {
    let Some(site) = Site::new() else { return };
    let fifo = site.root().join("fifo");
    assert!(
        Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .expect("run mkfifo")
            .success()
    );
    symlink("/dev/zero", site.root().join("zero")).expect("make a link to a device");
    let server = site.launch().with("--threads", "1").start();
    for target in ["/fifo", "/zero"] {
        let response = site.get(target, "");
        assert!(
            [403, 404].contains(&response.status),
            "{target}: {}",
            response.status
        );
    }
    // The only slow-path thread is still there.
    site.assert_serves();
    server.stop();
}

#[test]
fn headers_without_end_are_cut_off() {
    let Some(site) = Site::new() else { return };
    let server = site.serve();
    let line = format!("X-Filler: {}\r\n", "a".repeat(1000));
    let mut connection = site.connect();
    connection.send("GET /small.txt HTTP/1.1\r\nHost: test\r\n");
    // 2 MB in all: far beyond any limit; sending fails silently once the server has closed.
    for _ in 0..2000 {
        connection.send(&line);
    }
    // The reset that unread bytes cause may overtake the answer.
    if let Some(response) = connection.response_or_end() {
        assert_eq!(response.status, 431);
        connection.expect_end();
    }

    // Just beyond the limit, all of it read: the answer is certain.
    let mut connection = site.connect();
    connection.send(get("/small.txt", &line.repeat(40)));
    assert_eq!(connection.response().status, 431);
    connection.expect_end();

    // Very many tiny headers are as bad as a few long ones.
    let mut connection = site.connect();
    connection.send(get("/small.txt", &"a: b\r\n".repeat(5000)));
    assert_eq!(connection.response().status, 431);
    connection.expect_end();
    site.assert_serves();
    server.stop();
}

#[test]
fn bodies_without_end_are_cut_off() {
    let Some(site) = Site::new() else { return };
    let server = site.serve();
    for request in [
        request("POST", "/small.txt", "Content-Length: 1000000000\r\n"),
        get("/small.txt", "Content-Length: 1000000000\r\n"),
        request("POST", "/small.txt", "Transfer-Encoding: chunked\r\n"),
    ] {
        let mut connection = site.connect();
        connection.send(&request);
        let chunk = format!("{:x}\r\n{}\r\n", 65536, "b".repeat(65536));
        for _ in 0..200 {
            connection.send(&chunk);
        }
        if let Some(response) = connection.response_or_end() {
            assert!(
                [400, 405, 411, 413, 501].contains(&response.status),
                "{}",
                response.status
            );
            connection.expect_end();
        }
    }
    site.assert_serves();
    server.stop();
}

#[test]
fn slow_headers_run_into_a_timeout() {
    let Some(site) = Site::new() else { return };
    let server = site.serve();
    let mut silent = site.connect();
    silent.send("GET /small.txt HTT");
    silent.set_read_limit(PATIENCE);
    // A client that sends a byte now and then must not keep its connection for ever either.
    let mut dripping = site.connect();
    dripping.set_read_limit(PATIENCE);
    dripping.send("GET /small.txt HTTP/1.1\r\nHost: test\r\nX: ");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            if let Some(response) = silent.response_or_end() {
                assert_eq!(response.status, 408);
                silent.expect_end();
            }
        });
        let deadline = Instant::now() + PATIENCE;
        while !dripping.has_ended_or_answered(Duration::from_millis(500)) {
            assert!(
                Instant::now() < deadline,
                "a dripping client is still connected"
            );
            dripping.send("a");
        }
        if let Some(response) = dripping.response_or_end() {
            assert_eq!(response.status, 408);
        }
    });
    site.assert_serves();
    server.stop();
}
