//! The servers on the kernel's sockets, over the loopback interface: whatever the peer does, every byte is
//! right.

// Test code, helpers included, fails by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use interruptlet_apps::http::descriptors;
use interruptlet_apps::kernel::echo::Echo;
use interruptlet_apps::kernel::event_loop::EventLoop;
use interruptlet_apps::kernel::httpd::Httpd;
use interruptlet_apps::kernel::listen::{Endpoint, port_of};
use interruptlet_apps::kernel::service::Service;
use interruptlet_apps::kernel::site::Site;
use interruptlet_apps::kernel::stop::Stop;

/// Nothing takes so long, unless it is broken.
const SOON: Duration = Duration::from_secs(20);
const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Runs `client` against a server, which must end in order when the client has.
fn serve<'s, S: Service<'s> + Send>(
    service: S,
    listener: OwnedFd,
    datagrams: Option<OwnedFd>,
    client: impl FnOnce(SocketAddr),
) {
    let port = port_of(&listener).unwrap();
    let (stop, stopper) = Stop::by_drop().unwrap();
    thread::scope(|scope| {
        let server = scope.spawn(move || {
            let event_loop = EventLoop::new(service, listener, datagrams, stop, None)?;
            event_loop.run().map(drop)
        });
        // Dropped even if the client panics, so that the scope ends.
        let stopper = stopper;
        client(SocketAddr::new(LOCALHOST, port));
        drop(stopper);
        server.join().unwrap().unwrap();
    });
}

fn endpoint(port: u16) -> Endpoint {
    Endpoint {
        address: LOCALHOST,
        port,
        busy_poll: None,
    }
}

fn with_echo(client: impl FnOnce(SocketAddr)) {
    // The port that TCP gets may be taken for UDP.
    let (listener, datagrams) = (0..20)
        .find_map(|_| {
            let listener = endpoint(0).listen(false).unwrap();
            let datagrams = endpoint(port_of(&listener).unwrap()).datagrams().ok()?;
            Some((listener, datagrams))
        })
        .expect("a port that is free for both");
    serve(Echo, listener, Some(datagrams), client);
}

fn with_httpd(files: &[(&str, &[u8])], client: impl FnOnce(SocketAddr)) {
    let root = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(root.path().join(name), content).unwrap();
    }
    let site = Site::load(root.path()).unwrap();
    let listener = endpoint(0).listen(true).unwrap();
    serve(Httpd::new(&site), listener, None, client);
}

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.set_write_timeout(Some(SOON)).unwrap();
    stream
}

fn pattern(seed: u32, length: usize) -> Vec<u8> {
    let words = (0u32..).flat_map(|n| (n.wrapping_mul(0x9e37_79b1) ^ seed).to_le_bytes());
    words.take(length).collect()
}

fn round_trip(mut stream: &TcpStream, payload: &[u8]) {
    stream.write_all(payload).unwrap();
    let mut received = vec![0; payload.len()];
    stream.read_exact(&mut received).unwrap();
    assert!(received == payload, "{} bytes changed", payload.len());
}

fn read_to_end(mut stream: &TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    rest
}

/// One response with its head and body.
fn response(stream: &TcpStream) -> (String, Vec<u8>) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        (&*stream).read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "))
        .unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    (&*stream).read_exact(&mut body).unwrap();
    (head, body)
}

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: test\r\n\r\n")
}

#[test]
fn megabytes_come_back_however_slowly_they_are_read() {
    with_echo(|to| {
        let stream = connect(to);
        let sent = pattern(1, 24 << 20);
        thread::scope(|scope| {
            scope.spawn(|| {
                (&stream).write_all(&sent).unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
            });
            // So long that all buffers between us are full.
            thread::sleep(Duration::from_millis(300));
            let mut received = Vec::new();
            let mut part = vec![0; 300_000];
            loop {
                let length = (&stream).read(&mut part).unwrap();
                if length == 0 {
                    break;
                }
                received.extend_from_slice(&part[..length]);
                if received.len() < 4 << 20 {
                    thread::sleep(Duration::from_millis(1));
                }
            }
            assert!(received == sent, "{} bytes came back", received.len());
        });
    });
}

#[test]
fn hundreds_of_connections_at_once() {
    with_echo(|to| {
        descriptors::raise_limit();
        let streams: Vec<TcpStream> = (0..400).map(|_| connect(to)).collect();
        for round in 0..3 {
            for (n, mut stream) in (0..).zip(&streams) {
                stream.write_all(&pattern(n + round, 1000)).unwrap();
            }
            for (n, mut stream) in (0..).zip(&streams) {
                let mut received = [0; 1000];
                stream.read_exact(&mut received).unwrap();
                assert_eq!(received[..], pattern(n + round, 1000));
            }
        }
        for stream in &streams {
            stream.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_to_end(stream), b"");
        }
    });
}

#[test]
fn what_was_sent_before_a_half_close_comes_back_whole() {
    with_echo(|to| {
        for length in [0, 1, 65_535, 65_536, 65_537, 200_000] {
            let mut stream = connect(to);
            let sent = pattern(7, length);
            stream.write_all(&sent).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            assert!(read_to_end(&stream) == sent, "{length} bytes");
        }
    });
}

#[test]
fn a_reset_concerns_nobody_else() {
    with_echo(|to| {
        let other = connect(to);
        for _ in 0..50 {
            let mut stream = connect(to);
            // More than the buffers take, so that the server has something left to send; closing with
            // unread bytes resets.
            stream.set_nonblocking(true).unwrap();
            let chunk = pattern(3, 100_000);
            while stream.write(&chunk).is_ok() {}
            drop(stream);
            round_trip(&other, b"still here");
        }
    });
}

#[test]
fn datagrams_of_all_sizes_come_back() {
    with_echo(|to| {
        let socket = UdpSocket::bind((LOCALHOST, 0)).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket.connect(to).unwrap();
        let mut received = vec![0; 65_536];
        for length in (0..200).chain([1472, 1473, 9000, 65_506, 65_507]) {
            let sent = pattern(length as u32, length);
            socket.send(&sent).unwrap();
            let came = socket.recv(&mut received).unwrap();
            assert!(received[..came] == sent, "{length} bytes");
        }
        // Many at once, from many.
        let sockets: Vec<UdpSocket> = (0..100)
            .map(|_| UdpSocket::bind((LOCALHOST, 0)).unwrap())
            .collect();
        for (n, socket) in (0..).zip(&sockets) {
            socket.send_to(&pattern(n, 100 + n as usize), to).unwrap();
        }
        for (n, socket) in (0..).zip(&sockets) {
            socket.set_read_timeout(Some(SOON)).unwrap();
            let (came, from) = socket.recv_from(&mut received).unwrap();
            assert_eq!(from, to);
            assert!(received[..came] == pattern(n, 100 + n as usize));
        }
    });
}

#[test]
fn requests_in_one_piece_and_byte_by_byte() {
    with_httpd(&[("a", b"content of a"), ("b", b"b")], |to| {
        let mut stream = connect(to);
        stream.set_nodelay(true).unwrap();
        for (target, content) in [
            ("/a", &b"content of a"[..]),
            ("/b", b"b"),
            ("/a", b"content of a"),
        ] {
            stream.write_all(get(target).as_bytes()).unwrap();
            assert_eq!(response(&stream).1, content);
            for byte in get(target).bytes() {
                stream.write_all(&[byte]).unwrap();
            }
            let (head, body) = response(&stream);
            assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
            assert_eq!(body, content);
        }
    });
}

#[test]
fn thousands_of_requests_in_a_row_without_waiting() {
    let large = pattern(9, 10_000);
    with_httpd(&[("small", b"small"), ("large", &large)], |to| {
        let stream = connect(to);
        let targets = || (0..4000).map(|n| if n % 5 == 0 { "/large" } else { "/small" });
        let all: String = targets().map(get).collect();
        thread::scope(|scope| {
            scope.spawn(|| (&stream).write_all(all.as_bytes()).unwrap());
            // Until the replies have filled all buffers.
            thread::sleep(Duration::from_millis(300));
            for target in targets() {
                let (_, body) = response(&stream);
                let expected = if target == "/large" {
                    &large[..]
                } else {
                    b"small"
                };
                assert!(body == expected, "{target}: {} bytes", body.len());
            }
        });
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&stream), b"");
    });
}

#[test]
fn large_files_at_the_pace_of_their_readers() {
    let large = pattern(11, 30 << 20);
    with_httpd(&[("large", &large), ("small", b"small")], |to| {
        let slow: Vec<TcpStream> = (0..4).map(|_| connect(to)).collect();
        for (mut stream, option) in slow.iter().zip(["close", "keep-alive", "close", "x"]) {
            let request = get("/large").replace("Host", &format!("Connection: {option}\r\nHost"));
            stream.write_all(request.as_bytes()).unwrap();
        }
        let quick = connect(to);
        for _ in 0..100 {
            (&quick).write_all(get("/small").as_bytes()).unwrap();
            assert_eq!(response(&quick).1, b"small");
        }
        for stream in &slow {
            assert!(response(stream).1 == large);
        }
        assert_eq!(read_to_end(&slow[0]), b"");
        (&slow[1]).write_all(get("/small").as_bytes()).unwrap();
        assert_eq!(response(&slow[1]).1, b"small");
    });
}

#[test]
fn connections_end_when_the_client_says_so() {
    with_httpd(&[("a", b"content")], |to| {
        for request in [
            get("/a").replace("Host", "Connection: close\r\nHost"),
            "GET /a HTTP/1.0\r\n\r\n".to_owned(),
        ] {
            let mut stream = connect(to);
            stream.write_all(request.as_bytes()).unwrap();
            let (head, body) = response(&stream);
            assert!(head.contains("Connection: close\r\n"), "{head}");
            assert_eq!(body, b"content");
            assert_eq!(read_to_end(&stream), b"");
        }
        // Half-closed behind the request.
        let mut stream = connect(to);
        stream.write_all(get("/a").as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(response(&stream).1, b"content");
        assert_eq!(read_to_end(&stream), b"");
    });
}

#[test]
fn refusals_reach_clients_that_are_still_sending() {
    with_httpd(&[("a", b"content")], |to| {
        let mut stream = connect(to);
        stream.write_all(get("/none").as_bytes()).unwrap();
        let (head, body) = response(&stream);
        assert!(head.starts_with("HTTP/1.1 404 Not Found\r\n"), "{head}");
        assert_eq!(body, b"404 Not Found\n");
        // The connection goes on.
        let head_only = get("/a").replace("GET", "HEAD");
        stream.write_all(head_only.as_bytes()).unwrap();
        stream.write_all(b"nonsense\r\n\r\n").unwrap();
        // More than one read.
        stream.write_all(&pattern(5, 300_000)).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let all = String::from_utf8(read_to_end(&stream)).unwrap();
        let (head, rest) = all.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.ends_with("Content-Length: 7"), "{head}");
        assert!(rest.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{rest}");
        assert!(rest.ends_with("\r\n\r\n400 Bad Request\n"), "{rest}");
    });
}

#[test]
fn hundreds_of_short_connections() {
    with_httpd(&[("a", b"content")], |to| {
        let request = get("/a").replace("Host", "Connection: close\r\nHost");
        for _ in 0..10 {
            let streams: Vec<TcpStream> = (0..50).map(|_| connect(to)).collect();
            for mut stream in &streams {
                stream.write_all(request.as_bytes()).unwrap();
            }
            for stream in &streams {
                assert_eq!(response(stream).1, b"content");
                assert_eq!(read_to_end(stream), b"");
            }
        }
    });
}

#[test]
fn a_stopped_server_leaves_nothing() {
    let mut address = None;
    let mut open = None;
    with_echo(|to| {
        let stream = connect(to);
        round_trip(&stream, b"x");
        address = Some(to);
        open = Some(stream);
    });
    assert_eq!(read_to_end(&open.unwrap()), b"");
    let error = TcpStream::connect(address.unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}
