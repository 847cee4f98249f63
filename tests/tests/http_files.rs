//! `ilet-httpd` and the disk: files that change, files far larger than the cache, and readers that
//! take their time.

// Clippy knows test functions, but not their helpers.
#![allow(clippy::expect_used)]

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use interruptlet_tests::echo::pattern;
use interruptlet_tests::lab::VERSIONS;
use interruptlet_tests::server::Launch;
use interruptlet_tests::site::{Site, get};
use interruptlet_tests::wait::expect_soon;

/// A change on disk must be seen after this: the promise is a second.
const A_SECOND: Duration = Duration::from_millis(1100);

const MIB: u64 = 1 << 20;

/// Far below any of the large files, and enough for the arena, the stacks and the cache.
const MEMORY_BOUND: u64 = 128 * MIB;

/// Writes a file of `mib` MiB in which every MiB is different.
fn write_large(path: &Path, mib: u32) {
    let mut file = BufWriter::new(File::create(path).expect("create the large file"));
    for n in 0..mib {
        file.write_all(&pattern(n, MIB as usize))
            .expect("write the large file");
    }
    file.flush().expect("write the large file");
}

fn assert_same(left: &Path, right: &Path) {
    let output = Command::new("cmp")
        .args([left, right])
        .output()
        .expect("run cmp");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

#[test]
fn a_changed_file_is_served_changed_within_a_second() {
    let Some(site) = Site::new() else { return };
    let server = site.serve();
    let body = |expected: &str| {
        let response = site.get("/changing.txt", "");
        assert_eq!(
            (
                response.status,
                String::from_utf8_lossy(&response.body).as_ref()
            ),
            (200, expected)
        );
        response.expect_header("etag").to_owned()
    };
    assert_eq!(site.get("/changing.txt", "").status, 404);

    // A file that appears, is rewritten at the same length and at another, is replaced, and goes.
    site.put("changing.txt", "one");
    std::thread::sleep(A_SECOND);
    let one = body("one");
    assert_eq!(body("one"), one, "an unchanged file keeps its tag");
    site.put("changing.txt", "two");
    std::thread::sleep(A_SECOND);
    let two = body("two");
    assert_ne!(two, one);
    assert_eq!(
        site.get("/changing.txt", &format!("If-None-Match: {one}\r\n"))
            .status,
        200
    );
    site.put("changing.txt", "three and more");
    std::thread::sleep(A_SECOND);
    body("three and more");
    site.put("next.txt", "four");
    std::fs::rename(
        site.root().join("next.txt"),
        site.root().join("changing.txt"),
    )
    .expect("replace");
    std::thread::sleep(A_SECOND);
    body("four");
    std::fs::remove_file(site.root().join("changing.txt")).expect("remove");
    std::thread::sleep(A_SECOND);
    assert_eq!(site.get("/changing.txt", "").status, 404);
    server.stop();
}

#[test]
fn a_file_far_larger_than_the_cache_arrives_whole() {
    let Some(site) = Site::new() else { return };
    let large = site.root().join("large.bin");
    write_large(&large, 200);
    let server = site.launch().with("--cache-bytes", MIB.to_string()).start();
    let copy = site.lab().directory().join("copy.bin");
    let copy_name = copy.to_str().expect("a path in UTF-8");
    for version in VERSIONS {
        let limit = ["--max-time", "120", "--output", copy_name];
        site.curl(&[&limit[..], &[&site.url(version, "/large.bin")]].concat());
        assert_same(&copy, &large);
    }
    let response = site.get(
        "/large.bin",
        &format!("Range: bytes={}-{}\r\n", 150 * MIB, 151 * MIB - 1),
    );
    assert!(response.status == 206 && response.body == pattern(150, MIB as usize));
    let peak = server.peak_memory_bytes();
    assert!(peak < MEMORY_BOUND, "{} MiB of memory", peak / MIB);
    server.stop();
}

#[test]
fn a_slow_reader_holds_up_nobody_and_gets_everything() {
    let Some(site) = Site::new() else { return };
    write_large(&site.root().join("large.bin"), 150);
    let server = site.launch().with("--cache-bytes", MIB.to_string()).start();
    // More slow readers than slow-path threads.
    let mut slow: Vec<_> = (0..20).map(|_| site.connect()).collect();
    for connection in &mut slow {
        connection.send(get("/large.bin", "Connection: close\r\n"));
    }
    let mut received = vec![0; slow.len()];
    for _ in 0..20 {
        for (connection, total) in slow.iter_mut().zip(&mut received) {
            *total += connection.read_some(16 * 1024);
        }
        site.assert_serves();
        assert_eq!(site.get("/medium.bin", "").body.len(), 300_000);
        std::thread::sleep(Duration::from_millis(20));
    }
    let peak = server.peak_memory_bytes();
    assert!(peak < MEMORY_BOUND, "{} MiB of memory", peak / MIB);

    // One of them catches up and must get every byte; the others go away in the middle.
    let mut last = slow.pop().expect("twenty connections");
    let mut total = received.pop().expect("twenty totals") as u64;
    drop(slow);
    loop {
        let count = last.read_some(usize::MAX);
        if count == 0 {
            break;
        }
        total += count as u64;
    }
    let head = total
        .checked_sub(150 * MIB)
        .expect("at least the whole file");
    assert!((50..2000).contains(&head), "{head} bytes besides the file");
    site.assert_serves();
    server.stop();
}

#[test]
fn a_file_cut_short_while_it_is_sent_ends_the_connection_not_the_server() {
    let Some(site) = Site::new() else { return };
    let path = site.root().join("shrinking.bin");
    write_large(&path, 100);
    let server = site.launch().with("--cache-bytes", MIB.to_string()).start();
    let mut connection = site.connect();
    connection.send(get("/shrinking.bin", ""));
    connection.read_some(1000);
    File::options()
        .write(true)
        .open(&path)
        .and_then(|file| file.set_len(MIB))
        .expect("cut the file");
    let mut total = 1000;
    loop {
        let count = connection.read_some(usize::MAX);
        if count == 0 {
            break;
        }
        total += count as u64;
    }
    assert!(total < 100 * MIB, "bytes that are no longer in the file");
    site.assert_serves();
    server.stop();
}

#[test]
fn more_files_than_the_cache_holds() {
    let Some(site) = Site::new() else { return };
    for n in 0..200 {
        site.put(&format!("f{n}.bin"), pattern(n, 10_000));
    }
    // Room for a handful of them.
    let server = site.launch().with("--cache-bytes", "65536").start();
    let mut connection = site.connect();
    for round in 0..3 {
        for n in 0..200 {
            connection.send(get(&format!("/f{n}.bin"), ""));
            assert!(
                connection.response().body == pattern(n, 10_000),
                "file {n} in round {round}"
            );
        }
    }
    server.stop();
}

#[test]
fn readers_that_take_their_time_leave_descriptors_for_others() {
    let Some(site) = Site::new() else { return };
    write_large(&site.root().join("large.bin"), 50);
    // Far fewer than readers. Half of so few is reserved.
    let server = site
        .launch()
        .through(&["prlimit", "--nofile=64:64"])
        // So that all but the large one goes into memory.
        .with("--cache-bytes", (4 * MIB).to_string())
        .start();
    let mut slow: Vec<_> = (0..80).map(|_| site.connect()).collect();
    for connection in &mut slow {
        connection.send(get("/large.bin", ""));
    }
    let being_sent = || {
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", server.pid()));
        let links = descriptors.expect("the server's descriptors");
        let links = links.filter_map(|link| std::fs::read_link(link.ok()?.path()).ok());
        links.filter(|to| to.ends_with("large.bin")).count()
    };
    expect_soon("as many files are sent as may be", || {
        (being_sent() == 32).then_some(())
    });
    for _ in 0..12 {
        site.assert_serves();
        assert_eq!(site.get("/medium.bin", "").body.len(), 300_000);
        std::thread::sleep(Duration::from_millis(100));
    }
    let response = site.get("/large.bin", "");
    assert_eq!(
        (response.status, response.header("retry-after")),
        (503, Some("1"))
    );
    drop(slow);
    expect_soon("the files are closed", || (being_sent() == 0).then_some(()));
    assert_eq!(site.get("/large.bin", "").status, 200);
    server.stop();
}

#[test]
fn a_root_that_is_replaced_is_served_replaced() {
    let Some(site) = Site::new() else { return };
    let at = |name: &str| site.lab().directory().join(name);
    let point_to = |release: &str| {
        std::os::unix::fs::symlink(release, at("swap")).expect("make a link");
        std::fs::rename(at("swap"), at("current")).expect("replace the link");
    };
    std::fs::create_dir(at("next")).expect("make a directory");
    std::fs::write(at("next/small.txt"), "next").expect("write a file");
    point_to("www");
    let server = Launch::httpd(site.lab(), &at("current")).start();
    assert_eq!(site.get("/small.txt", "").body, Site::SMALL.as_bytes());
    assert_eq!(site.get("/medium.bin", "").status, 200);
    point_to("next");
    std::thread::sleep(A_SECOND);
    assert_eq!(site.get("/small.txt", "").body, b"next");
    assert_eq!(site.get("/medium.bin", "").status, 404);
    server.stop();
}
