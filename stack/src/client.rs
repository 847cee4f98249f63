//! The client side: connections that a core opens and datagrams that it sends first, for load generators
//! and whatever else asks instead of answering.
//!
//! A [`Client`] runs inside the loop of one core, as interruptlets do: it must not block. The loop tells it
//! what happened ([`connected`](Client::connected), [`received`](Client::received), ...) and calls
//! [`turn`](Client::turn), where it may open connections, send on any of them, and send
//! datagrams through [`Core`]. Inside an event it acts on the connection at hand through [`Stream`].
//!
//! For each connection the events come in this order: `connected` at most once; then any number of
//! `received` and `writable`; `ended` at most once; and `closed` exactly once, the last. What was opened is
//! named by the client's own `token` in events, and by its [`StreamId`] in [`Core::stream`].
//!
//! Times are nanoseconds of the loop's clock, from an arbitrary start.

use std::net::{IpAddr, SocketAddr};

use crate::clock::{Clock, instant};
use crate::egress::Egress;
use crate::flow::FlowId;
pub use crate::neighbour::Reach;
use crate::neighbour::Resolver;
use crate::tcp::{Tcp, Turn};
use crate::telemetry::Counters;
use crate::udp;
use crate::wire::Local;

/// What a core runs on its client side.
pub trait Client: Send {
    /// Called once in each turn of the loop in which something happens, after what was received, and at the
    /// time that it returns, in nanoseconds of the loop's clock, if there is one.
    fn turn(&mut self, core: &mut Core<'_>) -> Option<u64>;

    /// The handshake of a connection is complete.
    fn connected(&mut self, stream: &mut Stream<'_>);

    /// Bytes that arrived and were not taken yet, in order; at least one, and not always all that are there.
    /// Returns how many of them it takes. What it leaves stays in the receive buffer, which closes the
    /// window that the peer sees; it is shown again with the next bytes, or from the time of
    /// [`Stream::read_at`] on and not before.
    fn received(&mut self, bytes: &[u8], stream: &mut Stream<'_>) -> usize;

    /// There is room to send again, after [`Stream::send`] took less than it was given.
    fn writable(&mut self, _stream: &mut Stream<'_>) {}

    /// The peer has closed its side, and all bytes were taken.
    fn ended(&mut self, stream: &mut Stream<'_>) {
        stream.close();
    }

    /// The connection is gone.
    fn closed(&mut self, token: u64, end: End);

    /// A datagram for one of our addresses came in, on a port without a service.
    fn datagram(&mut self, _datagram: &Datagram<'_>, _datagrams: &mut Datagrams<'_>) {}
}

/// Makes the client of one worker; called with the worker's number.
pub type ClientFactory = Box<dyn Fn(usize) -> Box<dyn Client> + Send>;

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    /// In order: both sides closed.
    Closed,
    /// The peer reset it in the handshake: nobody serves that port.
    Refused,
    /// The handshake was not completed in time.
    ConnectTimeout,
    /// The peer reset it later.
    Reset,
    /// The peer did not acknowledge, take or close in time.
    Unanswered,
    /// We reset it.
    Aborted,
}

/// Names a connection of a client for as long as it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StreamId(pub(crate) FlowId);

/// A connection was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// See [`Limits::flows`](crate::Limits::flows).
    #[error("the core has as many connections as its limit allows")]
    Full,
    /// Not resolved: see [`Core::reach`].
    #[error("the link address of the next hop is not known")]
    Unreachable,
    /// The four-tuple is that of a connection that is not gone yet.
    #[error("there is a connection between these two ends already")]
    InUse,
    /// Port zero, IP versions that differ, or a source that is not one of our addresses.
    #[error("these two ends cannot have a connection")]
    BadEnds,
}

/// A received datagram.
#[derive(Debug, Clone, Copy)]
pub struct Datagram<'a> {
    /// Our end: where it was sent to.
    pub local: SocketAddr,
    /// Who sent it.
    pub peer: SocketAddr,
    /// What it carries.
    pub payload: &'a [u8],
    /// When it was handled, in nanoseconds of the loop's clock.
    pub nanos: u64,
}

/// One connection, for the length of one event.
#[derive(Debug)]
pub struct Stream<'a> {
    pub(crate) id: StreamId,
    pub(crate) token: u64,
    pub(crate) nanos: u64,
    /// Bytes that the send buffer has room for, those in `actions` included.
    pub(crate) room: usize,
    pub(crate) actions: &'a mut Actions,
}

/// What a client asked for on one connection, carried out after its event.
#[derive(Debug, Default)]
pub(crate) struct Actions {
    /// To be sent. Reused: an event allocates nothing once this is warm.
    pub(crate) outbox: Vec<u8>,
    /// Less was taken than was given.
    pub(crate) wants_room: bool,
    pub(crate) close: bool,
    pub(crate) abort: bool,
    pub(crate) read_at: Option<u64>,
}

impl Actions {
    pub(crate) fn clear(&mut self) {
        self.outbox.clear();
        self.wants_room = false;
        self.close = false;
        self.abort = false;
        self.read_at = None;
    }
}

impl Stream<'_> {
    /// The connection's name in [`Core::stream`].
    pub fn id(&self) -> StreamId {
        self.id
    }

    /// What the client called the connection when it opened it.
    pub fn token(&self) -> u64 {
        self.token
    }

    /// The loop's clock, in nanoseconds.
    pub fn nanos(&self) -> u64 {
        self.nanos
    }

    /// Bytes that [`send`](Self::send) takes now.
    pub fn room(&self) -> usize {
        self.room
    }

    /// Sends as many of `bytes` as there is room for; returns how many. If that is not all,
    /// [`Client::writable`] is called when there is room again.
    pub fn send(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.room);
        self.actions.outbox.extend_from_slice(&bytes[..taken]);
        self.room -= taken;
        self.actions.wants_room |= taken < bytes.len();
        taken
    }

    /// Closes our side (FIN) after what was sent. What arrives from then on is dropped.
    pub fn close(&mut self) {
        self.actions.close = true;
    }

    /// Resets the connection (RST); what was not sent yet is dropped.
    pub fn abort(&mut self) {
        self.actions.abort = true;
    }

    /// Has [`Client::received`] called again with the bytes that it left, and those that arrive until then,
    /// at this time of the loop's clock in nanoseconds (rounded up to the timer's tick, about a
    /// millisecond). The last call counts.
    pub fn read_at(&mut self, nanos: u64) {
        self.actions.read_at = Some(nanos);
    }
}

/// What a client may do in its turn.
pub struct Core<'a> {
    pub(crate) tcp: &'a mut Tcp,
    pub(crate) resolver: &'a mut Resolver,
    pub(crate) local: &'a Local,
    pub(crate) egress: &'a mut Egress,
    pub(crate) counters: &'a Counters,
    pub(crate) ip_mtu: usize,
    pub(crate) nanos: u64,
    pub(crate) clock: &'a mut dyn Clock,
}

impl Core<'_> {
    /// The loop's clock, in nanoseconds.
    pub fn nanos(&self) -> u64 {
        self.nanos
    }

    /// Whether `peer` can be sent to, asking for the link address of its next hop if that is not known
    /// (ARP, neighbour discovery): call it every turn until it says something else than
    /// [`Reach::Asking`].
    pub fn reach(&mut self, peer: IpAddr) -> Reach {
        let now = instant(self.nanos);
        self.resolver.reach(peer, now, self.egress, self.counters)
    }

    /// Opens a connection from `local`, one of our addresses and a port of the caller's choice, to `peer`.
    ///
    /// # Errors
    ///
    /// See [`OpenError`]; nothing was sent then, and no event follows.
    pub fn open(
        &mut self,
        local: SocketAddr,
        peer: SocketAddr,
        token: u64,
    ) -> Result<StreamId, OpenError> {
        if !self.local.has(&local.ip().into()) || local.is_ipv4() != peer.is_ipv4() {
            return Err(OpenError::BadEnds);
        }
        let link = self
            .resolver
            .link_to(peer.ip())
            .ok_or(OpenError::Unreachable)?;
        let mut turn = Turn::new(self.egress, self.counters, self.nanos, self.clock);
        self.tcp
            .open(local, peer, link, token, &mut turn)
            .map(StreamId)
    }

    /// Acts on a connection. Returns whether it is there.
    pub fn stream(&mut self, id: StreamId, act: impl FnOnce(&mut Stream<'_>)) -> bool {
        let mut turn = Turn::new(self.egress, self.counters, self.nanos, self.clock);
        self.tcp.act(id, &mut turn, act)
    }

    /// Sends datagrams.
    pub fn datagrams(&mut self) -> Datagrams<'_> {
        Datagrams {
            resolver: self.resolver,
            egress: self.egress,
            counters: self.counters,
            ip_mtu: self.ip_mtu,
        }
    }
}

/// Sends datagrams.
pub struct Datagrams<'a> {
    pub(crate) resolver: &'a Resolver,
    pub(crate) egress: &'a mut Egress,
    pub(crate) counters: &'a Counters,
    pub(crate) ip_mtu: usize,
}

impl Datagrams<'_> {
    /// Sends `payload` from `local`, one of our addresses, to `peer`. Returns false if it was not: the next
    /// hop is not resolved ([`Core::reach`]), the payload does not fit a packet, the IP versions differ, or
    /// no frame is free.
    pub fn send(&mut self, local: SocketAddr, peer: SocketAddr, payload: &[u8]) -> bool {
        let Some(link) = self.resolver.link_to(peer.ip()) else {
            return false;
        };
        udp::send(
            local,
            peer,
            payload,
            &link,
            self.ip_mtu,
            self.egress,
            self.counters,
        )
    }
}
