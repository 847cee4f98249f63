//! The capabilities that a configuration needs and the process lacks. All of them are named in one error.

use interruptlet_xdp::{Capabilities, Capability};
use rustix::process::{Resource, getrlimit};

use super::StartError;
use super::error::MissingCapability;
use crate::config::{Config, Mode};
use crate::port::xsk::{BindMode, XskOptions};

/// The first port that may be bound without a capability, unless the system is configured otherwise (ip(7)).
const UNPRIVILEGED_PORTS_FROM: u16 = 1024;

/// The facts that the need for capabilities depends on.
#[derive(Debug, Clone, Copy)]
struct Needs {
    /// Bytes of all queues' frames, which the kernel locks in memory.
    frame_bytes: u64,
    /// Bytes that may be locked without CAP_IPC_LOCK; `None` if there is no limit.
    lock_limit: Option<u64>,
    /// The lowest port that is taken from the kernel, if the address is shared.
    lowest_shared_port: Option<u16>,
    /// The first port that may be bound without a capability.
    unprivileged_ports_from: u16,
}

/// Refuses a configuration for which the calling thread lacks capabilities. `mtu` is the interface's. If the thread's
/// capabilities cannot be found out, nothing is refused here: the kernel then refuses each step that lacks one.
pub(super) fn check(
    config: &Config,
    mtu: usize,
    tcp_ports: &[u16],
    udp_ports: &[u16],
) -> Result<(), StartError> {
    let Some(effective) = Capabilities::effective() else {
        return Ok(());
    };
    // Where copy mode is allowed, it is used if the memory for zero-copy cannot be locked, and it needs less.
    let least = match config.mode {
        Mode::ZeroCopy => BindMode::ZeroCopy,
        Mode::Auto | Mode::Copy => BindMode::Copy,
    };
    let frame_bytes = config.queues.iter().map(|queue| {
        let options = XskOptions::new(&config.interface, *queue, mtu, &config.limits);
        options.locked_bytes(least)
    });
    let ports = tcp_ports.iter().chain(udp_ports).copied();
    let needs = Needs {
        frame_bytes: frame_bytes.sum(),
        lock_limit: getrlimit(Resource::Memlock).current,
        lowest_shared_port: ports.min().filter(|_| config.shared_address),
        unprivileged_ports_from: unprivileged_ports_from(),
    };
    let missing = missing(effective, &needs);
    if missing.is_empty() {
        return Ok(());
    }
    Err(StartError::MissingCapabilities { missing })
}

/// Reads the first port of this network namespace that may be bound without a capability.
fn unprivileged_ports_from() -> u16 {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(UNPRIVILEGED_PORTS_FROM)
}

fn missing(effective: Capabilities, needs: &Needs) -> Vec<MissingCapability> {
    let mut missing = Vec::new();
    let mut need = |capability, purpose: String| {
        if !effective.allows(capability) {
            missing.push(MissingCapability {
                capability,
                purpose,
            });
        }
    };
    need(Capability::NetAdmin, "to attach the XDP program".to_owned());
    need(
        Capability::NetRaw,
        "to open AF_XDP and packet sockets".to_owned(),
    );
    need(Capability::Bpf, "to load the XDP program".to_owned());
    need(
        Capability::Perfmon,
        "for the program's arithmetic on packet pointers".to_owned(),
    );
    if let Some(limit) = needs.lock_limit
        && needs.frame_bytes > limit
    {
        let (frames, limit) = (needs.frame_bytes >> 20, limit >> 10);
        need(
            Capability::IpcLock,
            format!("to lock {frames} MiB of frames in memory, beyond the limit of {limit} KiB"),
        );
    }
    if let Some(port) = needs.lowest_shared_port
        && port < needs.unprivileged_ports_from
    {
        let from = needs.unprivileged_ports_from;
        need(
            Capability::NetBindService,
            format!("to take port {port}, which is below {from}, from the kernel"),
        );
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEEDS: Needs = Needs {
        frame_bytes: 16 << 20,
        lock_limit: Some(8 << 20),
        lowest_shared_port: Some(80),
        unprivileged_ports_from: 1024,
    };
    const NAMES: [&str; 6] = [
        "CAP_NET_ADMIN",
        "CAP_NET_RAW",
        "CAP_BPF",
        "CAP_PERFMON",
        "CAP_IPC_LOCK",
        "CAP_NET_BIND_SERVICE",
    ];

    fn names(bits: u64, needs: &Needs) -> Vec<&'static str> {
        missing(Capabilities::from_bits(bits), needs)
            .iter()
            .map(|missing| missing.capability.name())
            .collect()
    }

    #[test]
    fn all_missing_capabilities_are_named_at_once_with_what_they_are_for() {
        assert_eq!(names(0, &NEEDS), NAMES);
        let missing = missing(Capabilities::from_bits(0), &NEEDS);
        let line = StartError::MissingCapabilities { missing }.to_string();
        for word in NAMES.iter().chain(&[
            "load",
            "attach",
            "AF_XDP",
            "16 MiB",
            "limit of 8192 KiB",
            "port 80",
            "below 1024",
            "LimitMEMLOCK",
        ]) {
            assert!(line.contains(word), "no {word:?} in: {line}");
        }
        assert!(!line.contains('\n') && !line.contains("  "), "{line}");
    }

    #[test]
    fn what_the_configuration_does_not_need_is_not_asked_for() {
        let own = Needs {
            lowest_shared_port: None,
            ..NEEDS
        };
        assert_eq!(names(0, &own), NAMES[..5]);
        for lock_limit in [None, Some(16 << 20)] {
            let small = Needs { lock_limit, ..own };
            assert_eq!(names(0, &small), NAMES[..4]);
        }
        let high = Needs {
            lowest_shared_port: Some(1024),
            ..NEEDS
        };
        assert_eq!(names(0, &high), NAMES[..5]);
        let low_is_free = Needs {
            unprivileged_ports_from: 0,
            ..NEEDS
        };
        assert_eq!(names(0, &low_is_free), NAMES[..5]);
    }

    #[test]
    fn what_is_there_is_not_missing() {
        assert_eq!(names(u64::MAX, &NEEDS), [""; 0]);
        // CAP_SYS_ADMIN stands for CAP_BPF and CAP_PERFMON.
        assert_eq!(
            names(1 << 21 | 1 << 12 | 1 << 13 | 1 << 10, &NEEDS),
            ["CAP_IPC_LOCK"]
        );
    }
}
