//! Owns what every test that talks to an echo server needs: payloads whose bytes tell their place, and
//! round trips that check them.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};

use crate::lab::{Lab, VERSIONS};
use crate::netns::Netns;
use crate::server::ECHO_PORT;
use crate::wait;

/// `length` bytes that differ with the place and with `seed`, so that lost, doubled or swapped parts
/// show.
pub fn pattern(seed: u32, length: usize) -> Vec<u8> {
    let words = (0u32..).flat_map(|n| (n.wrapping_mul(0x9e37_79b1) ^ seed).to_le_bytes());
    words.take(length).collect()
}

/// Sends a datagram and checks that it comes back.
pub fn udp_round_trip(socket: &UdpSocket, payload: &[u8]) {
    socket.send(payload).expect("send a datagram");
    let mut received = vec![0; payload.len() + 1];
    let length = socket
        .recv(&mut received)
        .unwrap_or_else(|error| panic!("{} bytes: {error}", payload.len()));
    assert_eq!(length, payload.len(), "length of what came back");
    assert!(
        received[..length] == *payload,
        "{length} bytes came back changed"
    );
}

/// Sends bytes on an open connection and checks that they come back, however many there are.
pub fn tcp_round_trip(stream: &TcpStream, payload: &[u8]) {
    let mut received = vec![0; payload.len()];
    std::thread::scope(|scope| {
        // Both at once: neither side could hold all of a large payload.
        scope.spawn(|| (&*stream).write_all(payload).expect("send"));
        (&*stream).read_exact(&mut received).expect("receive");
    });
    assert!(
        received == payload,
        "{} bytes came back changed",
        payload.len()
    );
}

/// Ends a connection from this side and checks that the other side ends too, without another byte.
pub fn close(stream: &TcpStream) {
    stream.shutdown(Shutdown::Write).expect("half-close");
    let mut rest = Vec::new();
    (&*stream)
        .read_to_end(&mut rest)
        .expect("the other side's end");
    assert!(
        rest.is_empty(),
        "{} unexpected bytes at the end",
        rest.len()
    );
}

/// A whole TCP connection that echoes `payload`.
pub fn tcp_exchange(client: &Netns, to: SocketAddr, payload: &[u8]) {
    let stream = client
        .tcp(to)
        .unwrap_or_else(|error| panic!("connect to {to}: {error}"));
    tcp_round_trip(&stream, payload);
    close(&stream);
}

/// Accepts one connection on a kernel's listener and echoes it to its end. Panics if none comes soon,
/// so that a test whose client failed ends too.
pub fn serve_one_by_kernel(listener: &TcpListener) {
    listener
        .set_nonblocking(true)
        .expect("make the listener non-blocking");
    let accepted = wait::expect_soon("a connection to the kernel", || listener.accept().ok());
    let (stream, _) = accepted;
    stream
        .set_read_timeout(Some(wait::SOON))
        .expect("set the read timeout");
    std::io::copy(&mut &stream, &mut &stream).expect("echo");
}

/// Checks that the lab's echo server answers over UDP and TCP and both IP versions.
pub fn assert_serves(lab: &Lab) {
    for version in VERSIONS {
        let to = lab.server_at(version, ECHO_PORT);
        udp_round_trip(
            &lab.client().udp(to).expect("a UDP socket"),
            b"still there?",
        );
        tcp_exchange(lab.client(), to, b"still there?");
    }
}
