//! Owns what goes wrong on the client's link: nftables rules in the client's namespace that lose, change or
//! count packets of TCP. Neither end is told of a loss.

use std::fmt;
use std::fmt::Write as _;

use crate::lab::{CLIENT_IF, Lab};

/// The table that all rules are in.
const TABLE: &str = "netdev faults";

/// Which way packets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the client to the server.
    ToServer,
    /// From the server to the client.
    ToClient,
}

impl Way {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::ToServer, Self::ToClient];

    fn hook(self) -> &'static str {
        match self {
            Self::ToServer => "egress",
            Self::ToClient => "ingress",
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ToServer => "to_server",
            Self::ToClient => "to_client",
        })
    }
}

/// From now on loses the packets of TCP that go this way and satisfy `matching`, an expression of nftables
/// such as `numgen random mod 100 < 5`; an empty one matches all. Counted together with what other rules
/// of the same way lose.
pub fn lose(lab: &Lab, way: Way, matching: &str) {
    // A drop at egress is reported to the sender's TCP, which then takes the segment for not sent yet. A
    // frame on the loopback that is addressed to somebody else is lost without a word.
    let verdict = match way {
        Way::ToServer => "fwd to lo",
        Way::ToClient => "drop",
    };
    add_rule(lab, way, "lost", matching, verdict);
}

/// From now on takes an option, as nftables calls it, out of the client's SYNs.
pub fn strip_option(lab: &Lab, option: &str) {
    let change = format!("reset tcp option {option}");
    add_rule(lab, Way::ToServer, "seen", "tcp flags syn", &change);
}

/// From now on counts the packets of TCP that go this way, satisfy `matching` and were not lost by an
/// earlier rule. Counted together with what other rules of the same way count.
pub fn count(lab: &Lab, way: Way, matching: &str) {
    add_rule(lab, way, "seen", matching, "");
}

/// How many packets [`lose`] has lost this way since the last [`heal`].
pub fn lost(lab: &Lab, way: Way) -> u64 {
    read(lab, way, "lost")
}

/// How many packets [`count`] has counted this way since the last [`heal`].
pub fn counted(lab: &Lab, way: Way) -> u64 {
    read(lab, way, "seen")
}

/// Removes all rules and their counters.
pub fn heal(lab: &Lab) {
    nft(lab, &format!("delete table {TABLE}"));
}

fn add_rule(lab: &Lab, way: Way, counter: &str, matching: &str, verdict: &str) {
    let hook = way.hook();
    // Adding what is there already changes nothing, but for rules.
    let mut script = format!(
        "add table {TABLE}; add chain {TABLE} {way} \
         {{ type filter hook {hook} device {CLIENT_IF} priority 0; }};"
    );
    for counter in ["lost", "seen"] {
        let _ = write!(script, "add counter {TABLE} {counter}_{way};");
    }
    let _ = write!(
        script,
        "add rule {TABLE} {way} meta l4proto tcp {matching} counter name {counter}_{way} {verdict}"
    );
    nft(lab, &script);
}

fn read(lab: &Lab, way: Way, counter: &str) -> u64 {
    let listed = nft(lab, &format!("list counter {TABLE} {counter}_{way}"));
    let mut words = listed.split_whitespace().skip_while(|&w| w != "packets");
    let packets = words.nth(1).and_then(|number| number.parse().ok());
    packets.unwrap_or_else(|| panic!("no number of packets: {listed}"))
}

fn nft(lab: &Lab, script: &str) -> String {
    lab.client().run_ok("nft", &[script])
}
