//! Tests of the harness itself, with servers of the kernel in place of ours: a lab that did not carry
//! packets would make every other test fail for the wrong reason, or pass for one.

use std::net::{TcpListener, UdpSocket};
use std::process::Command;
use std::time::Duration;

use interruptlet_tests::lab::{CLIENT_IF, Lab, Options, SERVER_IF, VERSIONS, Version};
use interruptlet_tests::packet::{self, Seen};
use interruptlet_tests::raw::RawLink;
use interruptlet_tests::{echo, http};

fn with_kernel_address(router: bool) -> Option<Lab> {
    Lab::new(Options {
        kernel_address: true,
        router,
        ..Options::default()
    })
}

#[test]
fn labs_at_once_do_not_meet_and_leave_nothing() {
    let Some(first) = with_kernel_address(false) else {
        return;
    };
    let Some(second) = with_kernel_address(false) else {
        return;
    };
    let names = [
        first.server(),
        first.client(),
        second.server(),
        second.client(),
    ]
    .map(|ns| ns.name().to_owned());
    let directory = first.directory().to_owned();
    for lab in [&first, &second] {
        for version in VERSIONS {
            lab.client().run_ok(
                "ping",
                &["-c", "1", "-w", "5", &lab.server_ip(version).to_string()],
            );
        }
    }
    drop((first, second));
    let left = Command::new("ip")
        .args(["netns", "list"])
        .output()
        .expect("run ip");
    let left = String::from_utf8_lossy(&left.stdout);
    assert!(
        names.iter().all(|name| !left.contains(name.as_str())),
        "left: {left}"
    );
    assert!(!directory.exists());
}

#[test]
fn sockets_of_the_client_reach_the_server_also_through_a_router() {
    for router in [false, true] {
        let Some(lab) = with_kernel_address(router) else {
            return;
        };
        for version in VERSIONS {
            let to = lab.server_at(version, 7);
            let udp = lab.server().inside(|| UdpSocket::bind(to)).expect("bind");
            let client = lab.client().udp(to).expect("a UDP socket");
            client.send(b"there").expect("send");
            udp.set_read_timeout(Some(Duration::from_secs(10)))
                .expect("set the timeout");
            let mut datagram = [0; 16];
            let (length, from) = udp.recv_from(&mut datagram).expect("receive");
            assert_eq!(
                (&datagram[..length], from.ip()),
                (&b"there"[..], lab.client_ip(version))
            );

            let listener = lab.server().inside(|| TcpListener::bind(to)).expect("bind");
            std::thread::scope(|scope| {
                scope.spawn(|| echo::serve_one_by_kernel(&listener));
                echo::tcp_exchange(lab.client(), to, &echo::pattern(1, 1 << 20));
            });
        }
    }
}

#[test]
fn raw_frames_are_taken_for_real_ones() {
    let Some(lab) = with_kernel_address(false) else {
        return;
    };
    let ours = lab.link_address(lab.client(), CLIENT_IF);
    let theirs = lab.link_address(lab.server(), SERVER_IF);
    for version in VERSIONS {
        let (from, to) = (lab.client_ip(version), lab.server_ip(version));
        // The kernel must know where to send the reply: have it find out now.
        lab.client()
            .run_ok("ping", &["-c", "1", "-w", "5", &to.to_string()]);
        let mut link = RawLink::open(&lab);
        let (protocol, mut request) = packet::echo_request(from, to, 0x1234, b"right");
        let frame = |message: &[u8]| {
            let (ethertype, packet) = packet::ip(from, to, protocol, message);
            packet::ethernet(theirs, ours, ethertype, &packet)
        };
        let is_reply =
            |frame: &[u8]| Seen::parse(frame).is_some_and(|seen| seen.payload.ends_with(b"right"));
        link.send(&frame(&request));
        link.expect("the reply to a right echo request", is_reply);
        packet::spoil_checksum(&mut request, packet::ICMP_CHECKSUM_AT);
        link.send(&frame(&request));
        let reply = link.receive(Duration::from_millis(300), |frame| {
            is_reply(frame).then_some(())
        });
        assert!(
            reply.is_none(),
            "a reply to a request with a wrong checksum"
        );
    }
}

#[test]
fn the_http_client_reads_pipelined_responses() {
    let Some(lab) = with_kernel_address(false) else {
        return;
    };
    let to = lab.server_at(Version::V4, 80);
    let listener = lab.server().inside(|| TcpListener::bind(to)).expect("bind");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (stream, _) = listener.accept().expect("accept");
            let first = b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n";
            let second = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            std::io::Write::write_all(&mut &stream, &[&first[..], &second[..]].concat())
                .expect("send");
        });
        let mut connection = http::Connection::open(lab.client(), to);
        assert_eq!(connection.response().status, 304);
        assert_eq!(connection.response().body, b"ok");
        connection.expect_end();
    });
}

#[test]
fn the_server_s_interface_starts_without_xdp() {
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    assert!(!lab.xdp_attached());
}
