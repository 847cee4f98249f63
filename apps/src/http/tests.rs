//! Both paths together, over a directory: what clients see, and which path they see it from.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;

use bytes::Bytes;
use interruptlet::Instant;
use interruptlet::interruptlet::RequestInfo;
use interruptlet::pool::{Body, Response};
use interruptlet::testing::{self, Called, request_info};
use proptest::prelude::*;

use super::Site;
use super::cache::Entry;
use super::fast::Fast;
use super::files::Kind;
use super::representation::Representation;
use super::slow::Slow;
use super::watch::Rounds;

const MILLISECOND: i64 = 1000;
const CACHE_BYTES: usize = 1 << 20;

/// A site in a directory of its own, served at a time of our choice.
struct Server {
    dir: tempfile::TempDir,
    site: Arc<Site>,
    fast: Fast,
    slow: Slow,
    rounds: Rounds,
    now: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Fast,
    Slow,
}

#[derive(Debug)]
struct Reply {
    by: By,
    consumed: usize,
    head: String,
    body: Vec<u8>,
    close: bool,
}

impl Reply {
    fn new(by: By, consumed: usize, bytes: Vec<u8>, close: bool) -> Self {
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
        Self {
            by,
            consumed,
            head: String::from_utf8(bytes[..end].to_vec()).unwrap(),
            body: bytes[end..].to_vec(),
            close,
        }
    }

    fn status(&self) -> u16 {
        self.head["HTTP/1.1 ".len()..][..3].parse().unwrap()
    }

    fn field(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    /// Everything but the time.
    fn timeless(&self) -> (Vec<&str>, &[u8], bool) {
        let lines = self.head.lines();
        let lines = lines.filter(|line| !line.starts_with("Date: ")).collect();
        (lines, &self.body, self.close)
    }
}

fn bytes_of(response: Response) -> Vec<u8> {
    let mut bytes = response.head;
    match response.body {
        Body::Empty => {}
        Body::Content(content) => bytes.extend_from_slice(&content),
        Body::Source(mut source) => {
            while let Some(chunk) = source.next_chunk().unwrap() {
                bytes.extend_from_slice(&chunk);
            }
        }
    }
    bytes
}

impl Server {
    fn new() -> Self {
        Self::with_cache(CACHE_BYTES)
    }

    fn with_cache(cache_bytes: usize) -> Self {
        Self::with_limits(cache_bytes, u64::MAX)
    }

    fn with_limits(cache_bytes: usize, streams: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("sub dir")).unwrap();
        fs::write(root.join("index.html"), "home").unwrap();
        fs::write(root.join("a.txt"), "0123456789").unwrap();
        fs::write(root.join("empty"), "").unwrap();
        fs::write(root.join("sub dir/index.html"), "sub").unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        symlink("../secret", root.join("out")).unwrap();
        let site = Site::with_streams(&root, cache_bytes, streams).unwrap();
        Self {
            fast: Fast::new(site.clone()),
            slow: Slow::new(site.clone()),
            site,
            dir,
            rounds: Rounds::default(),
            now: 1_000_000,
        }
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.dir.path().join("root").join(name), content).unwrap();
    }

    fn info(&self) -> RequestInfo {
        request_info(Instant::from_micros(self.now))
    }

    /// What the client gets, wherever from.
    fn send(&mut self, bytes: &str) -> Reply {
        let info = self.info();
        match testing::handle(&mut self.fast, bytes.as_bytes(), &info) {
            Called::Reply {
                consumed,
                bytes,
                close,
            } => Reply::new(By::Fast, consumed, bytes, close),
            Called::Defer { consumed } => {
                let mut reply = self.send_slowly(&bytes[..consumed]);
                reply.consumed = consumed;
                reply
            }
            other => panic!("{bytes:?} gave {other:?}"),
        }
    }

    fn send_slowly(&self, bytes: &str) -> Reply {
        let response = testing::serve(&self.slow, bytes.as_bytes(), &self.info()).unwrap();
        let close = response.close;
        Reply::new(By::Slow, bytes.len(), bytes_of(response), close)
    }

    fn get(&mut self, target: &str) -> Reply {
        self.send(&format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n"))
    }

    fn get_with(&mut self, target: &str, fields: &str) -> Reply {
        self.send(&format!(
            "GET {target} HTTP/1.1\r\nHost: h\r\n{fields}\r\n\r\n"
        ))
    }

    /// Looks at the cached files as the watch's thread does every 300 ms.
    fn look_beside(&mut self) {
        self.rounds.look(&self.site.watch, &self.slow, self.now);
    }

    /// Lets `time` microseconds pass, with a look every 300 ms.
    fn wait(&mut self, time: i64) {
        for _ in 0..time / (300 * MILLISECOND) {
            self.now += 300 * MILLISECOND;
            self.look_beside();
        }
        self.now += time % (300 * MILLISECOND);
    }

    /// Whether a request is deferred, without serving it.
    fn defers(&mut self, target: &str) -> bool {
        let info = self.info();
        let bytes = format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n");
        matches!(
            testing::handle(&mut self.fast, bytes.as_bytes(), &info),
            Called::Defer { .. }
        )
    }
}

#[test]
fn a_file_comes_from_the_disk_once() {
    let mut server = Server::new();
    let first = server.get("/a.txt");
    assert_eq!((first.by, first.status()), (By::Slow, 200));
    assert_eq!(first.body, b"0123456789");
    assert_eq!(
        first.field("Content-Type"),
        Some("text/plain; charset=utf-8")
    );
    assert_eq!(first.field("Content-Length"), Some("10"));
    assert_eq!(first.field("Accept-Ranges"), Some("bytes"));
    assert!(first.field("Last-Modified").is_some() && first.field("Date").is_some());
    assert!(!first.close);
    let second = server.get("/a.txt");
    assert_eq!(second.by, By::Fast);
    assert_eq!(second.timeless(), first.timeless());
    // Another worker, another spelling.
    server.fast = Fast::new(server.site.clone());
    assert_eq!(server.get("/%61.txt?x").by, By::Fast);
    assert_eq!(server.get("http://h/./a.txt").by, By::Fast);
}

#[test]
fn both_paths_say_the_same() {
    let mut server = Server::new();
    let etag = server.get("/a.txt").field("ETag").unwrap().to_owned();
    let modified = server
        .get("/a.txt")
        .field("Last-Modified")
        .unwrap()
        .to_owned();
    for (fields, status, body) in [
        (String::new(), 200, "0123456789"),
        (format!("If-None-Match: {etag}"), 304, ""),
        (format!("If-None-Match: W/{etag}"), 304, ""),
        (format!("If-Modified-Since: {modified}"), 304, ""),
        ("If-Match: \"x\"".into(), 412, "412 Precondition Failed\n"),
        ("Range: bytes=2-4".into(), 206, "234"),
        ("Range: bytes=-1".into(), 206, "9"),
        (
            "Range: bytes=10-".into(),
            416,
            "416 Range Not Satisfiable\n",
        ),
        ("Range: nonsense".into(), 200, "0123456789"),
        (format!("Range: bytes=2-4\r\nIf-Range: {etag}"), 206, "234"),
        (
            format!("Range: bytes=2-4\r\nIf-Range: {modified}"),
            206,
            "234",
        ),
        (
            "Range: bytes=2-4\r\nIf-Range: \"x\"".into(),
            200,
            "0123456789",
        ),
        ("Expect: something".into(), 417, "417 Expectation Failed\n"),
        ("Connection: close".into(), 200, "0123456789"),
    ] {
        for method in ["GET", "HEAD"] {
            for version in ["1.0", "1.1"] {
                let fields = if fields.is_empty() {
                    String::new()
                } else {
                    format!("{fields}\r\n")
                };
                let bytes = format!("{method} /a.txt HTTP/{version}\r\nHost: h\r\n{fields}\r\n");
                let fast = server.send(&bytes);
                let slow = server.send_slowly(&bytes);
                assert_eq!(fast.by, By::Fast, "{bytes}");
                assert_eq!(fast.timeless(), slow.timeless(), "{bytes}");
                if (method, version) == ("GET", "1.1") {
                    assert_eq!(
                        (fast.status(), &fast.body[..]),
                        (status, body.as_bytes()),
                        "{bytes}"
                    );
                }
                if method == "HEAD" {
                    assert!(fast.body.is_empty(), "{bytes}");
                }
            }
        }
    }
}

#[test]
fn a_head_says_what_a_get_would() {
    let mut server = Server::new();
    let get = server.get("/a.txt");
    let head = server.send("HEAD /a.txt HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(get.timeless().0, head.timeless().0);
    assert!(head.body.is_empty());
    let missing = server.send("HEAD /none HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!((missing.status(), missing.body.len()), (404, 0));
    assert_eq!(missing.field("Content-Length"), Some("14"));
}

#[test]
fn several_ranges() {
    let mut server = Server::new();
    server.get("/a.txt");
    let reply = server.get_with("/a.txt", "Range: bytes=0-1,8-");
    assert_eq!((reply.by, reply.status()), (By::Slow, 206));
    let boundary = reply.field("Content-Type").unwrap();
    let boundary = boundary
        .strip_prefix("multipart/byteranges; boundary=")
        .unwrap();
    let part = |range, bytes| {
        format!(
            "--{boundary}\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Content-Range: bytes {range}/10\r\n\r\n{bytes}\r\n"
        )
    };
    let body = format!(
        "{}{}--{boundary}--\r\n",
        part("0-1", "01"),
        part("8-9", "89")
    );
    assert_eq!(String::from_utf8(reply.body.clone()).unwrap(), body);
    assert_eq!(
        reply.field("Content-Length"),
        Some(&*body.len().to_string())
    );
    assert!(reply.field("Content-Range").is_none());
}

#[test]
fn an_empty_file() {
    let mut server = Server::new();
    for by in [By::Slow, By::Fast] {
        let reply = server.get("/empty");
        assert_eq!((reply.by, reply.status(), reply.body.len()), (by, 200, 0));
        assert_eq!(reply.field("Content-Length"), Some("0"));
    }
    assert_eq!(server.get_with("/empty", "Range: bytes=0-").status(), 416);
}

#[test]
fn directories() {
    let mut server = Server::new();
    assert_eq!(server.get("/").body, b"home");
    assert_eq!(server.get("/sub%20dir/").body, b"sub");
    let moved = server.get("/sub%20dir?q=1");
    assert_eq!((moved.status(), moved.close), (301, false));
    assert_eq!(moved.field("Location"), Some("/sub%20dir/?q=1"));
    let moved = server.get("//sub%20dir");
    assert_eq!(moved.field("Location"), Some("/sub%20dir/"));
    assert_eq!(server.get("/a.txt/").status(), 404);
}

#[test]
fn what_cannot_be_served() {
    let mut server = Server::new();
    for (target, by, status) in [
        ("/none", By::Slow, 404),
        ("/out", By::Slow, 403),
        ("/../secret", By::Fast, 400),
        ("/%2e%2e/secret", By::Fast, 400),
        ("/..%2fsecret", By::Fast, 404),
        ("/a%00", By::Fast, 400),
        ("/%zz", By::Fast, 400),
        ("*", By::Fast, 400),
    ] {
        let reply = server.get(target);
        assert_eq!(
            (reply.by, reply.status(), reply.close),
            (by, status, false),
            "{target}"
        );
        assert!(!reply.body.is_empty());
    }
}

#[test]
fn methods() {
    let mut server = Server::new();
    for (start, status) in [
        ("OPTIONS *", 204),
        ("OPTIONS /a.txt", 204),
        ("POST /a.txt", 405),
        ("DELETE /a.txt", 405),
        ("CONNECT h:80", 405),
        ("TRACE /", 405),
        ("BREW /", 501),
        ("get /", 501),
    ] {
        let reply = server.send(&format!("{start} HTTP/1.1\r\nHost: h\r\n\r\n"));
        assert_eq!(
            (reply.by, reply.status(), reply.close),
            (By::Fast, status, false),
            "{start}"
        );
        let allow = (status != 501).then_some("GET, HEAD, OPTIONS");
        assert_eq!(reply.field("Allow"), allow);
    }
    let reply = server.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc");
    assert_eq!((reply.status(), reply.close), (405, true));
    assert_eq!(reply.field("Connection"), Some("close"));
}

#[test]
fn refusals_close() {
    let mut server = Server::new();
    for (bytes, status) in [
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/3.0\r\n\r\n", 505),
        ("GET / HTTP/1.1\nHost: h\n\n", 400),
        (
            "GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: x, chunked\r\n\r\n",
            501,
        ),
    ] {
        let reply = server.send(&format!("{bytes}GET / HTTP/1.1\r\nHost: h\r\n\r\n"));
        assert_eq!((reply.status(), reply.close), (status, true), "{bytes:?}");
        assert_eq!(reply.field("Connection"), Some("close"));
    }
    let head = server.send("HEAD / HTTP/1.1\r\n\r\n");
    assert_eq!((head.status(), head.body.len()), (400, 0));
}

#[test]
fn pipelined_requests_are_taken_one_by_one() {
    let mut server = Server::new();
    server.get("/a.txt");
    let one = "GET /a.txt HTTP/1.1\r\nHost: h\r\n\r\n";
    let reply = server.send(&one.repeat(3));
    assert_eq!((reply.by, reply.consumed), (By::Fast, one.len()));
    let reply = server.send(&format!("{}{one}", one.replace("a.txt", "none")));
    assert_eq!(
        (reply.by, reply.consumed, reply.status()),
        (By::Slow, one.len() - 1, 404)
    );
}

#[test]
fn the_end_of_a_connection() {
    let mut server = Server::new();
    let mut info = server.info();
    info.end_of_stream = true;
    for blank in ["", "\r\n"] {
        let called = testing::handle(&mut server.fast, blank.as_bytes(), &info);
        assert!(matches!(called, Called::Reply { bytes, close: true, .. } if bytes.is_empty()));
    }
    let called = testing::handle(&mut server.fast, b"GET / HT", &info);
    assert!(
        matches!(called, Called::Reply { bytes, close: true, .. } if bytes.starts_with(b"HTTP/1.1 400"))
    );
    // A whole request is answered even if nothing follows.
    server.get("/a.txt");
    let whole = b"GET /a.txt HTTP/1.1\r\nHost: h\r\n\r\n";
    let called = testing::handle(&mut server.fast, whole, &info);
    assert!(matches!(called, Called::Reply { close: false, .. }));
}

#[test]
fn a_full_buffer_and_a_slow_client() {
    let mut server = Server::new();
    let mut info = server.info();
    let status = |called| match called {
        Called::Reply {
            bytes, close: true, ..
        } => String::from_utf8(bytes).unwrap(),
        other => panic!("{other:?}"),
    };
    let timed_out = testing::timed_out(&mut server.fast, b"GET / HTTP/1.1\r\nA", &info);
    assert!(status(timed_out).starts_with("HTTP/1.1 408 "));
    assert_eq!(status(testing::timed_out(&mut server.fast, b"", &info)), "");
    let partial = testing::handle(&mut server.fast, b"GET / HTTP/1.1\r\nA", &info);
    assert_eq!(partial, Called::NeedMore);
    info.full = true;
    let full = testing::handle(&mut server.fast, b"GET / HTTP/1.1\r\nA", &info);
    assert!(status(full).starts_with("HTTP/1.1 431 "));
}

#[test]
fn without_room_on_the_slow_path() {
    let mut server = Server::new();
    let request = b"GET /a.txt HTTP/1.1\r\nHost: h\r\n\r\n";
    let info = server.info();
    let Called::Reply { bytes, close, .. } = testing::overloaded(&mut server.fast, request, &info)
    else {
        panic!("no reply");
    };
    let reply = Reply::new(By::Fast, 0, bytes, close);
    assert_eq!((reply.status(), reply.close), (503, true));
    assert_eq!(reply.field("Retry-After"), Some("1"));
    // Memory that is due for a look, but not too old, will do.
    server.get("/a.txt");
    server.now += 800 * MILLISECOND;
    let info = server.info();
    let called = testing::overloaded(&mut server.fast, request, &info);
    assert!(
        matches!(called, Called::Reply { bytes, close: false, .. } if bytes.ends_with(b"0123456789"))
    );
}

#[test]
fn a_change_is_seen_within_a_second() {
    let mut server = Server::new();
    let old = server.get("/a.txt");
    server.write("a.txt", "changed");
    server.now += 699 * MILLISECOND;
    assert_eq!(server.get("/a.txt").body, b"0123456789");
    server.now += MILLISECOND;
    // One request goes to look; the others do not wait for it.
    assert!(server.defers("/a.txt"));
    assert_eq!(server.get("/a.txt").by, By::Fast);
    let new = server.send_slowly("GET /a.txt HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(new.body, b"changed");
    assert_ne!(new.field("ETag"), old.field("ETag"));
    // From then on, everybody gets it, the worker with its own reference included.
    let reply = server.get("/a.txt");
    assert_eq!((reply.by, &reply.body[..]), (By::Fast, &b"changed"[..]));
}

#[test]
fn another_root_under_the_same_path_is_seen_within_a_second() {
    let mut server = Server::new();
    let at = |name: &str| server.dir.path().join(name);
    let (root, old, new) = (at("root"), at("old"), at("new"));
    fs::create_dir(&new).unwrap();
    fs::write(new.join("a.txt"), "new").unwrap();
    server.get("/a.txt");
    server.get("/index.html");
    fs::rename(&root, old).unwrap();
    // Between the two renames, the old one is served.
    server.now += 900 * MILLISECOND;
    assert_eq!(server.get("/a.txt").body, b"0123456789");
    fs::rename(new, &root).unwrap();
    server.now += 900 * MILLISECOND;
    assert_eq!(server.get("/a.txt").body, b"new");
    assert_eq!(server.site.cache().size().0, 1);
    assert_eq!(server.get("/index.html").status(), 404);
}

#[test]
fn nothing_old_is_served_unseen() {
    let mut server = Server::new();
    server.get("/a.txt");
    server.now += 900 * MILLISECOND;
    assert!(server.defers("/a.txt"));
    assert!(server.defers("/a.txt"));
    server.write("a.txt", "changed");
    assert_eq!(server.get("/a.txt").body, b"changed");
    fs::remove_file(server.dir.path().join("root/a.txt")).unwrap();
    server.now += 900 * MILLISECOND;
    assert_eq!(server.get("/a.txt").status(), 404);
    assert_eq!(server.get("/a.txt").by, By::Slow);
    assert_eq!(server.site.cache().size(), (0, 0));
}

#[test]
fn a_look_counts_from_when_it_was_made() {
    let mut server = Server::new();
    let start = std::time::Instant::now();
    server.get("/none");
    // This request waits for half a second in the queue of the slow path.
    std::thread::sleep(std::time::Duration::from_millis(500));
    server.get("/a.txt");
    let waited = start.elapsed().as_micros() as i64;
    server.now += 500 * MILLISECOND + 699 * MILLISECOND;
    assert_eq!(server.get("/a.txt").by, By::Fast);
    // But not from later.
    server.now += waited - 500 * MILLISECOND + MILLISECOND;
    assert!(server.defers("/a.txt"));
}

#[test]
fn an_unchanged_file_is_not_read_again() {
    let mut server = Server::new();
    let Ok(Kind::File(identity)) = server.site.root.kind(b"a.txt") else {
        panic!("no file");
    };
    for (is_racy, body) in [(false, "in memory"), (true, "0123456789")] {
        let representation = Representation::new("a.txt", 9, "\"t\"".into(), None);
        let content = Bytes::from_static(b"in memory");
        let entry = Entry::new(representation, content, identity, is_racy, server.now);
        server.site.cache.insert(b"a.txt", Arc::new(entry));
        server.now += 800 * MILLISECOND;
        let reply = server.get("/a.txt");
        assert_eq!((reply.by, &reply.body[..]), (By::Slow, body.as_bytes()));
        let reply = server.get("/a.txt");
        assert_eq!((reply.by, &reply.body[..]), (By::Fast, body.as_bytes()));
    }
}

const SECOND: i64 = 1_000_000;

#[test]
fn a_quiet_site_is_served_by_the_fast_path() {
    let mut server = Server::new();
    assert_eq!(server.get("/a.txt").by, By::Slow);
    for pause in [1, 2, 5, 60, 599] {
        server.wait(pause * SECOND);
        let reply = server.get("/a.txt");
        assert_eq!((reply.by, &reply.body[..]), (By::Fast, &b"0123456789"[..]));
    }
}

#[test]
fn what_changed_on_a_quiet_site_is_served_changed() {
    let mut server = Server::new();
    let old = server.get("/a.txt");
    server.wait(60 * SECOND);
    server.write("a.txt", "changed");
    server.wait(SECOND);
    // The changed file was read without a request.
    let new = server.get("/a.txt");
    assert_eq!((new.by, &new.body[..]), (By::Fast, &b"changed"[..]));
    assert_ne!(new.field("ETag"), old.field("ETag"));
    fs::remove_file(server.dir.path().join("root/a.txt")).unwrap();
    server.wait(SECOND);
    assert_eq!(server.site.cache().size(), (0, 0));
    assert_eq!(server.get("/a.txt").status(), 404);
}

#[test]
fn what_nobody_wants_any_more_is_left_alone_and_not_served_unseen() {
    let mut server = Server::new();
    server.get("/a.txt");
    server.wait(601 * SECOND);
    assert!(server.rounds.is_empty());
    server.write("a.txt", "changed");
    server.wait(3600 * SECOND);
    let reply = server.get("/a.txt");
    assert_eq!((reply.by, &reply.body[..]), (By::Slow, &b"changed"[..]));
    // The request had it watched again.
    server.wait(SECOND);
    assert_eq!(server.get("/a.txt").by, By::Fast);
}

/// A file that keeps changing without a request is read again only as long as an entry is watched.
#[test]
fn a_file_that_keeps_changing_is_left_alone_in_the_end() {
    let mut server = Server::new();
    server.get("/a.txt");
    for change in 0..70 {
        server.write("a.txt", change.to_string());
        server.wait(9 * SECOND);
    }
    assert!(server.rounds.is_empty());
    assert_eq!(server.get("/a.txt").body, b"69");
}

#[test]
fn without_looks_requests_look_for_themselves() {
    let mut server = Server::new();
    server.get("/a.txt");
    // The watch's thread does not look in this time.
    server.now += SECOND;
    server.write("a.txt", "changed");
    let reply = server.get("/a.txt");
    assert_eq!((reply.by, &reply.body[..]), (By::Slow, &b"changed"[..]));
}

#[test]
fn another_root_is_seen_beside_the_requests() {
    let mut server = Server::new();
    let at = |name: &str| server.dir.path().join(name);
    let (root, old, new) = (at("root"), at("old"), at("new"));
    fs::create_dir(&new).unwrap();
    fs::write(new.join("a.txt"), "new").unwrap();
    server.get("/a.txt");
    fs::rename(&root, old).unwrap();
    fs::rename(new, &root).unwrap();
    server.wait(300 * MILLISECOND);
    assert_eq!(server.site.cache().size(), (0, 0));
    assert_eq!(server.get("/a.txt").body, b"new");
}

/// Each round looks at a bounded number of files, those that were used last.
#[test]
fn looks_are_bounded() {
    let mut server = Server::with_cache(64 << 20);
    let name = |number: usize| format!("f{number}");
    for number in 0..1200 {
        server.write(&name(number), "x");
        // A round after 600 files; then more of them join.
        if number == 600 {
            server.look_beside();
        }
        server.now += MILLISECOND;
        server.get(&format!("/{}", name(number)));
    }
    assert_eq!(server.site.cache().size().0, 1200);
    server.look_beside();
    server.now += SECOND;
    server.look_beside();
    let served_at_once = |server: &mut Server| -> Vec<usize> {
        let at_once = |number: &usize| !server.defers(&format!("/{}", name(*number)));
        (0..1200).filter(at_once).collect()
    };
    // The files that were used last, among those that joined before there was no more room to join.
    assert!(served_at_once(&mut server).into_iter().eq(600..1112));
    // The others join when a request looks at them, in place of one that was used longer ago.
    server.now += 100 * MILLISECOND;
    assert_eq!(server.get("/f1199").by, By::Slow);
    server.wait(SECOND);
    let at_once = served_at_once(&mut server);
    assert!(at_once.len() == 512 && at_once.contains(&1199));
}

#[test]
fn large_files_are_streamed() {
    let mut server = Server::new();
    let content: Vec<u8> = (0..1_000_000_u32).map(|i| (i % 253) as u8).collect();
    server.write("large", &content);
    for _ in 0..2 {
        let reply = server.get("/large");
        assert_eq!((reply.by, reply.status()), (By::Slow, 200));
        assert_eq!(reply.field("Content-Length"), Some("1000000"));
        assert!(reply.body == content);
    }
    let part = server.get_with("/large", "Range: bytes=500000-799999");
    assert_eq!(part.status(), 206);
    assert!(part.body == content[500_000..800_000]);
    let parts = server.get_with("/large", "Range: bytes=0-99999,500000-799999");
    let length = parts.field("Content-Length").unwrap().parse();
    assert_eq!(length, Ok(parts.body.len()));
    let head = server.send("HEAD /large HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(
        (head.field("Content-Length"), head.body.len()),
        (Some("1000000"), 0)
    );
    assert_eq!(server.site.cache().size().0, 0);
}

#[test]
fn slow_readers_do_not_decide_how_much_is_in_memory() {
    // Room for ten files, and for as many that are being sent.
    let budget = 200_000;
    let server = Server::with_cache(budget);
    let mut held = Vec::new();
    let (mut in_memory, mut from_disk) = (0, 0);
    for number in 0..50 {
        server.write(&format!("f{number}"), vec![b'x'; 20_000]);
        let request = format!("GET /f{number} HTTP/1.1\r\nHost: h\r\n\r\n");
        let response = testing::serve(&server.slow, request.as_bytes(), &server.info()).unwrap();
        match &response.body {
            Body::Content(content) => in_memory += content.len(),
            Body::Source(_) => from_disk += 1,
            Body::Empty => panic!("no body"),
        }
        held.push(response);
    }
    assert!((budget..=2 * budget).contains(&in_memory), "{in_memory}");
    assert_eq!(in_memory / 20_000 + from_disk, 50);
    for response in held {
        assert!(bytes_of(response).ends_with(&[b'x'; 20_000]));
    }
    // They are gone: the cache fills again.
    let response = server.send_slowly("GET /f49 HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(response.status(), 200);
    assert!(server.site.cache.get(b"f49").is_some());
}

#[test]
fn files_that_are_being_sent_leave_descriptors_for_others() {
    let mut server = Server::with_limits(CACHE_BYTES, 1);
    server.write("large", vec![b'x'; 1_000_000]);
    let request = b"GET /large HTTP/1.1\r\nHost: h\r\n\r\n";
    let being_sent = testing::serve(&server.slow, request, &server.info()).unwrap();
    let refused = server.get("/large");
    assert_eq!((refused.status(), refused.close), (503, false));
    assert_eq!(refused.field("Retry-After"), Some("1"));
    // Small ones go on, and so does what is in memory while nobody can look at the file.
    assert_eq!(server.get("/a.txt").status(), 200);
    server.write("a.txt", vec![b'x'; 1_000_000]);
    server.now += 800 * MILLISECOND;
    let kept = server.get("/a.txt");
    assert_eq!((kept.by, &kept.body[..]), (By::Slow, &b"0123456789"[..]));
    assert_eq!(server.site.cache().size().0, 1);
    server.now += 500 * MILLISECOND;
    assert_eq!(server.get("/a.txt").status(), 503);
    drop(being_sent);
    assert_eq!(server.get("/a.txt").body.len(), 1_000_000);
    assert_eq!(server.site.cache().size().0, 0);
}

#[test]
fn without_a_cache_everything_is_streamed() {
    let mut server = Server::with_cache(0);
    for _ in 0..2 {
        let reply = server.get("/a.txt");
        assert_eq!((reply.by, &reply.body[..]), (By::Slow, &b"0123456789"[..]));
        assert_eq!(server.get("/empty").status(), 200);
    }
}

#[test]
fn the_cache_keeps_to_its_budget() {
    let mut server = Server::with_cache(200_000);
    for number in 0..50 {
        server.write(&format!("f{number}"), vec![b'x'; 20_000]);
        assert_eq!(server.get(&format!("/f{number}")).status(), 200);
        assert!(server.site.cache().size().1 <= 200_000);
    }
    assert!(server.site.cache().size().0 >= 8);
    assert_eq!(server.get("/f49").by, By::Fast);
    assert_eq!(server.get("/f0").by, By::Slow);
}

proptest! {
    #[test]
    fn any_bytes_are_survived_by_both_paths(
        bytes in proptest::collection::vec(any::<u8>(), 1..200), now: i64,
        end_of_stream: bool, full: bool,
    ) {
        let mut server = SHARED.lock().unwrap();
        let info = RequestInfo { end_of_stream, full, ..request_info(Instant::from_micros(now)) };
        for called in [
            testing::handle(&mut server.fast, &bytes, &info),
            testing::timed_out(&mut server.fast, &bytes, &info),
            testing::overloaded(&mut server.fast, &bytes, &info),
        ] {
            if let Called::Reply { consumed, .. } | Called::Defer { consumed } = called {
                prop_assert!(consumed > 0 && consumed <= bytes.len());
            }
        }
        prop_assert!(testing::serve(&server.slow, &bytes, &info).is_some());
    }

    #[test]
    fn requests_full_of_oddities_are_survived_by_both_paths(
        method in "GET|HEAD|OPTIONS|PUT", target in "(/|a\\.txt|\\.\\.|%2e|%2f|%00|\\?|sub%20dir){1,6}",
        fields in "((Range: bytes=|If-Range: |If-Match: |If-None-Match: |If-Modified-Since: )\
                   [-0-9,\"W/*]{0,12}\r\n){0,4}",
    ) {
        let mut server = SHARED.lock().unwrap();
        let bytes = format!("{method} {target} HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
        let reply = server.send(&bytes);
        prop_assert_eq!(reply.consumed, bytes.len());
        prop_assert!(!reply.body.windows(6).any(|w| w == b"secret"));
        let length = reply.field("Content-Length").map(|length| length.parse::<usize>().unwrap());
        match reply.status() {
            204 | 304 => prop_assert!(length.is_none() && reply.body.is_empty()),
            _ if method == "HEAD" => prop_assert!(length.is_some() && reply.body.is_empty()),
            _ => prop_assert_eq!(length, Some(reply.body.len())),
        }
    }
}

/// One directory for all cases of a property.
static SHARED: std::sync::LazyLock<std::sync::Mutex<Server>> =
    std::sync::LazyLock::new(|| std::sync::Mutex::new(Server::new()));
