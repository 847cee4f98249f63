//! The queue as smoltcp sees it: one packet in, packets out into frames of the arena.

use smoltcp::phy::{self, ChecksumCapabilities, DeviceCapabilities, Medium};

use crate::Instant;
use crate::egress::Egress;
use crate::telemetry::Counters;
use crate::wire::LinkHeader;

/// A device for the length of one call into smoltcp.
pub(crate) struct Device<'a> {
    /// The packet to take in, from its IP header on.
    pub(crate) received: Option<&'a [u8]>,
    pub(crate) egress: &'a mut Egress,
    /// Written in front of every packet sent.
    pub(crate) link: &'a LinkHeader,
    /// Bytes of an IP packet at most.
    pub(crate) ip_mtu: usize,
    pub(crate) counters: &'a Counters,
    /// Packets that smoltcp sent through this device.
    pub(crate) sent: usize,
}

impl phy::Device for Device<'_> {
    type RxToken<'a>
        = RxToken<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = TxToken<'a>
    where
        Self: 'a;

    fn receive(&mut self, _now: Instant) -> Option<(RxToken<'_>, TxToken<'_>)> {
        let packet = self.received.take()?;
        Some((RxToken { packet }, self.tx_token()))
    }

    fn transmit(&mut self, _now: Instant) -> Option<TxToken<'_>> {
        // Without a frame smoltcp keeps the segment and is asked again.
        if !self.egress.has_room() {
            self.counters.tx_no_frame.increment();
            return None;
        }
        Some(self.tx_token())
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.ip_mtu;
        // `wire::parse` has verified what comes in.
        let mut checksum = ChecksumCapabilities::default();
        checksum.ipv4 = phy::Checksum::Tx;
        checksum.tcp = phy::Checksum::Tx;
        capabilities.checksum = checksum;
        capabilities
    }
}

impl Device<'_> {
    fn tx_token(&mut self) -> TxToken<'_> {
        TxToken {
            egress: self.egress,
            link: self.link,
            counters: self.counters,
            sent: &mut self.sent,
        }
    }
}

pub(crate) struct RxToken<'a> {
    packet: &'a [u8],
}

impl phy::RxToken for RxToken<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.packet)
    }
}

pub(crate) struct TxToken<'a> {
    egress: &'a mut Egress,
    link: &'a LinkHeader,
    counters: &'a Counters,
    sent: &'a mut usize,
}

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        match self.egress.packet(self.link, len, self.counters) {
            Some(mut frame) => {
                let end = frame.len();
                let result = f(&mut self.egress.arena.buffer_mut(&mut frame)[end - len..end]);
                self.egress.queue.push(frame);
                *self.sent += 1;
                result
            }
            // An immediate answer (a reset, a duplicate ACK) may find no free frame. smoltcp insists on
            // writing it, so it is written to nowhere: the peer will ask again.
            None => f(&mut vec![0; len]),
        }
    }
}
