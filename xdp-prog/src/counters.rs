//! What became of the frames that the program saw: its per-CPU counters, by name.

use libbpf_rs::{MapCore, MapFlags, MapHandle};

use crate::error::MapError;

/// What the program did with a frame. Every frame is counted under exactly one outcome.
///
/// The same list, in the same order, as `enum outcome` in `bpf/outcome.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Outcome {
    /// Taken: an IP packet for an address that is ours alone.
    RedirectOwn,
    /// Taken: a TCP or UDP packet for a listed (address, protocol, port).
    RedirectPort,
    /// Taken: an ARP request or reply whose target address is ours alone.
    RedirectArp,
    /// Taken: a neighbour solicitation for an address of ours, sent to another address (its
    /// solicited-node group). One sent to the address itself counts as [`Outcome::RedirectOwn`].
    RedirectNd,
    /// Ours, but left to the kernel: no socket is registered for the receive queue.
    PassNoSocket,
    /// Left to the kernel: understood, and neither its address nor its port is ours.
    PassNotOurs,
    /// Left to the kernel: in a VLAN (its identifier is not 0), or with more than two tags.
    PassVlan,
    /// Left to the kernel: a fragment for an address that is not ours alone.
    PassFragment,
    /// Left to the kernel: IP for an address that is not ours alone, and neither TCP nor UDP to its
    /// final destination.
    PassProtocol,
    /// Left to the kernel: neither IP nor ARP for IP over Ethernet.
    PassEthertype,
    /// Left to the kernel: truncated, or with lengths that contradict each other.
    PassMalformed,
}

impl Outcome {
    /// How many outcomes there are.
    pub const COUNT: usize = 11;

    /// Every outcome, in the order of the counters.
    pub const ALL: [Outcome; Outcome::COUNT] = [
        Outcome::RedirectOwn,
        Outcome::RedirectPort,
        Outcome::RedirectArp,
        Outcome::RedirectNd,
        Outcome::PassNoSocket,
        Outcome::PassNotOurs,
        Outcome::PassVlan,
        Outcome::PassFragment,
        Outcome::PassProtocol,
        Outcome::PassEthertype,
        Outcome::PassMalformed,
    ];

    /// The name under which the outcome is reported.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::RedirectOwn => "redirect_own",
            Outcome::RedirectPort => "redirect_port",
            Outcome::RedirectArp => "redirect_arp",
            Outcome::RedirectNd => "redirect_nd",
            Outcome::PassNoSocket => "pass_no_socket",
            Outcome::PassNotOurs => "pass_not_ours",
            Outcome::PassVlan => "pass_vlan",
            Outcome::PassFragment => "pass_fragment",
            Outcome::PassProtocol => "pass_protocol",
            Outcome::PassEthertype => "pass_ethertype",
            Outcome::PassMalformed => "pass_malformed",
        }
    }

    /// Whether the frame went to a socket of ours; the kernel had it otherwise.
    pub fn is_redirect(self) -> bool {
        matches!(
            self,
            Outcome::RedirectOwn
                | Outcome::RedirectPort
                | Outcome::RedirectArp
                | Outcome::RedirectNd
        )
    }
}

/// Frames by outcome since the program was loaded, summed over the CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    frames: [u64; Outcome::COUNT],
}

impl Counters {
    /// Read the counters from their map. Frames that arrive meanwhile may be in some and not in others.
    pub(crate) fn read(map: &MapHandle) -> Result<Counters, MapError> {
        let mut counters = Counters::default();
        for (key, frames) in (0u32..).zip(&mut counters.frames) {
            let per_cpu = map
                .lookup_percpu(&key.to_ne_bytes(), MapFlags::ANY)
                .map_err(|source| MapError::new("counters", source))?;
            *frames = per_cpu
                .unwrap_or_default()
                .iter()
                .filter_map(|value| Some(u64::from_ne_bytes(*value.first_chunk()?)))
                .sum();
        }
        Ok(counters)
    }

    /// Frames with this outcome.
    pub fn get(&self, outcome: Outcome) -> u64 {
        self.frames[outcome as usize]
    }

    /// Name and number of frames of every outcome, in a fixed order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Outcome::ALL
            .iter()
            .map(|&outcome| (outcome.name(), self.get(outcome)))
    }

    /// Frames taken from the kernel.
    pub fn redirected(&self) -> u64 {
        self.sum(Outcome::is_redirect)
    }

    /// Frames left to the kernel.
    pub fn passed(&self) -> u64 {
        self.sum(|outcome| !outcome.is_redirect())
    }

    fn sum(&self, wanted: impl Fn(Outcome) -> bool) -> u64 {
        Outcome::ALL
            .iter()
            .filter(|&&outcome| wanted(outcome))
            .map(|&outcome| self.get(outcome))
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The program counts by position, so the two lists have to be the same.
    #[test]
    fn outcomes_are_those_of_the_program() {
        let in_c: Vec<String> = include_str!("bpf/outcome.h")
            .lines()
            .filter_map(|line| line.trim().strip_prefix("OUTCOME_")?.strip_suffix(','))
            .map(str::to_lowercase)
            .collect();
        let in_rust: Vec<&str> = Outcome::ALL.iter().map(|outcome| outcome.name()).collect();
        assert_eq!(
            in_c.split_last().unwrap(),
            (&"count".to_owned(), &in_c[..Outcome::COUNT])
        );
        assert_eq!(in_c[..Outcome::COUNT], in_rust);
        for (position, outcome) in Outcome::ALL.iter().enumerate() {
            assert_eq!(*outcome as usize, position);
            assert_eq!(
                outcome.is_redirect(),
                outcome.name().starts_with("redirect_")
            );
        }
    }

    /// An outcome that the program never returns would be a counter that never counts.
    #[test]
    fn every_outcome_is_used_by_the_program() {
        let source = include_str!("bpf/ilet.bpf.c");
        for outcome in Outcome::ALL {
            let name = format!("OUTCOME_{}", outcome.name().to_uppercase());
            assert!(source.contains(&name), "{name} is not in ilet.bpf.c");
        }
    }

    #[test]
    fn sums_split_all_frames_in_two() {
        let mut counters = Counters::default();
        for (frames, n) in counters.frames.iter_mut().zip(1..) {
            *frames = n;
        }
        assert_eq!(counters.redirected(), 1 + 2 + 3 + 4);
        assert_eq!(
            counters.redirected() + counters.passed(),
            counters.iter().map(|(_, frames)| frames).sum::<u64>()
        );
    }
}
