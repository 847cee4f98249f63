//! `ilet-echo` with kernel clients: ping, UDP and TCP, both IP versions, every way of deployment and
//! of polling.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use interruptlet_tests::echo::{
    self, assert_serves, close, pattern, tcp_exchange, tcp_round_trip, udp_round_trip,
};
use interruptlet_tests::lab::{Lab, Options, VERSIONS, Version};
use interruptlet_tests::server::{ECHO_PORT, Launch};
use interruptlet_tests::wait;

/// A port that nobody serves.
const CLOSED_PORT: u16 = 9;

#[test]
fn ping_answers_over_both_versions() {
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    let server = Launch::echo(&lab).start();
    for version in VERSIONS {
        let address = lab.server_ip(version).to_string();
        // 1,400 bytes of payload: a whole frame, but no fragments.
        for size in ["0", "56", "1400"] {
            let arguments = [
                "-n",
                "-c",
                "3",
                "-i",
                "0.05",
                "-w",
                "10",
                "-s",
                size,
                address.as_str(),
            ];
            let output = lab.client().run_ok("ping", &arguments);
            assert!(output.contains(" 0% packet loss"), "{output}");
        }
    }
    let report = server.stop();
    assert!(report.counter("icmp_echo_replies") >= 18, "{report:?}");
}

#[test]
fn datagrams_of_all_sizes_come_back() {
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    let server = Launch::echo(&lab).start();
    for (version, largest) in [(Version::V4, 1472), (Version::V6, 1452)] {
        let socket = lab
            .client()
            .udp(lab.server_at(version, ECHO_PORT))
            .expect("a UDP socket");
        for size in [0, 1, 2, 17, 64, 1000, largest] {
            udp_round_trip(&socket, &pattern(7, size));
        }
    }
    let report = server.stop();
    assert_eq!(report.counter("udp_requests"), 14, "{report:?}");
    assert_eq!(report.sum_of("drop_"), 0, "{report:?}");
}

#[test]
fn streams_come_back_small_and_large() {
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    let server = Launch::echo(&lab).start();
    for version in VERSIONS {
        for size in [1, 64, 1460, 5000, 1 << 20] {
            tcp_exchange(
                lab.client(),
                lab.server_at(version, ECHO_PORT),
                &pattern(3, size),
            );
        }
    }
    let report = server.stop();
    assert_eq!(report.counter("flows_opened"), 10, "{report:?}");
    assert_eq!(report.counter("flows_closed"), 10, "{report:?}");
}

#[test]
fn a_connection_carries_many_requests() {
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    let server = Launch::echo(&lab).start();
    for version in VERSIONS {
        let stream = lab
            .client()
            .tcp(lab.server_at(version, ECHO_PORT))
            .expect("connect");
        for n in 0..500 {
            tcp_round_trip(&stream, &pattern(n, 1 + n as usize));
        }
        close(&stream);
    }
    server.stop();
}

#[test]
fn what_was_sent_before_a_half_close_still_comes_back() {
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    let server = Launch::echo(&lab).start();
    for version in VERSIONS {
        // 64 KiB fit the buffers on the way, so that all is written before anything is read.
        for size in [0, 1, 3000, 64 * 1024] {
            let payload = pattern(11, size);
            let mut stream = lab
                .client()
                .tcp(lab.server_at(version, ECHO_PORT))
                .expect("connect");
            let mut reader = stream.try_clone().expect("a second handle");
            let received = std::thread::scope(|scope| {
                let reading = scope.spawn(|| {
                    let mut received = Vec::new();
                    reader.read_to_end(&mut received).map(|_| received)
                });
                stream.write_all(&payload).expect("send");
                stream.shutdown(Shutdown::Write).expect("half-close");
                reading.join().expect("the reader").expect("receive")
            });
            assert!(
                received == payload,
                "{} of {size} bytes came back",
                received.len()
            );
        }
    }
    server.stop();
}

#[test]
fn fifty_connections_at_once_keep_apart() {
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    let server = Launch::echo(&lab).start();
    let connect = |version| {
        lab.client()
            .tcp(lab.server_at(version, ECHO_PORT))
            .expect("connect")
    };
    let streams: Vec<TcpStream> = (0..50).map(|n| connect(VERSIONS[n % 2])).collect();
    // All have requests under way before the first reply is read.
    for round in 0..3 {
        let payload = |n: usize| pattern(round * 1000 + n as u32, 4000);
        for (n, mut stream) in streams.iter().enumerate() {
            stream.write_all(&payload(n)).expect("send");
        }
        for (n, mut stream) in streams.iter().enumerate() {
            let mut received = vec![0; 4000];
            stream.read_exact(&mut received).expect("receive");
            assert!(received == payload(n), "connection {n} got another's bytes");
        }
    }
    streams.iter().for_each(close);
    server.stop();
}

#[test]
fn many_connections_one_after_another_leave_nothing_behind() {
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    let server = Launch::echo(&lab).start();
    for n in 0..600 {
        tcp_exchange(
            lab.client(),
            lab.server_at(VERSIONS[n % 2], ECHO_PORT),
            &pattern(n as u32, 100),
        );
    }
    let report = server.stop();
    assert_eq!(report.counter("flows_opened"), 600, "{report:?}");
    assert_eq!(report.counter("flows_closed"), 600, "{report:?}");
}

#[test]
fn a_connection_that_is_reset_does_not_disturb_others() {
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    let server = Launch::echo(&lab).start();
    for version in VERSIONS {
        let to = lab.server_at(version, ECHO_PORT);
        let kept = lab.client().tcp(to).expect("connect");
        for n in 0..20 {
            let mut reset = lab.client().tcp(to).expect("connect");
            reset.write_all(&pattern(n, 20_000)).expect("send");
            wait::until("something to read", || reset.peek(&mut [0]).is_ok());
            // Closing with unread bytes makes the kernel send a RST.
            drop(reset);
            tcp_round_trip(&kept, &pattern(n, 300));
        }
        close(&kept);
    }
    server.stop();
}

#[test]
fn closed_ports_refuse_at_once() {
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    let server = Launch::echo(&lab).start();
    for version in VERSIONS {
        let closed = lab.server_at(version, CLOSED_PORT);
        let error = lab
            .client()
            .tcp(closed)
            .expect_err("nobody serves this port");
        assert_eq!(
            error.kind(),
            ErrorKind::ConnectionRefused,
            "TCP {version:?}: {error}"
        );

        let socket = lab.client().udp(closed).expect("a UDP socket");
        socket.send(b"anybody?").expect("send");
        let error = socket
            .recv(&mut [0; 16])
            .expect_err("nobody serves this port");
        assert_eq!(
            error.kind(),
            ErrorKind::ConnectionRefused,
            "UDP {version:?}: {error}"
        );
    }
    assert_serves(&lab);
    let report = server.stop();
    assert_eq!(report.counter("tcp_resets"), 2, "{report:?}");
    assert_eq!(report.counter("icmp_unreachables"), 2, "{report:?}");
}

#[test]
fn two_queues_are_served_by_two_cores() {
    let Some(lab) = Lab::new(Options {
        queues: 2,
        ..Options::default()
    }) else {
        return;
    };
    let server = Launch::echo(&lab)
        .with("--queues", "0,1")
        .with("--cores", "0,1")
        .start();
    for version in VERSIONS {
        let to = lab.server_at(version, ECHO_PORT);
        // The kernel spreads flows over its transmit queues: forty of each use both for certain.
        for n in 0..40 {
            tcp_exchange(lab.client(), to, &pattern(n, 5000));
            udp_round_trip(
                &lab.client().udp(to).expect("a UDP socket"),
                &pattern(n, 500),
            );
        }
    }
    let closed = lab.client().tcp(lab.server_at(Version::V4, CLOSED_PORT));
    assert!(closed.is_err());
    let report = server.stop();
    assert_eq!(report.workers(), 2);
    assert_eq!(report.counter("udp_requests"), 80, "{report:?}");
}

#[test]
fn every_way_of_polling_wakes_up_from_idleness() {
    for poll in ["busy", "adaptive", "sleep"] {
        let Some(lab) = Lab::new(Options::default()) else {
            return;
        };
        let server = Launch::echo(&lab).with("--poll", poll).start();
        let stream = lab
            .client()
            .tcp(lab.server_at(Version::V4, ECHO_PORT))
            .expect("connect");
        for idle in [0, 5, 700] {
            std::thread::sleep(Duration::from_millis(idle));
            tcp_round_trip(&stream, &pattern(1, 2000));
            assert_serves(&lab);
        }
        close(&stream);
        server.stop();
    }
}

#[test]
fn copy_mode_can_be_asked_for() {
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    let server = Launch::echo(&lab).with("--mode", "copy").start();
    assert_serves(&lab);
    server.stop();
}

#[test]
fn a_small_mtu_is_kept_to() {
    // The least that IPv6 allows.
    let Some(lab) = Lab::new(Options {
        mtu: 1280,
        ..Options::default()
    }) else {
        return;
    };
    let server = Launch::echo(&lab).start();
    for version in VERSIONS {
        tcp_exchange(
            lab.client(),
            lab.server_at(version, ECHO_PORT),
            &pattern(5, 100_000),
        );
    }
    assert_serves(&lab);
    server.stop();
}

#[test]
fn beside_the_kernel_only_the_served_port_is_taken() {
    let Some(lab) = Lab::new(Options {
        kernel_address: true,
        ..Options::default()
    }) else {
        return;
    };
    let kernel_port = 2222;
    let listeners = VERSIONS.map(|version| {
        let at = lab.server_at(version, kernel_port);
        lab.server().inside(|| TcpListener::bind(at)).expect("bind")
    });
    let server = Launch::echo(&lab).with_flag("--shared-address").start();
    assert_serves(&lab);
    for (version, listener) in VERSIONS.into_iter().zip(&listeners) {
        lab.client().run_ok(
            "ping",
            &[
                "-c",
                "2",
                "-i",
                "0.1",
                "-w",
                "10",
                &lab.server_ip(version).to_string(),
            ],
        );
        // Like ssh to the same address: a connection that the kernel owns.
        std::thread::scope(|scope| {
            scope.spawn(|| echo::serve_one_by_kernel(listener));
            tcp_exchange(
                lab.client(),
                lab.server_at(version, kernel_port),
                &pattern(2, 100_000),
            );
        });
        // The kernel, not we, refuses what nobody serves.
        let error = lab
            .client()
            .tcp(lab.server_at(version, CLOSED_PORT))
            .expect_err("a closed port");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
        // The server's kernel can be a client on the same interface too.
        let back = lab.client_ip(version).to_string();
        lab.server().run_ok("ping", &["-c", "1", "-w", "10", &back]);
    }
    let report = server.stop();
    assert!(
        report.counter("tcp_requests") > 0 && report.counter("udp_requests") > 0,
        "{report:?}"
    );
    for kernels in ["icmp_echo_replies", "tcp_resets", "icmp_unreachables"] {
        assert_eq!(report.counter(kernels), 0, "{report:?}");
    }
}

#[test]
fn a_client_behind_a_router_is_answered() {
    let Some(lab) = Lab::new(Options {
        router: true,
        ..Options::default()
    }) else {
        return;
    };
    let [gateway4, gateway6] = lab.gateways().map(|address| address.to_string());
    let server = Launch::echo(&lab)
        .with("--gateway", gateway4)
        .with("--gateway", gateway6)
        .start();
    for version in VERSIONS {
        let address = lab.server_ip(version).to_string();
        lab.client()
            .run_ok("ping", &["-c", "2", "-i", "0.1", "-w", "10", &address]);
        tcp_exchange(
            lab.client(),
            lab.server_at(version, ECHO_PORT),
            &pattern(9, 200_000),
        );
        let refused = lab
            .client()
            .tcp(lab.server_at(version, CLOSED_PORT))
            .expect_err("a closed port");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{refused}");
    }
    assert_serves(&lab);
    server.stop();
}
