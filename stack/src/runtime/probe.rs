//! Whether a neighbour has an address that is to be ours alone: asked before anything is attached.
//!
//! The questions are those of RFC 5227 section 2.1.1 (an ARP probe) and RFC 4862 section 5.4.2 (a neighbour
//! solicitation for duplicate address detection). Both RFCs wait for seconds, before and after each question;
//! a server that starts does not: all addresses are asked for at once, three times, and who has not answered
//! [`WAIT`] after the first question is taken not to be there.

use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use smoltcp::wire::EthernetAddress;

use super::StartError;
use super::interface::{self, Interface};
use super::packet_socket::PacketSocket;
use crate::config::Config;
use crate::neighbour::{Question, conflict};
use crate::port::xsk::BindError;
use crate::wire::{Address, LINK_HEADER_BYTES_MAX, Local, Packet, parse};

/// How long answers are waited for, all addresses together.
const WAIT: Duration = Duration::from_millis(300);
/// Between two questions for one address.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// The link address of the group of all nodes, which answers to duplicate address detection go to.
const ALL_NODES: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

/// Refuses addresses that are to be ours alone and that a neighbour has, or probes for at this very moment.
/// Frames from the interface's own link address are nobody else's: another server of ours on another queue of it.
pub(super) fn addresses(config: &Config, interface: &Interface) -> Result<(), StartError> {
    if config.shared_address || config.addresses.is_empty() {
        return Ok(());
    }
    if !interface.has_link {
        log::info!(
            "{} has no carrier: whether a neighbour has an address of ours cannot be asked",
            config.interface
        );
        return Ok(());
    }
    let ours: Vec<Address> = config
        .addresses
        .iter()
        .map(|cidr| cidr.address.into())
        .collect();
    match ask(&ours, interface) {
        Ok(None) => Ok(()),
        Ok(Some((address, neighbour))) => Err(StartError::NeighbourHasAddress {
            address,
            neighbour: neighbour.0,
            interface: config.interface.clone(),
        }),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(BindError::MissingNetRaw.into())
        }
        // The link went down meanwhile: then nobody can be asked.
        Err(error) if error.kind() == io::ErrorKind::NetworkDown => Ok(()),
        Err(source) => Err(StartError::System {
            action: "ask the neighbours for our addresses",
            source,
        }),
    }
}

fn ask(ours: &[Address], interface: &Interface) -> io::Result<Option<(IpAddr, EthernetAddress)>> {
    let socket = listen(ours, interface.index)?;
    // Nothing is ours yet: what claims one of our addresses is not to be refused for that.
    let local = Local::new(interface.link, &[], &[], interface.mtu);
    let mut frame = vec![0; interface.mtu + LINK_HEADER_BYTES_MAX];
    let begun = Instant::now();
    let mut asks = 0;
    loop {
        let elapsed = begun.elapsed();
        if elapsed >= WAIT {
            return Ok(None);
        }
        if elapsed >= ASK_EVERY * asks {
            asks += 1;
            for target in ours {
                ask_for(*target, interface.link, &socket)?;
            }
        }
        while let Some(len) = socket.receive(&mut frame)? {
            if let Ok(Packet::Neighbour { len }) = parse(&mut frame, len, &local)
                && let Some((address, neighbour)) = conflict(&frame[..len], ours, interface.link)
            {
                return Ok(Some((address.to_ip(), neighbour)));
            }
            // Others' traffic does not prolong the wait.
            if begun.elapsed() >= WAIT {
                return Ok(None);
            }
        }
        let next = WAIT.min(ASK_EVERY * asks);
        wait(&socket, next.saturating_sub(begun.elapsed()))?;
    }
}

/// A socket that hears answers to our questions, and others that probe for our addresses: a card lets through what goes to
/// groups that were joined. Probes go to the solicited-node groups (RFC 4862 section 5.4.3).
fn listen(ours: &[Address], interface_index: u32) -> io::Result<PacketSocket> {
    let socket = PacketSocket::new()?;
    socket.join(interface_index, ALL_NODES)?;
    // A stack may run on another queue of the interface, which has joined these groups for itself: the kernel counts.
    interface::join_solicited_node_groups(&socket, interface_index, ours)?;
    socket.listen(interface_index)?;
    Ok(socket)
}

fn ask_for(target: Address, link: EthernetAddress, socket: &PacketSocket) -> io::Result<()> {
    let question = Question {
        link,
        asker: None,
        target,
    };
    let header = question.link_header();
    let mut frame = vec![0; header.len() + question.len()];
    header.write(&mut frame);
    question.write(&mut frame[header.len()..]);
    match socket.send(&frame) {
        // A queue of the driver's that is full for the moment: it is asked again.
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(()),
        sent => sent,
    }
}

/// Waits until something arrived, or for `timeout`.
fn wait(socket: &PacketSocket, timeout: Duration) -> io::Result<()> {
    let timeout = Timespec {
        tv_sec: 0,
        tv_nsec: i64::from(timeout.subsec_nanos()),
    };
    match poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::packet_socket::tests_support::unless_unprivileged;

    /// Where the kernel lists the groups that the loopback interface has joined, as digits.
    fn groups_of_loopback() -> Vec<String> {
        let all = std::fs::read_to_string("/proc/thread-self/net/dev_mcast").unwrap();
        all.lines()
            .filter_map(|line| {
                let fields: Vec<&str> = line.split_whitespace().collect();
                (fields.get(1) == Some(&"lo")).then(|| fields[4].to_owned())
            })
            .collect()
    }

    #[test]
    fn it_listens_where_answers_and_others_probes_go() {
        let ours = ["192.0.2.1", "2001:db8::77:1234", "2001:db8::77:5678"]
            .map(|text| text.parse::<IpAddr>().unwrap().into());
        let lo = nix::net::if_::if_nametoindex("lo").unwrap();
        let Some(socket) = unless_unprivileged(listen(&ours, lo)) else {
            return;
        };
        let groups = groups_of_loopback();
        for group in ["333300000001", "3333ff771234", "3333ff775678"] {
            assert!(
                groups.iter().any(|joined| joined == group),
                "{group}: {groups:?}"
            );
        }
        drop(socket);
    }
}
