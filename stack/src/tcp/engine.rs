//! An engine: one smoltcp socket, alone in its own set, so that its cost is that of one socket.

use std::net::SocketAddr;

use smoltcp::iface::{Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::Device;
use smoltcp::socket::tcp::{CongestionControl, Socket, SocketBuffer, State};
use smoltcp::wire::{IpEndpoint, IpListenEndpoint};

use crate::{Duration, Instant};

/// How long sent bytes may stay unacknowledged before the connection is given up. RFC 9293 section 3.8.3 asks for at least 100 seconds.
pub(super) const USER_TIMEOUT: Duration = Duration::from_secs(100);

/// The full TCP of one flow.
#[derive(Debug)]
pub(super) struct Engine {
    sockets: SocketSet<'static>,
    handle: SocketHandle,
}

impl Engine {
    /// With buffers of so many bytes to receive and to send.
    pub(super) fn new(rx_bytes: usize, tx_bytes: usize) -> Self {
        // Zeroed by the allocator, not touched before bytes come.
        let mut socket = Socket::new(
            SocketBuffer::new(vec![0; rx_bytes]),
            SocketBuffer::new(vec![0; tx_bytes]),
        );
        // Replies are whole messages: waiting for more only adds latency.
        socket.set_nagle_enabled(false);
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Self { sockets, handle }
    }

    /// Makes a new or used engine wait for a SYN to `local`.
    pub(super) fn listen(&mut self, local: SocketAddr) -> bool {
        let endpoint = IpEndpoint::from(local);
        self.make_closed()
            .listen(IpListenEndpoint {
                addr: Some(endpoint.addr),
                port: endpoint.port,
            })
            .is_ok()
    }

    fn make_closed(&mut self) -> &mut Socket<'static> {
        let socket = self.socket();
        // A socket that is not closed would refuse.
        socket.abort();
        // Not part of what smoltcp resets: a new peer owes nothing to the last one's losses.
        socket.set_congestion_control(CongestionControl::Cubic);
        socket
    }

    pub(super) fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    pub(super) fn state(&mut self) -> State {
        self.socket().state()
    }

    /// Takes in the packet that `device` has received.
    pub(super) fn ingress(
        &mut self,
        interface: &mut Interface,
        device: &mut impl Device,
        now: Instant,
    ) -> PollIngressSingleResult {
        interface.poll_ingress_single(now, device, &mut self.sockets)
    }

    /// Lets it send what it has to send first.
    pub(super) fn egress_once(
        &mut self,
        interface: &mut Interface,
        device: &mut impl Device,
        now: Instant,
    ) {
        interface.poll_egress(now, device, &mut self.sockets);
    }

    /// Whether it waits for nothing but the peer. Never so while something is not acknowledged, by RFC 6298
    /// section 5.1; smoltcp knows cases.
    pub(super) fn has_no_timer(&mut self, interface: &mut Interface, now: Instant) -> bool {
        let socket = self.socket();
        if socket.state() == State::Closed {
            return false;
        }
        // Giving up is no way to go on.
        let timeout = socket.timeout();
        socket.set_timeout(None);
        let next = interface.poll_at(now, &self.sockets);
        self.socket().set_timeout(timeout);
        next.is_none()
    }

    /// Sends everything that may be sent now; returns when the engine wants to be asked again.
    pub(super) fn egress(
        &mut self,
        interface: &mut Interface,
        device: &mut impl Device,
        now: Instant,
    ) -> Option<Instant> {
        // smoltcp would give up an idle connection too. A close has a deadline of the connection's own.
        let socket = self.socket();
        let timeout = (socket.send_queue() > 0).then_some(USER_TIMEOUT);
        socket.set_timeout(timeout);
        loop {
            let progress = interface.poll_egress(now, device, &mut self.sockets);
            let next = interface.poll_at(now, &self.sockets);
            match next {
                // More to send at once. Without progress (no free frame) it waits for the next tick.
                Some(at) if at <= now => {
                    if progress == PollResult::None {
                        return Some(now + Duration::from_millis(1));
                    }
                }
                later => return later,
            }
        }
    }
}
