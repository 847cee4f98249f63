//! Why a received frame was dropped.

macro_rules! rejects {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// Why a received frame was dropped without an answer. One counter each.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Reject {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Reject {
            /// All reasons, in the order of their discriminants.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The counter's name.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

rejects! {
    /// Shorter than its headers say.
    Truncated = "drop_truncated",
    /// A packet longer than the interface's MTU.
    Oversized = "drop_oversized",
    /// Neither IP nor ARP.
    Ethertype = "drop_ethertype",
    /// The link-layer source is a group address.
    LinkSource = "drop_link_source",
    /// Sent to a link-layer address that is not ours, or unicast IP in a link-layer broadcast
    /// (RFC 1122 section 3.3.6).
    LinkDestination = "drop_link_destination",
    /// Wrong IP version, header length, total length, or extension header.
    IpHeader = "drop_ip_header",
    /// IPv4 header checksum.
    IpChecksum = "drop_ip_checksum",
    /// A fragment: this stack does not reassemble.
    IpFragment = "drop_ip_fragment",
    /// Source routing (RFC 7126 section 4.3, RFC 5095) or an option that says to discard.
    IpOption = "drop_ip_option",
    /// A source that cannot be answered: unspecified, loopback, multicast, broadcast, reserved.
    IpSource = "drop_ip_source",
    /// The source is one of our own addresses.
    IpOwnSource = "drop_ip_own_source",
    /// Source and destination are the same ("land").
    IpLand = "drop_ip_land",
    /// Not addressed to us.
    IpDestination = "drop_ip_destination",
    /// Neither TCP, UDP nor ICMP of the right version.
    IpProtocol = "drop_ip_protocol",
    /// TCP data offset, ports or flags that cannot be (flags: a reset that says more; on a connection or to a service's
    /// port also SYN with FIN, and neither SYN nor acknowledgement).
    TcpHeader = "drop_tcp_header",
    /// TCP checksum.
    TcpChecksum = "drop_tcp_checksum",
    /// UDP length or ports that cannot be.
    UdpHeader = "drop_udp_header",
    /// UDP checksum, or none over IPv6 (RFC 8200 section 8.1).
    UdpChecksum = "drop_udp_checksum",
    /// The sender left the TCP or UDP checksum to a card that is not there: the field has the sum of the
    /// pseudo-header, and nothing else.
    ChecksumLeft = "drop_checksum_left",
    /// ICMP message shorter than its header.
    IcmpHeader = "drop_icmp_header",
    /// ICMP checksum.
    IcmpChecksum = "drop_icmp_checksum",
    /// An ICMP message that needs no answer from us.
    IcmpIgnored = "drop_icmp_ignored",
    /// ARP or neighbour discovery that is no question about an address of ours.
    Neighbour = "drop_neighbour",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn discriminants_index_the_list() {
        for (index, reject) in Reject::ALL.iter().enumerate() {
            assert_eq!(*reject as usize, index);
        }
    }
}
