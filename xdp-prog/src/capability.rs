//! The capabilities in effect for the calling thread, and the ones that an XDP program needs and the thread lacks.

use std::fs;

/// A capability (capabilities(7)). The value is its bit in <linux/capability.h>.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Capability {
    /// CAP_NET_BIND_SERVICE
    NetBindService = 10,
    /// CAP_NET_ADMIN
    NetAdmin = 12,
    /// CAP_NET_RAW
    NetRaw = 13,
    /// CAP_IPC_LOCK
    IpcLock = 14,
    /// CAP_SYS_ADMIN, which stands for CAP_BPF and CAP_PERFMON
    SysAdmin = 21,
    /// CAP_PERFMON
    Perfmon = 38,
    /// CAP_BPF
    Bpf = 39,
}

impl Capability {
    /// Returns the name, as in capabilities(7).
    pub const fn name(self) -> &'static str {
        match self {
            Self::NetBindService => "CAP_NET_BIND_SERVICE",
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::NetRaw => "CAP_NET_RAW",
            Self::IpcLock => "CAP_IPC_LOCK",
            Self::SysAdmin => "CAP_SYS_ADMIN",
            Self::Perfmon => "CAP_PERFMON",
            Self::Bpf => "CAP_BPF",
        }
    }
}

/// A set of capabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities(u64);

impl Capabilities {
    /// Returns those in effect for the calling thread; `None` if that cannot be found out.
    pub fn effective() -> Option<Self> {
        let status = fs::read_to_string("/proc/thread-self/status").ok()?;
        Self::in_status(&status)
    }

    /// Returns the effective set in the text of a `status` file (proc_pid_status(5)).
    fn in_status(status: &str) -> Option<Self> {
        let hex = status
            .lines()
            .find_map(|line| line.strip_prefix("CapEff:"))?;
        u64::from_str_radix(hex.trim(), 16).ok().map(Self)
    }

    /// Returns the set whose bits are `bits`.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Returns whether the set allows what `capability` allows, by itself or by CAP_SYS_ADMIN.
    pub fn allows(self, capability: Capability) -> bool {
        let has = |capability: Capability| self.0 & (1 << capability as u32) != 0;
        let stands_for_it = matches!(capability, Capability::Bpf | Capability::Perfmon);
        has(capability) || stands_for_it && has(Capability::SysAdmin)
    }
}

/// Capabilities that loading and attaching need: CAP_NET_ADMIN for XDP and AF_XDP maps, CAP_PERFMON for arithmetic on
/// packet pointers, CAP_BPF for all of it.
const NEEDED: [Capability; 3] = [Capability::Bpf, Capability::NetAdmin, Capability::Perfmon];

/// The names of the needed capabilities that are not in effect for this thread; none if that cannot be
/// found out.
pub(crate) fn missing() -> Vec<&'static str> {
    Capabilities::effective().map_or_else(Vec::new, missing_of)
}

fn missing_of(effective: Capabilities) -> Vec<&'static str> {
    NEEDED
        .iter()
        .filter(|capability| !effective.allows(**capability))
        .map(|capability| capability.name())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_set_is_found() {
        let status =
            "Name:\tx\nCapPrm:\t000001ffffffffff\nCapEff:\t0000000000001000\nSeccomp:\t0\n";
        assert_eq!(Capabilities::in_status(status), Some(Capabilities(1 << 12)));
        assert_eq!(Capabilities::in_status("Name:\tx\n"), None);
        assert_eq!(Capabilities::in_status("CapEff:\tnonsense\n"), None);
    }

    #[test]
    fn the_missing_ones_are_named() {
        let missing = |bits| missing_of(Capabilities(bits));
        assert_eq!(missing(0), ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"]);
        assert_eq!(missing(1 << 39 | 1 << 38), ["CAP_NET_ADMIN"]);
        assert_eq!(missing(1 << 39 | 1 << 38 | 1 << 12), [""; 0]);
        assert_eq!(missing(1 << 21), ["CAP_NET_ADMIN"]);
        assert_eq!(missing(1 << 21 | 1 << 12), [""; 0]);
    }
}
