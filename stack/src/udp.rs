//! UDP: datagram services, answered on the frame that the request came in.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::Instant;
use crate::arena::{Frame, Owner};
use crate::clock::Clock;
use crate::egress::Egress;
use crate::interruptlet::{
    DatagramInterruptlet, DatagramOutcome, DatagramRequest, Outbox, RequestInfo,
};
use crate::pool::{
    Body, Deferred, Job, MailboxSender, ReplyTo, Responder, Response, Route, SlowPath, Submitter,
};
use crate::service::{Budget, Handler};
use crate::telemetry::Counters;
use crate::wire::checksum::Sum;
use crate::wire::{Address, FlowKey, LinkHeader, Transport, TransportKind, UDP_HEADER_BYTES, ip};

/// A datagram service of one core.
pub(crate) struct DatagramPort {
    pub(crate) port: u16,
    pub(crate) handler: Handler<dyn DatagramInterruptlet>,
    pub(crate) slow: Option<Arc<dyn SlowPath>>,
    pub(crate) budget: Budget,
}

/// The datagram services of one core.
pub(crate) struct Udp {
    ports: Vec<DatagramPort>,
    ip_mtu: usize,
    outbox: Outbox,
    pool: Submitter,
    core: MailboxSender,
    /// The service whose handler ran since the last [`take_called`](Self::take_called).
    called: Option<usize>,
}

/// What is to be done with a datagram's frame.
pub(crate) enum Verdict {
    /// Nothing more: it was sent, lent or freed.
    Done,
    /// No service has this port: tell the sender.
    PortClosed(Frame),
}

impl Udp {
    pub(crate) fn new(
        ports: Vec<DatagramPort>,
        ip_mtu: usize,
        pool: Submitter,
        core: MailboxSender,
    ) -> Self {
        Self {
            ports,
            ip_mtu,
            outbox: Outbox::with_capacity(ip_mtu),
            pool,
            core,
            called: None,
        }
    }

    /// Handles a datagram whose headers are checked.
    #[allow(clippy::too_many_arguments)] // the datagram, and what a turn may use
    pub(crate) fn receive(
        &mut self,
        frame: Frame,
        packet: &Transport,
        payload_end: usize,
        now: Instant,
        clock: &mut dyn Clock,
        egress: &mut Egress,
        counters: &Counters,
    ) -> Verdict {
        let Some(index) = self.find(packet.key.local_port) else {
            return Verdict::PortClosed(frame);
        };
        self.handle(
            index,
            frame,
            packet,
            payload_end,
            now,
            clock,
            egress,
            counters,
        );
        Verdict::Done
    }

    /// Handles a datagram that the pool hands back: the core has its handler again, or wants it.
    pub(crate) fn take_back(
        &mut self,
        request: &Deferred,
        link: LinkHeader,
        now: Instant,
        clock: &mut dyn Clock,
        egress: &mut Egress,
        counters: &Counters,
    ) {
        let info = request.info();
        let Some(index) = self.find(info.local.port()) else {
            return;
        };
        let key = FlowKey::between(info.local, info.peer);
        let ip = link.len();
        let transport = ip + ip::header_bytes(&key.local);
        let start = transport + UDP_HEADER_BYTES;
        let Some((frame, len)) = copy_into_frame(request.bytes(), start, egress, counters) else {
            return;
        };
        let payload_end = start + len;
        let packet = Transport {
            link,
            ip,
            transport,
            end: payload_end,
            key,
            kind: TransportKind::Udp { payload_end },
        };
        self.handle(
            index,
            frame,
            &packet,
            payload_end,
            now,
            clock,
            egress,
            counters,
        );
    }

    fn find(&self, port: u16) -> Option<usize> {
        self.ports.iter().position(|service| service.port == port)
    }

    /// Has the service `index` handle the datagram in a frame, on the core or by the pool.
    #[allow(clippy::too_many_arguments)] // the datagram, and what a turn may use
    fn handle(
        &mut self,
        index: usize,
        mut frame: Frame,
        packet: &Transport,
        payload_end: usize,
        now: Instant,
        clock: &mut dyn Clock,
        egress: &mut Egress,
        counters: &Counters,
    ) {
        let service = &mut self.ports[index];
        let info = RequestInfo {
            local: packet.key.local_addr(),
            peer: packet.key.peer_addr(),
            now,
            end_of_stream: false,
            full: false,
        };
        let start = packet.transport + UDP_HEADER_BYTES;
        let len = payload_end - start;
        let payload_max = payload_max(self.ip_mtu, &packet.key.local);

        let buffer = egress.arena.buffer_mut(&mut frame);
        let room = (start + payload_max).min(buffer.len()).max(payload_end);
        let request = DatagramRequest::new(&mut buffer[start..room], len, &info, &mut self.outbox);
        let outcome = service
            .handler
            .run(&mut service.budget, now, clock, |handler| {
                handler.handle(request).into_outcome()
            });
        let outcome = match outcome {
            Some(outcome) => {
                self.called = Some(index);
                outcome.unwrap_or(DatagramOutcome::Ignore)
            }
            // The handler is with the pool.
            None => DatagramOutcome::Defer,
        };
        match outcome {
            DatagramOutcome::Defer => {
                self.defer(
                    index,
                    frame,
                    start..payload_end,
                    packet,
                    info,
                    egress,
                    counters,
                );
            }
            outcome => {
                counters.udp_requests.increment();
                self.carry_out(outcome, frame, packet, payload_max, egress, counters);
            }
        }
    }

    /// Sends, or does not.
    fn carry_out(
        &mut self,
        outcome: DatagramOutcome,
        mut frame: Frame,
        packet: &Transport,
        payload_max: usize,
        egress: &mut Egress,
        counters: &Counters,
    ) {
        let start = packet.transport + UDP_HEADER_BYTES;
        let len = match outcome {
            DatagramOutcome::Ignore | DatagramOutcome::Defer => {
                egress.arena.free(frame);
                return;
            }
            DatagramOutcome::InPlace { len } => {
                if len > payload_max {
                    counters.udp_replies_cut.increment();
                }
                len.min(payload_max)
            }
            DatagramOutcome::Outbox => {
                let buffer = &mut egress.arena.buffer_mut(&mut frame)[start..];
                let buffer_len = buffer.len().min(payload_max);
                fill_payload(
                    &mut buffer[..buffer_len],
                    &self.outbox.head,
                    &self.outbox.content,
                    counters,
                )
            }
        };
        let buffer = egress.arena.buffer_mut(&mut frame);
        packet.link.write(buffer);
        write_headers(&mut buffer[packet.ip..start + len], &packet.key);
        egress.arena.set_len(&mut frame, start + len);
        egress.send(frame);
    }

    #[allow(clippy::too_many_arguments)] // the request, taken apart
    fn defer(
        &mut self,
        index: usize,
        frame: Frame,
        range: std::ops::Range<usize>,
        packet: &Transport,
        info: RequestInfo,
        egress: &mut Egress,
        counters: &Counters,
    ) {
        let request = match egress.arena.lend(frame, range.clone()) {
            Ok(loan) => Deferred::lent(loan, info),
            Err(frame) => {
                counters.deferred_copied.increment();
                let deferred = Deferred::copied(&egress.arena.bytes(&frame)[range], info);
                egress.arena.free(frame);
                deferred
            }
        };
        let service = &self.ports[index];
        let Some(job) = job_for(service, request, packet.link, self.core.clone()) else {
            counters.deferred_refused.increment();
            return;
        };
        match self.pool.try_submit(job) {
            Ok(()) => counters.deferred.increment(),
            Err(job) => {
                counters.deferred_refused.increment();
                self.refuse(index, job, packet, info, egress, counters);
            }
        }
    }

    /// The slow path is full: the handler says what the client gets instead.
    fn refuse(
        &mut self,
        index: usize,
        job: Job,
        packet: &Transport,
        info: RequestInfo,
        egress: &mut Egress,
        counters: &Counters,
    ) {
        let Some(request) = job.cancel() else {
            return;
        };
        let start = packet.transport + UDP_HEADER_BYTES;
        let Some((mut frame, len)) = copy_into_frame(request.bytes(), start, egress, counters)
        else {
            return;
        };
        let payload_max = payload_max(self.ip_mtu, &packet.key.local);
        let buffer = &mut egress.arena.buffer_mut(&mut frame)[start..];
        let room = payload_max.min(buffer.len()).max(len);
        let request = DatagramRequest::new(&mut buffer[..room], len, &info, &mut self.outbox);
        // A handler that the pool is running at this moment says nothing, nor does one that panics.
        let service = &mut self.ports[index];
        self.called = Some(index);
        let outcome = service
            .handler
            .call(&mut service.budget, info.now, |handler| {
                handler.overloaded(request).into_outcome()
            })
            .and_then(Result::ok)
            .unwrap_or(DatagramOutcome::Ignore);
        self.carry_out(outcome, frame, packet, payload_max, egress, counters);
    }

    /// Sends a reply of the slow path.
    pub(crate) fn reply(
        &mut self,
        link: &LinkHeader,
        info: &RequestInfo,
        response: &Response,
        egress: &mut Egress,
        counters: &Counters,
    ) {
        let key = FlowKey::between(info.local, info.peer);
        let content = match &response.body {
            Body::Content(content) => content.as_ref(),
            Body::Empty | Body::Source(_) => &[],
        };
        let headers = ip::header_bytes(&key.local) + UDP_HEADER_BYTES;
        let wanted = response.head.len() + content.len();
        let len = wanted.min(payload_max(self.ip_mtu, &key.local));
        let sent = egress.emit(link, headers + len, counters, |packet| {
            fill_payload(&mut packet[headers..], &response.head, content, counters);
            write_headers(packet, &key);
        });
        if !sent {
            counters.replies_lost.increment();
        }
    }

    /// The service whose handler ran since the last call.
    pub(crate) fn take_called(&mut self) -> Option<&mut DatagramPort> {
        let index = self.called.take()?;
        self.ports.get_mut(index)
    }
}

/// Copies a payload into a free frame, to begin at `start`; returns the frame and the payload's length, `None` if no
/// frame is free.
fn copy_into_frame(
    payload: &[u8],
    start: usize,
    egress: &mut Egress,
    counters: &Counters,
) -> Option<(Frame, usize)> {
    let Some(mut frame) = egress.arena.alloc(Owner::Rx) else {
        counters.tx_no_frame.increment();
        return None;
    };
    let buffer = &mut egress.arena.buffer_mut(&mut frame)[start..];
    let len = payload.len().min(buffer.len());
    buffer[..len].copy_from_slice(&payload[..len]);
    Some((frame, len))
}

/// The job for a request that the core does not serve; `link` is the link header of a reply. `None` if the service has
/// no slow path.
fn job_for(
    service: &DatagramPort,
    request: Deferred,
    link: LinkHeader,
    core: MailboxSender,
) -> Option<Job> {
    if let Some(handler) = service.handler.demoted() {
        return Some(Job::Datagram {
            handler: Arc::clone(handler),
            slow: service.slow.clone(),
            request,
            link,
            core,
        });
    }
    let slow = service.slow.as_ref()?;
    let reply_to = ReplyTo {
        core,
        route: Route::Datagram {
            link,
            info: *request.info(),
        },
        consumed: 0,
    };
    Some(Job::Serve {
        slow: Arc::clone(slow),
        request,
        responder: Responder::new(reply_to),
    })
}

/// Sends a datagram that nobody asked for. Returns whether it was: the payload may be too long for one
/// packet, the IP versions may differ, and there may be no free frame.
pub(crate) fn send(
    local: SocketAddr,
    peer: SocketAddr,
    payload: &[u8],
    link: &LinkHeader,
    ip_mtu: usize,
    egress: &mut Egress,
    counters: &Counters,
) -> bool {
    let key = FlowKey::between(local, peer);
    if key.local.is_ipv4() != key.peer.is_ipv4() || payload.len() > payload_max(ip_mtu, &key.local)
    {
        return false;
    }
    let headers = ip::header_bytes(&key.local) + UDP_HEADER_BYTES;
    egress.emit(link, headers + payload.len(), counters, |packet| {
        packet[headers..].copy_from_slice(payload);
        write_headers(packet, &key);
    })
}

/// The largest payload of one datagram.
fn payload_max(ip_mtu: usize, local: &Address) -> usize {
    ip_mtu - ip::header_bytes(local) - UDP_HEADER_BYTES
}

/// Copies as much of the reply as fits; returns its length.
fn fill_payload(buffer: &mut [u8], head: &[u8], content: &[u8], counters: &Counters) -> usize {
    let head_len = head.len().min(buffer.len());
    buffer[..head_len].copy_from_slice(&head[..head_len]);
    let content_len = content.len().min(buffer.len() - head_len);
    buffer[head_len..head_len + content_len].copy_from_slice(&content[..content_len]);
    if head_len + content_len < head.len() + content.len() {
        counters.udp_replies_cut.increment();
    }
    head_len + content_len
}

/// Writes IP and UDP headers in front of the payload: a packet from our end to the peer's.
fn write_headers(packet: &mut [u8], key: &FlowKey) {
    let header = ip::write_header(packet, &key.local, &key.peer, ip::PROTOCOL_UDP);
    let datagram = &mut packet[header..];
    let len = datagram.len() as u16;
    datagram[0..2].copy_from_slice(&key.local_port.to_be_bytes());
    datagram[2..4].copy_from_slice(&key.peer_port.to_be_bytes());
    datagram[4..6].copy_from_slice(&len.to_be_bytes());
    datagram[6..8].fill(0);
    let sum = Sum::pseudo_header(&key.local, &key.peer, ip::PROTOCOL_UDP, len).plus(datagram);
    datagram[6..8].copy_from_slice(&sum.finish_udp());
}
