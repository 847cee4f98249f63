/* SPDX-License-Identifier: (MIT OR GPL-2.0) */
/*
 * Every outcome of the program. Each frame is counted under exactly one of them, so the sum of the
 * counters is the number of frames seen. `counters.rs` has the same list under the same names; a test
 * there compares the two.
 */
#ifndef ILET_OUTCOME_H
#define ILET_OUTCOME_H

enum outcome {
	/* An IP packet for an address that is ours alone. */
	OUTCOME_REDIRECT_OWN,
	/* A TCP or UDP packet for a listed (address, protocol, port). */
	OUTCOME_REDIRECT_PORT,
	/* An ARP request or reply whose target address is ours alone. */
	OUTCOME_REDIRECT_ARP,
	/* A neighbour solicitation for an address of ours, sent to another address (its group). */
	OUTCOME_REDIRECT_ND,
	/* Ours, but no socket is registered for the receive queue. */
	OUTCOME_PASS_NO_SOCKET,
	/* Understood, and neither its address nor its port is ours. */
	OUTCOME_PASS_NOT_OURS,
	/* In a VLAN (its identifier is not 0), or with more than two tags. */
	OUTCOME_PASS_VLAN,
	/* A fragment for an address that is not ours alone. */
	OUTCOME_PASS_FRAGMENT,
	/* IP for an address that is not ours alone, and neither TCP nor UDP to its final destination. */
	OUTCOME_PASS_PROTOCOL,
	/* Neither IP nor ARP for IP over Ethernet. */
	OUTCOME_PASS_ETHERTYPE,
	/* Truncated, or lengths that contradict each other. */
	OUTCOME_PASS_MALFORMED,
	/* Not an outcome: how many there are. */
	OUTCOME_COUNT,
};

#endif
