//! Which of the capabilities that an XDP program needs the calling thread lacks.

use std::fs;

/// Stands for CAP_BPF and CAP_PERFMON (capabilities(7)).
const SYS_ADMIN: u32 = 21;
const NET_ADMIN: u32 = 12;

/// What loading and attaching need, as (bit, name) of <linux/capability.h>: CAP_NET_ADMIN for XDP and
/// AF_XDP maps, CAP_PERFMON for arithmetic on packet pointers, CAP_BPF for all of it.
const NEEDED: [(u32, &str); 3] = [
    (39, "CAP_BPF"),
    (NET_ADMIN, "CAP_NET_ADMIN"),
    (38, "CAP_PERFMON"),
];

/// The names of the needed capabilities that are not in effect for this thread; none if that cannot be
/// found out.
pub(crate) fn missing() -> Vec<&'static str> {
    fs::read_to_string("/proc/thread-self/status")
        .ok()
        .and_then(|status| effective(&status))
        .map_or_else(Vec::new, missing_of)
}

/// The effective set in the text of a `status` file (proc_pid_status(5)).
fn effective(status: &str) -> Option<u64> {
    let hex = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(hex.trim(), 16).ok()
}

fn missing_of(effective: u64) -> Vec<&'static str> {
    let has = |bit: u32| effective & (1 << bit) != 0;
    NEEDED
        .iter()
        .filter(|&&(bit, _)| !has(bit) && (bit == NET_ADMIN || !has(SYS_ADMIN)))
        .map(|&(_, name)| name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_set_is_found() {
        let status =
            "Name:\tx\nCapPrm:\t000001ffffffffff\nCapEff:\t0000000000001000\nSeccomp:\t0\n";
        assert_eq!(effective(status), Some(1 << 12));
        assert_eq!(effective("Name:\tx\n"), None);
        assert_eq!(effective("CapEff:\tnonsense\n"), None);
    }

    #[test]
    fn the_missing_ones_are_named() {
        assert_eq!(missing_of(0), ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"]);
        assert_eq!(missing_of(1 << 39 | 1 << 38), ["CAP_NET_ADMIN"]);
        assert_eq!(missing_of(1 << 39 | 1 << 38 | 1 << 12), [""; 0]);
        assert_eq!(missing_of(1 << 21), ["CAP_NET_ADMIN"]);
        assert_eq!(missing_of(1 << 21 | 1 << 12), [""; 0]);
    }
}
