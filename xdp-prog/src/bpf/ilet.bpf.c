// SPDX-License-Identifier: (MIT OR GPL-2.0)
/*
 * Decides, for every received frame, whether it is ours (to the AF_XDP socket of the queue) or the
 * kernel's (XDP_PASS). Only the maps filled at start decide; whatever is not understood is the
 * kernel's. The program never drops a frame and never writes to one.
 *
 * Header lengths are added to packet pointers, which the verifier allows only with CAP_PERFMON; so the
 * loader needs that beside CAP_BPF and CAP_NET_ADMIN.
 */
#include <linux/bpf.h>
#include <linux/icmpv6.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <stdbool.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "outcome.h"

/* Capacities of the maps. The loader reads them from the object and checks the rules against them. */
#define OWN_MAX 256
#define PORTS_MAX 4096
#define QUEUES_MAX 256

#define VLAN_TAGS_MAX 2
#define VLAN_VID_MASK 0x0fff
#define IPV4_MORE_FRAGMENTS 0x2000
#define IPV4_OFFSET_MASK 0x1fff
/* RFC 8200, section 4.1 lists six; a bound keeps the verifier and the receiving core out of trouble. */
#define EXTENSIONS_MAX 8
#define ND_NEIGHBOUR_SOLICITATION 135
/* <linux/if_arp.h> has these, but needs the C library's headers for the target. */
#define ARP_HARDWARE_ETHERNET 1
#define ARP_REQUEST 1
#define ARP_REPLY 2

/* Keys. Their twins, and what fills them, are in `rules.rs`. Addresses and ports as on the wire. */
struct own4_key {
	__u32 prefix_bits;
	__u8 address[4];
};

struct own6_key {
	__u32 prefix_bits;
	__u8 address[16];
};

/* `family` is 4 or 6. An IPv4 address is stored in its IPv6-mapped form. There is no padding. */
struct port_key {
	__u8 address[16];
	__be16 port;
	__u8 protocol;
	__u8 family;
};

struct vlan_tag {
	__be16 control;
	__be16 ethertype;
};

/* ARP for IPv4 over Ethernet (RFC 826); the first five fields say that it is. */
struct arp_ipv4 {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_length;
	__u8 protocol_length;
	__be16 operation;
	__u8 sender_link[ETH_ALEN];
	__u8 sender[4];
	__u8 target_link[ETH_ALEN];
	__u8 target[4];
};

struct nd_solicitation {
	struct icmp6hdr icmp;
	__u8 target[16];
};

/* The first bytes of every extension header but the fragment header (RFC 8200; AH: RFC 4302). */
struct extension {
	__u8 next;
	__u8 length;
	__u8 type;
	__u8 segments_left;
};

/* Addresses and prefixes that are ours alone: the value is not used. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, OWN_MAX);
	__type(key, struct own4_key);
	__type(value, __u8);
} own4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, OWN_MAX);
	__type(key, struct own6_key);
	__type(value, __u8);
} own6 SEC(".maps");

/* Ports that are ours on addresses shared with the kernel: the value is not used. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, PORTS_MAX);
	__type(key, struct port_key);
	__type(value, __u8);
} ports SEC(".maps");

/* The AF_XDP socket of each receive queue. */
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, QUEUES_MAX);
	__type(key, __u32);
	__type(value, __u32);
} xsks SEC(".maps");

/* Frames by outcome. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, OUTCOME_COUNT);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

static __always_inline bool is_own4(const void *address)
{
	struct own4_key key = { .prefix_bits = 32 };

	__builtin_memcpy(key.address, address, sizeof(key.address));
	return bpf_map_lookup_elem(&own4, &key) != NULL;
}

static __always_inline bool is_own6(const void *address)
{
	struct own6_key key = { .prefix_bits = 128 };

	__builtin_memcpy(key.address, address, sizeof(key.address));
	return bpf_map_lookup_elem(&own6, &key) != NULL;
}

/*
 * Bytes from `packet` to the end of the frame. Lengths from headers are compared with this: `packet + length` is not
 * a pointer that every verifier accepts, since some (Linux 6.12) lose the bounds of a number whose bytes were swapped.
 */
static __always_inline __u64 bytes_left(const void *packet, const void *data_end)
{
	return (__u64)data_end - (__u64)packet;
}

/* `length` bytes of transport header and payload; the address and the family are already in `key`. */
static __always_inline enum outcome classify_port(const void *transport, const void *data_end,
						  __u32 length, __u8 protocol, struct port_key *key)
{
	const struct udphdr *udp = transport;
	__u32 need;

	if (protocol == IPPROTO_TCP)
		need = sizeof(struct tcphdr);
	else if (protocol == IPPROTO_UDP)
		need = sizeof(struct udphdr);
	else
		return OUTCOME_PASS_PROTOCOL;

	/* The ports are the same two fields in both headers; the length decides about the rest. */
	if (length < need || (const void *)(udp + 1) > data_end)
		return OUTCOME_PASS_MALFORMED;

	key->protocol = protocol;
	key->port = udp->dest;
	return bpf_map_lookup_elem(&ports, key) ? OUTCOME_REDIRECT_PORT : OUTCOME_PASS_NOT_OURS;
}

static __always_inline enum outcome classify_ipv4(const void *packet, const void *data_end)
{
	const struct iphdr *ip = packet;
	struct port_key key = { .address = { [10] = 0xff, [11] = 0xff }, .family = 4 };
	__u32 header_length, total_length;

	if ((const void *)(ip + 1) > data_end)
		return OUTCOME_PASS_MALFORMED;

	header_length = ip->ihl * 4;
	total_length = bpf_ntohs(ip->tot_len);
	if (ip->version != 4 || header_length < sizeof(*ip) || total_length < header_length ||
	    total_length > bytes_left(packet, data_end))
		return OUTCOME_PASS_MALFORMED;

	if (is_own4(&ip->daddr))
		return OUTCOME_REDIRECT_OWN;

	/* Only the first fragment has a port, and the kernel can only reassemble all or nothing. */
	if (ip->frag_off & bpf_htons(IPV4_MORE_FRAGMENTS | IPV4_OFFSET_MASK))
		return OUTCOME_PASS_FRAGMENT;

	__builtin_memcpy(&key.address[12], &ip->daddr, 4);
	return classify_port(packet + header_length, data_end, total_length - header_length,
			     ip->protocol, &key);
}

/* A neighbour solicitation goes to its target's multicast group (RFC 4861, section 4.3). */
static __always_inline enum outcome classify_icmpv6(const void *message, const void *data_end,
						    __u32 length)
{
	const struct nd_solicitation *nd = message;

	if (length < sizeof(nd->icmp) || (const void *)(&nd->icmp + 1) > data_end)
		return OUTCOME_PASS_MALFORMED;
	if (nd->icmp.icmp6_type != ND_NEIGHBOUR_SOLICITATION)
		return OUTCOME_PASS_PROTOCOL;
	if (length < sizeof(*nd) || (const void *)(nd + 1) > data_end)
		return OUTCOME_PASS_MALFORMED;

	return is_own6(nd->target) ? OUTCOME_REDIRECT_ND : OUTCOME_PASS_NOT_OURS;
}

static __always_inline enum outcome classify_ipv6(const void *packet, const void *data_end)
{
	const struct ipv6hdr *ip = packet;
	const struct extension *extension;
	struct port_key key = { .family = 6 };
	__u32 offset = sizeof(*ip), end, length;
	__u8 next;

	if ((const void *)(ip + 1) > data_end)
		return OUTCOME_PASS_MALFORMED;

	end = sizeof(*ip) + bpf_ntohs(ip->payload_len);
	if (ip->version != 6 || end > bytes_left(packet, data_end))
		return OUTCOME_PASS_MALFORMED;

	if (is_own6(&ip->daddr))
		return OUTCOME_REDIRECT_OWN;

	next = ip->nexthdr;
	/* One more turn than there may be extension headers: the last one sees what follows them. */
	for (int i = 0; i <= EXTENSIONS_MAX; i++) {
		switch (next) {
		case IPPROTO_FRAGMENT:
			/* Even of a datagram in one piece: as for IPv4, the kernel reassembles. */
			return OUTCOME_PASS_FRAGMENT;
		case IPPROTO_HOPOPTS:
		case IPPROTO_ROUTING:
		case IPPROTO_DSTOPTS:
		case IPPROTO_AH:
			break;
		case IPPROTO_ICMPV6:
			return classify_icmpv6(packet + offset, data_end, end - offset);
		default:
			__builtin_memcpy(key.address, &ip->daddr, sizeof(key.address));
			return classify_port(packet + offset, data_end, end - offset, next, &key);
		}

		extension = packet + offset;
		if ((const void *)(extension + 1) > data_end)
			return OUTCOME_PASS_MALFORMED;
		/* With segments left this address is a waypoint, and the ports are not for it. */
		if (next == IPPROTO_ROUTING && extension->segments_left)
			return OUTCOME_PASS_PROTOCOL;
		/* AH counts in 4 bytes, without the first 8; the others in 8, without the first 8. */
		length = next == IPPROTO_AH ? (extension->length + 2) * 4
					    : (extension->length + 1) * 8;
		next = extension->next;
		offset += length;
		if (offset > end)
			return OUTCOME_PASS_MALFORMED;
	}
	return OUTCOME_PASS_MALFORMED;
}

static __always_inline enum outcome classify_arp(const void *packet, const void *data_end)
{
	const struct arp_ipv4 *arp = packet;

	if ((const void *)arp->sender_link > data_end)
		return OUTCOME_PASS_MALFORMED;
	if (arp->hardware != bpf_htons(ARP_HARDWARE_ETHERNET) ||
	    arp->protocol != bpf_htons(ETH_P_IP) || arp->hardware_length != ETH_ALEN ||
	    arp->protocol_length != sizeof(arp->target) ||
	    (arp->operation != bpf_htons(ARP_REQUEST) && arp->operation != bpf_htons(ARP_REPLY)))
		return OUTCOME_PASS_ETHERTYPE;
	if ((const void *)(arp + 1) > data_end)
		return OUTCOME_PASS_MALFORMED;

	return is_own4(arp->target) ? OUTCOME_REDIRECT_ARP : OUTCOME_PASS_NOT_OURS;
}

static __always_inline bool is_vlan(__be16 ethertype)
{
	return ethertype == bpf_htons(ETH_P_8021Q) || ethertype == bpf_htons(ETH_P_8021AD);
}

static __always_inline enum outcome classify(const void *data, const void *data_end)
{
	const struct ethhdr *ethernet = data;
	const void *packet = ethernet + 1;
	__be16 ethertype;

	if (packet > data_end)
		return OUTCOME_PASS_MALFORMED;

	ethertype = ethernet->h_proto;
	for (int i = 0; i < VLAN_TAGS_MAX && is_vlan(ethertype); i++) {
		const struct vlan_tag *tag = packet;

		packet = tag + 1;
		if (packet > data_end)
			return OUTCOME_PASS_MALFORMED;
		/* Identifier 0 is a priority without a VLAN (IEEE 802.1Q, table 9-2). */
		if (tag->control & bpf_htons(VLAN_VID_MASK))
			return OUTCOME_PASS_VLAN;
		ethertype = tag->ethertype;
	}

	if (ethertype == bpf_htons(ETH_P_IP))
		return classify_ipv4(packet, data_end);
	if (ethertype == bpf_htons(ETH_P_IPV6))
		return classify_ipv6(packet, data_end);
	if (ethertype == bpf_htons(ETH_P_ARP))
		return classify_arp(packet, data_end);
	return is_vlan(ethertype) ? OUTCOME_PASS_VLAN : OUTCOME_PASS_ETHERTYPE;
}

static __always_inline bool is_ours(enum outcome outcome)
{
	return outcome == OUTCOME_REDIRECT_OWN || outcome == OUTCOME_REDIRECT_PORT ||
	       outcome == OUTCOME_REDIRECT_ARP || outcome == OUTCOME_REDIRECT_ND;
}

SEC("xdp")
int ilet(struct xdp_md *ctx)
{
	enum outcome outcome = classify((const void *)(long)ctx->data,
					(const void *)(long)ctx->data_end);
	__u32 queue = ctx->rx_queue_index;
	__u32 counter;
	__u64 *count;

	if (is_ours(outcome) && !bpf_map_lookup_elem(&xsks, &queue))
		outcome = OUTCOME_PASS_NO_SOCKET;

	counter = outcome;
	count = bpf_map_lookup_elem(&counters, &counter);
	if (count)
		*count += 1;

	/* XDP_PASS as the flag: should the socket have gone since the lookup, the kernel gets the frame. */
	return is_ours(outcome) ? bpf_redirect_map(&xsks, queue, XDP_PASS) : XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
