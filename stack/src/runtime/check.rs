//! Everything that can be checked before anything is changed.

use std::net::IpAddr;

use super::interface::{self, Interface, Kind};
use super::{StartError, capabilities, queues};
use crate::config::{ADDRESSES_MAX, Cidr, Config, Limits, MTU_MAX, MTU_MIN, SOURCES_MAX};
use crate::port::xsk::BindError;

/// Ring entries and frames on the FILL ring at the least: a batch of the port's.
const RING_MIN: u32 = 64;
/// Frames that an arena has at the least beside the FILL ring and the loans: a received batch, the
/// replies of the turn, and what the kernel has not sent yet.
const FRAMES_ROOM: u32 = 256;

/// Checks the ports that services were registered for.
pub(super) fn services(
    tcp_ports: &[u16],
    udp_ports: &[u16],
    has_client: bool,
) -> Result<(), StartError> {
    if tcp_ports.is_empty() && udp_ports.is_empty() && !has_client {
        return Err(StartError::NoService);
    }
    for (protocol, ports) in [("TCP", tcp_ports), ("UDP", udp_ports)] {
        if let Some(port) = first_duplicate(ports) {
            return Err(StartError::PortTwice { protocol, port });
        }
    }
    Ok(())
}

/// Checks the configuration, in itself and against this machine; `tcp_ports` and `udp_ports` are those that
/// services were registered for.
pub(super) fn config(
    config: &Config,
    tcp_ports: &[u16],
    udp_ports: &[u16],
) -> Result<Interface, StartError> {
    values(config)?;
    sources(config)?;
    limits(&config.limits)?;
    cores(&config.cores)?;
    let interface = interface(config)?;
    capabilities::check(config, interface.mtu, tcp_ports, udp_ports)?;
    Ok(interface)
}

/// What can be said without looking at the machine.
fn values(config: &Config) -> Result<(), StartError> {
    if config.queues.is_empty() || config.queues.len() != config.cores.len() {
        return Err(StartError::QueuesAndCores {
            queues: config.queues.len(),
            cores: config.cores.len(),
        });
    }
    if let Some(queue) = first_duplicate(&config.queues) {
        return Err(StartError::QueueTwice(queue));
    }
    let none = config.addresses.is_empty() && config.sources.is_empty();
    if none || config.addresses.len() > ADDRESSES_MAX {
        return Err(StartError::AddressCount {
            count: config.addresses.len(),
        });
    }
    for cidr in config.addresses.iter().chain(&config.sources) {
        let address = cidr.address;
        let no_host = match address {
            // Reserved, and the limited broadcast address among it (RFC 1112 section 4, RFC 919).
            IpAddr::V4(v4) => v4.octets()[0] >= 240,
            // Never on a wire (RFC 4291 section 2.5.5.2): an IPv4 address in another notation.
            IpAddr::V6(v6) => v6.to_ipv4_mapped().is_some(),
        };
        if address.is_multicast() || address.is_unspecified() || address.is_loopback() || no_host {
            return Err(StartError::NotUnicast(*cidr));
        }
    }
    for cidr in &config.addresses {
        if let Some(meaning) = reserved_in_prefix(cidr) {
            return Err(StartError::NotHost {
                cidr: *cidr,
                meaning,
            });
        }
    }
    for (index, gateway) in config.gateways.iter().enumerate() {
        let same_version = |other: &IpAddr| other.is_ipv4() == gateway.is_ipv4();
        if config.gateways[..index].iter().any(same_version)
            || !config
                .addresses
                .iter()
                .chain(&config.sources)
                .any(|cidr| same_version(&cidr.address))
        {
            return Err(StartError::Gateway(*gateway));
        }
    }
    Ok(())
}

/// How an address is called that no host may have in its prefix. Both addresses of an IPv4 /31 are hosts'
/// (RFC 3021), and a /32 is one host. The all-zeros host of an IPv6 prefix is every router's on the link
/// (RFC 4291 section 2.6.1): a router there answers for it, and it is no duplicate to duplicate address
/// detection, so nothing else would tell. A /127 has none (RFC 6164), nor has a /128.
fn reserved_in_prefix(cidr: &Cidr) -> Option<&'static str> {
    if cidr.network() == Some(cidr.address) {
        return Some(if cidr.address.is_ipv4() {
            "network address"
        } else {
            "subnet-router anycast address"
        });
    }
    (cidr.broadcast() == Some(cidr.address)).then_some("broadcast address")
}

/// Source prefixes are ours as a whole: nobody else's address may be in one.
fn sources(config: &Config) -> Result<(), StartError> {
    if config.sources.len() > SOURCES_MAX {
        return Err(StartError::SourceCount {
            count: config.sources.len(),
        });
    }
    for (index, source) in config.sources.iter().enumerate() {
        let taken = config.sources[..index]
            .iter()
            .find(|other| other.overlaps(source))
            .map(|other| other.address)
            .or_else(|| {
                config
                    .gateways
                    .iter()
                    .chain(config.addresses.iter().map(|cidr| &cidr.address))
                    .find(|address| source.contains(**address))
                    .copied()
            });
        if let Some(address) = taken {
            return Err(StartError::SourceTaken {
                source_prefix: *source,
                address,
            });
        }
    }
    Ok(())
}

/// The relations that the worker and the kernel rely on.
fn limits(limits: &Limits) -> Result<(), StartError> {
    let refuse = |name, value: u64, rule: String| Err(StartError::Limit { name, value, rule });
    let ring = limits.ring_entries;
    if !ring.is_power_of_two() || ring < RING_MIN {
        let rule = format!("a power of two, at least {RING_MIN}");
        return refuse("ring_entries", ring.into(), rule);
    }
    if !(RING_MIN..=ring).contains(&limits.fill_target) {
        let rule = format!("{RING_MIN} to {ring} (ring_entries)");
        return refuse("fill_target", limits.fill_target.into(), rule);
    }
    // What is held must leave enough to work with, however long peers do not acknowledge it.
    let frames_min = u64::from(limits.fill_target)
        + u64::from(limits.loans)
        + u64::from(limits.held_frames)
        + u64::from(FRAMES_ROOM);
    if u64::from(limits.frames) < frames_min {
        let rule =
            format!("at least {frames_min} (fill_target + loans + held_frames + {FRAMES_ROOM})");
        return refuse("frames", limits.frames.into(), rule);
    }
    for (name, value) in [
        ("flows", limits.flows),
        ("held_frames", limits.held_frames as usize),
        ("held_per_flow", usize::from(limits.held_per_flow)),
        ("engines", limits.engines),
        ("time_wait", limits.time_wait),
        ("slow_queue", limits.slow_queue),
        ("commands", limits.commands),
        ("client_tx_bytes", limits.client_tx_bytes),
    ] {
        if value == 0 {
            return refuse(name, 0, "at least 1".to_owned());
        }
    }
    // A whole segment of the largest MTU fits the window, or senders would stall.
    if limits.client_rx_bytes < 2 * MTU_MAX {
        let rule = format!("at least {}", 2 * MTU_MAX);
        return refuse("client_rx_bytes", limits.client_rx_bytes as u64, rule);
    }
    Ok(())
}

fn cores(cores: &[usize]) -> Result<(), StartError> {
    let allowed = core_affinity::get_core_ids().unwrap_or_default();
    if let Some(core) = cores
        .iter()
        .find(|core| !allowed.iter().any(|id| id.id == **core))
    {
        let allowed: Vec<String> = allowed.iter().map(|id| id.id.to_string()).collect();
        return Err(StartError::NoSuchCore {
            core: *core,
            allowed: allowed.join(", "),
        });
    }
    Ok(())
}

/// Looks the interface up and checks what is asked of it.
fn interface(config: &Config) -> Result<Interface, StartError> {
    let interface = interface::find(&config.interface)
        .map_err(|source| StartError::System {
            action: "list the interfaces",
            source,
        })?
        .ok_or_else(|| StartError::NoSuchInterface {
            interface: config.interface.clone(),
        })?;
    match interface.kind {
        Kind::Ethernet => {}
        Kind::Loopback => {
            return Err(StartError::Loopback {
                interface: config.interface.clone(),
            });
        }
        Kind::Other(hardware_type) => {
            return Err(StartError::NotEthernet {
                interface: config.interface.clone(),
                hardware_type,
            });
        }
    }
    if !interface.is_up {
        return Err(StartError::Bind(BindError::InterfaceDown {
            interface: config.interface.clone(),
        }));
    }
    if !(MTU_MIN..=MTU_MAX).contains(&interface.mtu) {
        return Err(StartError::Mtu {
            interface: config.interface.clone(),
            mtu: interface.mtu,
        });
    }
    queues::check_possible(config, &interface)?;
    for source in &config.sources {
        let at = interface
            .kernel_addresses
            .iter()
            .find(|(_, address)| source.contains(*address));
        if let Some((name, address)) = at {
            return Err(StartError::KernelHasAddress {
                address: *address,
                interface: name.clone(),
            });
        }
    }
    for cidr in &config.addresses {
        let at = interface.kernel_addresses.iter().find(|(name, address)| {
            *address == cidr.address && (!config.shared_address || *name == config.interface)
        });
        match (at, config.shared_address) {
            (Some((name, address)), false) => {
                return Err(StartError::KernelHasAddress {
                    address: *address,
                    interface: name.clone(),
                });
            }
            (None, true) => {
                return Err(StartError::KernelLacksAddress {
                    address: cidr.address,
                    interface: config.interface.clone(),
                });
            }
            (Some(_), true) | (None, false) => {}
        }
    }
    Ok(interface)
}

fn first_duplicate<T: PartialEq + Copy>(items: &[T]) -> Option<T> {
    items
        .iter()
        .enumerate()
        .find(|(index, item)| items[..*index].contains(item))
        .map(|(_, item)| *item)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(change: impl FnOnce(&mut Limits)) -> Result<(), StartError> {
        let mut changed = Limits::default();
        change(&mut changed);
        limits(&changed)
    }

    #[test]
    fn the_default_limits_and_the_least_are_accepted() {
        limits(&Limits::default()).unwrap();
        let least = |limits: &mut Limits| {
            *limits = Limits {
                frames: RING_MIN + 1 + FRAMES_ROOM,
                ring_entries: RING_MIN,
                fill_target: RING_MIN,
                loans: 0,
                flows: 1,
                held_frames: 1,
                held_per_flow: 1,
                engines: 1,
                time_wait: 1,
                slow_queue: 1,
                commands: 1,
                ..*limits
            }
        };
        with(least).unwrap();
    }

    #[test]
    fn each_limit_that_cannot_work_is_named_with_what_to_do() {
        type Change = fn(&mut Limits);
        let wrong: [(&str, Change, &str); 18] = [
            ("ring_entries", |l| l.ring_entries = 0, "power of two"),
            ("ring_entries", |l| l.ring_entries = 32, "at least 64"),
            ("ring_entries", |l| l.ring_entries = 1000, "power of two"),
            ("fill_target", |l| l.fill_target = 0, "64 to 2048"),
            ("fill_target", |l| l.fill_target = 2049, "64 to 2048"),
            ("frames", |l| l.frames = 0, "at least 3840"),
            ("frames", |l| l.frames = 3839, "at least 3840"),
            (
                "frames",
                |l| l.loans = u32::MAX,
                "fill_target + loans + held_frames",
            ),
            ("frames", |l| l.loans = 4000, "at least 7328"),
            ("flows", |l| l.flows = 0, "at least 1"),
            ("held_frames", |l| l.held_frames = 0, "at least 1"),
            ("held_per_flow", |l| l.held_per_flow = 0, "at least 1"),
            ("engines", |l| l.engines = 0, "at least 1"),
            ("time_wait", |l| l.time_wait = 0, "at least 1"),
            ("slow_queue", |l| l.slow_queue = 0, "at least 1"),
            ("commands", |l| l.commands = 0, "at least 1"),
            ("client_tx_bytes", |l| l.client_tx_bytes = 0, "at least 1"),
            ("client_rx_bytes", |l| l.client_rx_bytes = 1500, "at least"),
        ];
        for (name, change, rule) in wrong {
            let error = with(change).expect_err(name);
            assert!(
                matches!(&error, StartError::Limit { name: named, .. } if *named == name),
                "{name}: {error}"
            );
            let line = error.to_string();
            assert!(
                line.contains(name) && line.contains(rule) && !line.contains('\n'),
                "{line}"
            );
        }
    }

    #[test]
    fn addresses_that_no_host_has_are_refused() {
        let with_address = |address: &str| {
            let mut config = Config::new("eth0");
            config.addresses = vec![address.parse().unwrap()];
            values(&config)
        };
        for address in ["192.0.2.1/24", "2001:db8::1/64"] {
            with_address(address).unwrap();
        }
        for address in [
            "0.0.0.0/0",
            "127.0.0.1/8",
            "224.0.0.1/24",
            "255.255.255.255/32",
            "::/0",
            "::1/128",
            "ff02::1/64",
            "::ffff:192.0.2.1/120",
        ] {
            let error = with_address(address).expect_err(address);
            assert!(matches!(error, StartError::NotUnicast(_)), "{address}");
        }
    }

    #[test]
    fn addresses_that_stand_for_their_network_are_refused() {
        let with_address = |address: &str| {
            let mut config = Config::new("eth0");
            config.addresses = vec![address.parse().unwrap()];
            values(&config)
        };
        for address in [
            "192.0.2.0/31",
            "192.0.2.1/31",
            "192.0.2.0/32",
            "192.0.2.255/32",
            "192.0.3.0/23",
            "192.0.2.255/23",
            "2001:db8::/127",
            "2001:db8::/128",
            "2001:db8::ffff:ffff:ffff:ffff/64",
            "2001:db8:0:1::/48",
            "2001:db8::2/126",
        ] {
            with_address(address).unwrap();
        }
        for (address, word) in [
            ("192.0.2.0/24", "network address"),
            ("192.0.2.255/24", "broadcast address"),
            ("192.0.2.0/30", "network address"),
            ("192.0.2.3/30", "broadcast address"),
            ("10.255.255.255/8", "broadcast address"),
            ("2001:db8::/64", "subnet-router anycast"),
            ("2001:db8::4/126", "subnet-router anycast"),
        ] {
            let line = with_address(address).expect_err(address).to_string();
            assert!(line.contains(word) && line.contains(address), "{line}");
        }
        // A source prefix is ours as a whole: it is named by any of its addresses.
        let mut config = Config::new("eth0");
        config.sources = vec!["10.9.1.0/24".parse().unwrap()];
        values(&config).unwrap();
    }

    #[test]
    fn gateways_have_an_address_of_their_version_and_no_rival() {
        let with_gateways = |gateways: &[&str]| {
            let mut config = Config::new("eth0");
            config.addresses = vec!["192.0.2.1/24".parse().unwrap()];
            config.gateways = gateways.iter().map(|ip| ip.parse().unwrap()).collect();
            values(&config)
        };
        with_gateways(&["192.0.2.254"]).unwrap();
        for gateways in [&["fe80::1"][..], &["192.0.2.2", "192.0.2.3"]] {
            let error = with_gateways(gateways).unwrap_err();
            assert!(matches!(error, StartError::Gateway(_)), "{gateways:?}");
        }
    }

    #[test]
    fn a_port_has_one_service_and_a_stack_at_least_one() {
        services(&[80, 443], &[80], false).unwrap();
        services(&[], &[], true).unwrap();
        assert!(matches!(
            services(&[], &[], false),
            Err(StartError::NoService)
        ));
        assert!(matches!(
            services(&[], &[7, 9, 7], true),
            Err(StartError::PortTwice {
                protocol: "UDP",
                port: 7
            })
        ));
    }
}
