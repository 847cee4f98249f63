//! What can go wrong, each with one line that says what, why and what to do.

use std::io;

use thiserror::Error;

use crate::rules::RuleError;

/// Why the program was not attached. Nothing is left behind: no program, no map.
#[derive(Debug, Error)]
pub enum AttachError {
    /// No interface of this name in this network namespace.
    #[error("no network interface is called {interface:?} here: `ip link` lists those there are")]
    NoSuchInterface {
        /// The name asked for.
        interface: String,
    },
    /// A rule that makes no sense, or too many of them.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// The thread lacks a capability.
    #[error(
        "an XDP program may not be loaded without {}: run as root or grant it (setcap, AmbientCapabilities=)",
        missing.join(" and ")
    )]
    MissingCapability {
        /// The names of those missing, as in capabilities(7).
        missing: Vec<&'static str>,
    },
    /// Refused although the capabilities are there, for all this process can see.
    #[error(
        "the kernel does not let this process {action} an XDP program ({source}) although it has the \
         capabilities: a user namespace, a container's seccomp filter or kernel lockdown forbids it"
    )]
    NotPermitted {
        /// "load" or "attach".
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The interface has an XDP program, and there can be only one.
    #[error(
        "{interface} already has an XDP program, {}: stop what attached it, or detach it with \
         `ip link set dev {interface} xdp off`",
        program_label(*id, name.as_deref())
    )]
    OtherProgram {
        /// The name of the interface.
        interface: String,
        /// The identifier of the program that is there (`bpftool prog show id ID` tells more).
        id: u32,
        /// Its name, if it has one that may be read.
        name: Option<String>,
    },
    /// Native XDP keeps a frame in one page.
    #[error(
        "the MTU of {interface} ({mtu} bytes) or of its veth peer is too large for native XDP, which keeps a \
         frame in one page: set both to {max} or less, as `ip link set dev {interface} mtu 1500` does"
    )]
    MtuTooLarge {
        /// The name of the interface.
        interface: String,
        /// Its MTU in bytes.
        mtu: u32,
        /// The largest that drivers usually take, in bytes.
        max: u32,
    },
    /// The kernel did not accept the program or one of its maps.
    #[error(
        "the kernel does not load the XDP program ({reason}): it has to have BPF and XDP sockets, and Linux 6.1 is the oldest that was tried"
    )]
    Load {
        /// The end of the verifier's log, or what libbpf said, in one line.
        reason: String,
        /// The error of the system call.
        source: libbpf_rs::Error,
    },
    /// A map could not be filled.
    #[error(transparent)]
    Map(#[from] MapError),
    /// Any other refusal, natively and in the kernel's generic mode.
    #[error(
        "the XDP program cannot be attached to {interface} ({source}): the kernel log (`dmesg`) may say why"
    )]
    Attach {
        /// The name of the interface.
        interface: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// A map of the program could not be read or written.
#[derive(Debug, Error)]
#[error("the map {map:?} of the XDP program cannot be used: {source}")]
pub struct MapError {
    /// The name of the map in the program.
    pub map: &'static str,
    /// The error of the system call.
    pub source: libbpf_rs::Error,
}

impl MapError {
    pub(crate) fn new(map: &'static str, source: libbpf_rs::Error) -> MapError {
        MapError { map, source }
    }
}

/// Why a socket was not registered for a queue.
#[derive(Debug, Error)]
pub enum RegisterError {
    /// The map of sockets is smaller.
    #[error("queue {queue} is beyond the {queues} that the XDP program can serve: use a lower one")]
    QueueOutOfRange {
        /// The queue asked for.
        queue: u32,
        /// How many there can be, from 0.
        queues: u32,
    },
    /// The kernel does not take this descriptor.
    #[error(
        "the socket for queue {queue} was not accepted ({source}): it has to be an AF_XDP socket"
    )]
    NotAccepted {
        /// The queue it was for.
        queue: u32,
        /// The error of the system call.
        source: libbpf_rs::Error,
    },
}

fn program_label(id: u32, name: Option<&str>) -> String {
    match name {
        Some(name) => format!("{name:?} (id {id})"),
        None => format!("id {id}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_one_line() {
        let interface = || "eth7".to_owned();
        let io_error = || io::Error::from_raw_os_error(22);
        let bpf_error = || libbpf_rs::Error::from_raw_os_error(22);
        let errors = [
            AttachError::NoSuchInterface {
                interface: interface(),
            },
            AttachError::MissingCapability {
                missing: vec!["CAP_BPF", "CAP_NET_ADMIN"],
            },
            AttachError::NotPermitted {
                action: "load",
                source: io_error(),
            },
            AttachError::OtherProgram {
                interface: interface(),
                id: 12,
                name: Some("other".to_owned()),
            },
            AttachError::MtuTooLarge {
                interface: interface(),
                mtu: 9000,
                max: 3498,
            },
            AttachError::Load {
                reason: "R1 !read_ok".to_owned(),
                source: bpf_error(),
            },
            MapError::new("own4", bpf_error()).into(),
            AttachError::Attach {
                interface: interface(),
                source: io_error(),
            },
        ];
        for error in errors {
            let message = error.to_string();
            assert!(
                !message.contains('\n') && !message.contains("  "),
                "{message}"
            );
        }
    }

    #[test]
    fn another_program_is_named() {
        let error = AttachError::OtherProgram {
            interface: "eth7".to_owned(),
            id: 12,
            name: None,
        };
        assert!(
            error
                .to_string()
                .starts_with("eth7 already has an XDP program, id 12: ")
        );
        assert_eq!(program_label(3, Some("x")), "\"x\" (id 3)");
    }
}
