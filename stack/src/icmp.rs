//! ICMP: echo replies on the request's own frame, and "port unreachable" for closed UDP ports.

use smoltcp::wire::{Icmpv4DstUnreachable, Icmpv4Message, Icmpv6DstUnreachable, Icmpv6Message};

use crate::Instant;
use crate::arena::Frame;
use crate::egress::Egress;
use crate::telemetry::Counters;
use crate::token_bucket::TokenBucket;
use crate::wire::checksum::Sum;
use crate::wire::{Address, Transport, ip};

const ICMP_HEADER_BYTES: usize = 8;

/// Errors per second (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4 (f)), and how many at once.
const ERRORS_PER_SECOND: u32 = 1000;
const ERROR_BURST: u32 = 50;

/// The ICMP of one core.
#[derive(Debug)]
pub(crate) struct Icmp {
    errors: TokenBucket,
    ip_mtu: usize,
}

impl Icmp {
    pub(crate) fn new(ip_mtu: usize, now: Instant) -> Self {
        Self {
            errors: TokenBucket::new(ERRORS_PER_SECOND, ERROR_BURST, now),
            ip_mtu,
        }
    }

    /// Answers an echo request on its own frame (RFC 792, RFC 4443 section 4.2).
    pub(crate) fn echo(
        &self,
        mut frame: Frame,
        packet: &Transport,
        egress: &mut Egress,
        counters: &Counters,
    ) {
        let buffer = egress.arena.buffer_mut(&mut frame);
        packet.link.write(buffer);
        let bytes = &mut buffer[packet.ip..packet.end];
        let (local, peer) = (&packet.key.local, &packet.key.peer);
        write_message(bytes, local, peer, |message| {
            message[0] = if local.is_ipv4() {
                Icmpv4Message::EchoReply.into()
            } else {
                Icmpv6Message::EchoReply.into()
            };
        });
        egress.arena.set_len(&mut frame, packet.end);
        egress.send(frame);
        counters.icmp_echo_replies.increment();
    }

    /// Tells the sender of `frame` that nobody listens on the port. The frame is freed.
    pub(crate) fn port_unreachable(
        &mut self,
        frame: Frame,
        packet: &Transport,
        now: Instant,
        egress: &mut Egress,
        counters: &Counters,
    ) {
        if self.errors.take(now) {
            self.send_unreachable(&frame, packet, egress, counters);
        } else {
            counters.icmp_rate_limited.increment();
        }
        egress.arena.free(frame);
    }

    fn send_unreachable(
        &self,
        frame: &Frame,
        packet: &Transport,
        egress: &mut Egress,
        counters: &Counters,
    ) {
        let (local, peer) = (packet.key.local, packet.key.peer);
        let headers = ip::header_bytes(&local) + ICMP_HEADER_BYTES;
        // As much of the offending packet as fits 576 bytes (RFC 1812 section 4.3.2.3) or the minimum
        // MTU of IPv6 (RFC 4443 section 3.1).
        let message_max = if local.is_ipv4() { 576 } else { 1280 };
        let quoted_max = message_max.min(self.ip_mtu) - headers;
        let quoted_len = (packet.end - packet.ip).min(quoted_max);
        let memory = egress.arena.memory();
        let quoted = &memory.frame(frame)[packet.ip..packet.ip + quoted_len];
        let sent = egress.emit(&packet.link, headers + quoted_len, counters, |bytes| {
            write_message(bytes, &local, &peer, |message| {
                let (kind, code): (u8, u8) = if local.is_ipv4() {
                    (
                        Icmpv4Message::DstUnreachable.into(),
                        Icmpv4DstUnreachable::PortUnreachable.into(),
                    )
                } else {
                    (
                        Icmpv6Message::DstUnreachable.into(),
                        Icmpv6DstUnreachable::PortUnreachable.into(),
                    )
                };
                message[..ICMP_HEADER_BYTES].copy_from_slice(&[kind, code, 0, 0, 0, 0, 0, 0]);
                message[ICMP_HEADER_BYTES..].copy_from_slice(quoted);
            });
        });
        if sent {
            counters.icmp_unreachables.increment();
        }
    }
}

/// Writes the IP header, lets `fill` write the message behind it, and sets the message's checksum.
fn write_message(
    bytes: &mut [u8],
    source: &Address,
    destination: &Address,
    fill: impl FnOnce(&mut [u8]),
) {
    let protocol = if source.is_ipv4() {
        ip::PROTOCOL_ICMP
    } else {
        ip::PROTOCOL_ICMPV6
    };
    let header = ip::write_header(bytes, source, destination, protocol);
    let message = &mut bytes[header..];
    fill(message);
    message[2..4].fill(0);
    let sum = if source.is_ipv4() {
        Sum::default()
    } else {
        Sum::pseudo_header(source, destination, protocol, message.len() as u16)
    };
    let field = sum.plus(message).finish();
    message[2..4].copy_from_slice(&field);
}
