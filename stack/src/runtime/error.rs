//! Why a stack did not start, or ended by itself. One line each: what, why, what to do.

use std::io;
use std::net::IpAddr;

use interruptlet_xdp::{AttachError, Capability, RegisterError};

use crate::config::{ADDRESSES_MAX, Cidr, MTU_MAX, MTU_MIN, SOURCES_MAX};
use crate::port::xsk::BindError;
use crate::wire::Colons;

/// Why a stack did not start. Nothing is left attached, bound or running.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// No such interface.
    #[error("no interface is called {interface:?} here: `ip link` lists those there are")]
    NoSuchInterface {
        /// The name asked for.
        interface: String,
    },
    /// The loopback interface.
    #[error(
        "{interface} is the loopback interface, which has no link addresses and no queue that this stack could take: \
         name an Ethernet interface (`ip link` lists them); for a try on one machine make a veth pair (README.md)"
    )]
    Loopback {
        /// Its name.
        interface: String,
    },
    /// An interface that carries no Ethernet frames.
    #[error(
        "{interface} is no Ethernet interface (hardware type {hardware_type} of <linux/if_arp.h>), and this stack \
         speaks Ethernet only: name one whose `ip link` line says link/ether"
    )]
    NotEthernet {
        /// Its name.
        interface: String,
        /// Its type, an `ARPHRD_*` number.
        hardware_type: u16,
    },
    /// Frames cannot hold packets of this interface's MTU.
    #[error(
        "the MTU of {interface} is {mtu} bytes, but frames hold {MTU_MIN} to {MTU_MAX}: set it with \
         `ip link set {interface} mtu 1500`"
    )]
    Mtu {
        /// The interface.
        interface: String,
        /// Its MTU in bytes.
        mtu: usize,
    },
    /// No address, or too many.
    #[error("{count} addresses were given, but a stack has 1 to {ADDRESSES_MAX}: see --address")]
    AddressCount {
        /// How many there were.
        count: usize,
    },
    /// An address that no host can have.
    #[error(
        "{0} is not a unicast host address: give the server an address of its own, such as 192.0.2.1/24"
    )]
    NotUnicast(Cidr),
    /// An address that its prefix reserves, so that no host can have it.
    #[error(
        "{cidr} is the {meaning} of its prefix, which no server can have: choose another address in it, or give \
         the prefix length that the network has"
    )]
    NotHost {
        /// The address.
        cidr: Cidr,
        /// "network address", "broadcast address" or "subnet-router anycast address".
        meaning: &'static str,
    },
    /// Too many source prefixes.
    #[error(
        "{count} source prefixes were given, but a stack has at most {SOURCES_MAX}: use larger ones"
    )]
    SourceCount {
        /// How many there were.
        count: usize,
    },
    /// A source prefix is not ours as a whole.
    #[error(
        "the source prefix {source_prefix} contains {address}, which is not only a source: choose a prefix in \
         which nobody has an address"
    )]
    SourceTaken {
        /// The prefix.
        source_prefix: Cidr,
        /// The other address.
        address: IpAddr,
    },
    /// The kernel has an address that is to be ours alone.
    #[error(
        "the kernel has {address} on {interface}: remove it there (`ip address del`), choose another, or \
         share it with --shared-address"
    )]
    KernelHasAddress {
        /// The address.
        address: IpAddr,
        /// Where the kernel has it.
        interface: String,
    },
    /// A neighbour has an address that the stack is to have alone.
    #[error(
        "a neighbour has {address}: the station with link address {} on {interface} answers for it, or starts on it \
         right now: choose another address, take it from that station first, or, if it answers for every address \
         (proxy ARP, some clouds), add {address} to {interface} (`ip address add`) and share it with --shared-address",
        Colons(*neighbour)
    )]
    NeighbourHasAddress {
        /// The address.
        address: IpAddr,
        /// The neighbour's link address.
        neighbour: [u8; 6],
        /// The interface that it was heard on.
        interface: String,
    },
    /// The kernel does not have an address that is to be shared.
    #[error(
        "the kernel does not have {address} on {interface}, so it cannot be shared: add it there \
         (`ip address add`), or leave --shared-address out"
    )]
    KernelLacksAddress {
        /// The address.
        address: IpAddr,
        /// The interface.
        interface: String,
    },
    /// More than one gateway of a version, or one of a version without address.
    #[error("gateway {0}: give at most one per IP version, each with an address of that version")]
    Gateway(IpAddr),
    /// No queue, or not one core for each.
    #[error(
        "{queues} queues and {cores} cores were given: give one core for each queue, and at least one"
    )]
    QueuesAndCores {
        /// Number of queues.
        queues: usize,
        /// Number of cores.
        cores: usize,
    },
    /// A queue was given twice.
    #[error("queue {0} was given twice: each queue has one worker")]
    QueueTwice(u32),
    /// The interface has fewer queues.
    #[error(
        "{interface} has no receive queue {queue}: its queues are 0 to {last} (`ethtool -l {interface}`)"
    )]
    QueueOutOfRange {
        /// The interface.
        interface: String,
        /// The queue asked for.
        queue: u32,
        /// The last queue that it has.
        last: u32,
    },
    /// The driver added queues when the XDP program was attached, and all queues before that were to be served.
    #[error(
        "the driver of {interface} added queue {added} when the XDP program was attached, and what arrives there would be \
         nobody's: {ways_out}"
    )]
    QueuesAdded {
        /// The interface.
        interface: String,
        /// The queues that are new, in a list.
        added: String,
        /// The possible remedies, in words.
        ways_out: String,
    },
    /// A queue that can receive but not send, such as those that virtio_net adds for XDP.
    #[error(
        "queue {queue} of {interface} can receive but not send: the interface has {transmit} transmit queues now, so serve \
         queues 0 to {last} only"
    )]
    QueueCannotSend {
        /// The interface.
        interface: String,
        /// The queue asked for.
        queue: u32,
        /// How many transmit queues there are.
        transmit: u32,
        /// The last queue that can send.
        last: u32,
    },
    /// No such core.
    #[error("this process may not run on core {core}: it may run on {allowed}")]
    NoSuchCore {
        /// The core asked for.
        core: usize,
        /// The cores it may run on.
        allowed: String,
    },
    /// A limit with which a worker cannot run.
    #[error("limit {name} is {value}, with which no worker can run: make it {rule}")]
    Limit {
        /// The field of [`Limits`](crate::Limits).
        name: &'static str,
        /// Its value.
        value: u64,
        /// What it is to be.
        rule: String,
    },
    /// Two services for one port.
    #[error("{protocol} port {port} has two services: register one")]
    PortTwice {
        /// "TCP" or "UDP".
        protocol: &'static str,
        /// The port.
        port: u16,
    },
    /// The port of a shared address is in use by a kernel socket.
    #[error(
        "{protocol} port {port} of {address} is in use by a socket of the kernel ({source}): stop what listens \
         there (what it closed itself may hold the port for another minute) or choose another port"
    )]
    PortInUse {
        /// "TCP" or "UDP".
        protocol: &'static str,
        /// The port.
        port: u16,
        /// The address.
        address: IpAddr,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The process lacks capabilities that this configuration needs.
    #[error(
        "missing {}: run as root, or grant {} (setcap, AmbientCapabilities=){}",
        list(missing),
        if missing.len() == 1 { "it" } else { "them" },
        lock_limit_hint(missing)
    )]
    MissingCapabilities {
        /// All of them.
        missing: Vec<MissingCapability>,
    },
    /// Nothing to serve.
    #[error("no service was registered: a stack without one has nothing to do")]
    NoService,
    /// The XDP program could not be attached.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// A socket could not be made known to the XDP program.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// A queue could not be bound, or never could be.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// Ports below 1024 are privileged, and with a shared address they are the kernel's.
    #[error(
        "port {port} of the shared address may not be taken without CAP_NET_BIND_SERVICE: run as root, grant it, or \
         choose a port from 1024"
    )]
    MissingBindService {
        /// The port.
        port: u16,
    },
    /// The system could not provide something else.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

/// A capability that is missing, and why it is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingCapability {
    /// The capability.
    pub capability: Capability,
    /// Its purpose, in words that follow the name, such as "to load the XDP program".
    pub purpose: String,
}

fn list(missing: &[MissingCapability]) -> String {
    let named: Vec<String> = missing
        .iter()
        .map(|missing| format!("{} ({})", missing.capability.name(), missing.purpose))
        .collect();
    named.join(", ")
}

/// Returns a hint about CAP_IPC_LOCK, if it is missing: a higher limit on locked memory does as well.
fn lock_limit_hint(missing: &[MissingCapability]) -> &'static str {
    if missing
        .iter()
        .any(|missing| missing.capability == Capability::IpcLock)
    {
        "; instead of CAP_IPC_LOCK a higher limit will do (ulimit -l, LimitMEMLOCK=)"
    } else {
        ""
    }
}

/// Why a running stack ended by itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The interface is gone.
    #[error("interface {interface} was deleted: make it again and restart")]
    InterfaceGone {
        /// The interface.
        interface: String,
    },
    /// A worker's queue broke.
    #[error("queue {queue} of {interface} failed ({source}): restart once the interface is well")]
    Queue {
        /// The interface.
        interface: String,
        /// The queue.
        queue: u32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A worker panicked: a defect of this program.
    #[error(
        "the worker of queue {queue} panicked, which is a defect of this program: please report it with the lines above"
    )]
    Panicked {
        /// The queue.
        queue: u32,
    },
}
