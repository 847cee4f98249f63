//! The command lines of the programs without a stack.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use clap::{Args, Parser, ValueEnum};
use interruptlet::{Cidr, Config};
use smoltcp::wire::EthernetAddress;

use super::memory::{self, Kind, Plan};
use super::send;
use crate::cli::{EXIT_CODES, Mode, Poll, port};

/// Send UDP packets back as they came, addresses and ports swapped: what AF_XDP can do at best.
///
/// The address is the kernel's, which goes on answering ARP and everything but this port.
#[derive(Debug, Clone, Parser)]
#[command(name = "ilet-reflect", version, after_help = EXIT_CODES)]
pub struct ReflectArgs {
    /// Address of the kernel on the interface
    #[arg(long, value_name = "IP")]
    pub address: IpAddr,

    /// UDP port
    #[arg(long, value_name = "P", value_parser = port())]
    pub port: u16,

    /// Processor core to run on
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub core: usize,

    /// What it does when there is nothing to do
    #[arg(long, value_enum, default_value_t = Poll::Busy)]
    pub poll: Poll,

    /// The queue.
    #[command(flatten)]
    pub queue: QueueArgs,
}

/// Keep so many UDP packets on the way to a reflector and back, and count them: what a sender can do at best.
#[derive(Debug, Clone, Parser)]
#[command(name = "ilet-send", version, after_help = SEND_EXIT_CODES)]
pub struct SendArgs {
    /// Address to send from, which the kernel must not have
    #[arg(long, value_name = "IP")]
    pub source: IpAddr,

    /// Where ilet-reflect or another UDP echo serves, as 192.0.2.2:9; an IPv6 address in brackets
    #[arg(long, value_name = "IP:P")]
    pub target: SocketAddr,

    /// Link address of the target, or of the router to it, as 02:00:00:00:00:02
    #[arg(long, value_name = "MAC", value_parser = link_address)]
    pub peer_link: EthernetAddress,

    /// Packets on the way
    #[arg(long, value_name = "N", value_parser = in_flight)]
    pub in_flight: usize,

    /// Bytes of the payload
    #[arg(long, value_name = "BYTES", value_parser = datagram_size)]
    pub size: usize,

    /// For how long
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub duration: Duration,

    /// Processor core to run on
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub core: usize,

    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,

    /// The queue.
    #[command(flatten)]
    pub queue: QueueArgs,
}

/// Send TCP SYNs from random addresses, answer nothing, and count what comes back.
///
/// The options are those of a Linux SYN. SYN-ACKs come back only if the target's network has a route for the
/// sources to this interface's link address: nobody answers ARP or neighbour discovery for them.
#[derive(Debug, Clone, Parser)]
#[command(name = "ilet-flood", version, after_help = FLOOD_EXIT_CODES)]
pub struct FloodArgs {
    /// Addresses to send from, as 198.18.0.0/15: any host address of the prefix, which nobody else uses
    #[arg(long, value_name = "CIDR")]
    pub sources: Cidr,

    /// Whom to flood, as 192.0.2.2:7; an IPv6 address in brackets
    #[arg(long, value_name = "IP:P")]
    pub target: SocketAddr,

    /// Link address of the target, or of the router to it, as 02:00:00:00:00:02
    #[arg(long, value_name = "MAC", value_parser = link_address)]
    pub peer_link: EthernetAddress,

    /// SYNs to send
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub count: u64,

    /// SYNs per second; 0 for as many as it can
    #[arg(long, value_name = "R", default_value = "0", value_parser = rate)]
    pub rate: f64,

    /// Ends it by then, even if not all are sent
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub duration: Duration,

    /// Decides addresses, ports and sequence numbers
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,

    /// Processor core to run on
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub core: usize,

    /// What it does when there is nothing to do
    #[arg(long, value_enum, default_value_t = Poll::Busy)]
    pub poll: Poll,

    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,

    /// The queue.
    #[command(flatten)]
    pub queue: QueueArgs,
}

/// Echo TCP with smoltcp as one would write it first: one interface, all sockets in one set.
#[derive(Debug, Clone, Parser)]
#[command(name = "plain-smoltcp", version, after_help = EXIT_CODES)]
pub struct PlainArgs {
    /// Address to serve, with its prefix length, as 192.0.2.1/24; the kernel must not have it
    ///
    /// Clients have to be on the link. smoltcp asks for one neighbour a second and remembers eight.
    #[arg(long, value_name = "CIDR")]
    pub address: Cidr,

    /// TCP port
    #[arg(long, value_name = "P", value_parser = port())]
    pub port: u16,

    /// Sockets, and so connections at most
    #[arg(long, value_name = "N", value_parser = connections)]
    pub sockets: usize,

    /// Processor core to run on
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub core: usize,

    /// What it does when there is nothing to do
    #[arg(long, value_enum, default_value_t = Poll::Busy)]
    pub poll: Poll,

    /// The queue.
    #[command(flatten)]
    pub queue: QueueArgs,
}

/// Measure what one TCP echo request costs in user space, over memory.
///
/// Only the server's turns are timed. To count their instructions instead: valgrind --tool=callgrind
/// --collect-atstart=no --toggle-collect='*counted_turn*' ilet-memory ...
#[derive(Debug, Clone, Parser)]
#[command(name = "ilet-memory", version, after_help = MEMORY_EXIT_CODES)]
pub struct MemoryArgs {
    /// Who serves
    #[arg(long, value_enum)]
    pub server: Server,

    /// An engine handles every packet of the stack, none is handled directly: for comparison
    ///
    /// smoltcp has nothing else.
    #[arg(long)]
    pub engine_only: bool,

    /// Established connections, which are used one after another
    #[arg(long, value_name = "N", value_parser = connections)]
    pub connections: usize,

    /// Requests to count, in all repetitions together
    ///
    /// Fewer than connections leave the last of them out, which smoltcp finds last: make it a multiple.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub requests: u64,

    /// Bytes of a request and of its answer
    #[arg(long, value_name = "BYTES", default_value_t = 64, value_parser = message_size)]
    pub size: usize,

    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// The queue to use.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Network")]
pub struct QueueArgs {
    /// Network interface
    #[arg(long, value_name = "IF")]
    pub interface: String,

    /// Receive queue of the interface
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub queue: u32,

    /// How frames reach the queue
    #[arg(long, value_enum, default_value_t = Mode::Auto)]
    pub mode: Mode,
}

impl QueueArgs {
    /// The configuration of an attachment with one address.
    pub fn config(&self, address: Cidr, core: usize, poll: Poll) -> Config {
        Config {
            addresses: vec![address],
            queues: vec![self.queue],
            cores: vec![core],
            mode: self.mode.into(),
            poll: poll.into(),
            ..Config::new(self.interface.clone())
        }
    }
}

/// An address without its network.
pub fn host(address: IpAddr) -> Cidr {
    Cidr {
        address,
        prefix: if address.is_ipv4() { 32 } else { 128 },
    }
}

/// Who serves in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Server {
    /// Interruptlet, a whole worker
    Stack,
    /// smoltcp with all sockets in one set
    Smoltcp,
}

impl Server {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stack => "stack",
            Self::Smoltcp => "smoltcp",
        }
    }
}

impl MemoryArgs {
    /// What to measure.
    pub fn plan(&self) -> Plan {
        Plan {
            kind: match self.server {
                Server::Stack if self.engine_only => Kind::Engines,
                Server::Stack => Kind::Stack,
                Server::Smoltcp => Kind::Smoltcp,
            },
            connections: self.connections,
            requests: self.requests,
            size: self.size,
        }
    }
}

const SEND_EXIT_CODES: &str = "Exit code: 0 if anything came back, 1 if not or if it could not start, \
    2 for a wrong command line.";
const FLOOD_EXIT_CODES: &str =
    "Exit code: 0 if it sent what it could, 1 if it could not run, 2 for a wrong command line.";
const MEMORY_EXIT_CODES: &str =
    "Exit code: 0 if every answer was right, 1 if not, 2 for a wrong command line.";

/// A number from `least` to `most`.
fn within(text: &str, least: usize, most: usize) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|number| (least..=most).contains(number))
        .ok_or_else(|| format!("not a number from {least} to {most}"))
}

fn in_flight(text: &str) -> Result<usize, String> {
    within(text, 1, send::IN_FLIGHT_MAX)
}

fn datagram_size(text: &str) -> Result<usize, String> {
    within(text, send::SIZE_MIN, u16::MAX.into())
}

fn connections(text: &str) -> Result<usize, String> {
    within(text, 1, memory::CONNECTIONS_MAX)
}

fn message_size(text: &str) -> Result<usize, String> {
    within(text, memory::SIZE_MIN, memory::SIZE_MAX)
}

fn seconds(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|duration| {
            (Duration::from_millis(1)..=Duration::from_secs(86_400)).contains(duration)
        })
        .ok_or_else(|| "not a number of seconds from 0.001 to 86400".to_owned())
}

fn rate(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|rate| (0.0..=1e8).contains(rate))
        .ok_or_else(|| "not a number per second from 0 to 1e8".to_owned())
}

fn link_address(text: &str) -> Result<EthernetAddress, String> {
    text.parse()
        .ok()
        .filter(EthernetAddress::is_unicast)
        .ok_or_else(|| "not a unicast link address, such as 02:00:00:00:00:02".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definitions_hold() {
        ReflectArgs::command().debug_assert();
        SendArgs::command().debug_assert();
        FloodArgs::command().debug_assert();
        PlainArgs::command().debug_assert();
        MemoryArgs::command().debug_assert();
    }

    const SEND: &str = "ilet-send --interface eth0 --source 192.0.2.1 --target 192.0.2.2:9 \
        --peer-link 02:00:00:00:00:02 --in-flight 64 --size 64 --duration 0.5";

    #[test]
    fn everything_given() {
        let args = SendArgs::try_parse_from(SEND.split_whitespace()).unwrap();
        assert_eq!(args.peer_link.0, [2, 0, 0, 0, 0, 2]);
        assert_eq!((args.in_flight, args.size, args.core), (64, 64, 1));
        assert_eq!(args.duration, Duration::from_millis(500));
        let config = args.queue.config(host(args.source), args.core, Poll::Busy);
        assert_eq!(config.addresses[0].to_string(), "192.0.2.1/32");
        assert_eq!((config.queues, config.cores), (vec![0], vec![1]));
        let v6 = host("2001:db8::1".parse().unwrap());
        assert_eq!(v6.to_string(), "2001:db8::1/128");
    }

    #[test]
    fn who_serves_in_memory() {
        for (options, kind) in [
            ("stack", Kind::Stack),
            ("stack --engine-only", Kind::Engines),
            ("smoltcp", Kind::Smoltcp),
        ] {
            let words = format!("ilet-memory --connections 3 --requests 9 --server {options}");
            let args = MemoryArgs::try_parse_from(words.split_whitespace()).unwrap();
            let plan = args.plan();
            assert_eq!((plan.kind, plan.connections, plan.requests), (kind, 3, 9));
        }
    }

    const FLOOD: &str = "ilet-flood --interface eth0 --sources 198.18.0.0/15 --target 192.0.2.2:7 \
        --peer-link 02:00:00:00:00:02";

    #[test]
    fn a_flood_by_default_and_in_full() {
        let args = FloodArgs::try_parse_from(FLOOD.split_whitespace()).unwrap();
        assert_eq!((args.count, args.rate, args.seed), (1_000_000, 0.0, 1));
        assert_eq!(args.duration, Duration::from_secs(60));
        let words = format!("{FLOOD} --count 5 --rate 2e5 --duration 0.5 --seed 9 --poll sleep");
        let args = FloodArgs::try_parse_from(words.split_whitespace()).unwrap();
        assert_eq!((args.count, args.rate, args.seed), (5, 200_000.0, 9));
        for wrong in [
            "--count 0",
            "--rate -1",
            "--rate nan",
            "--duration 0",
            "--sources x",
        ] {
            let words = format!("{FLOOD} {wrong}");
            let error = FloodArgs::try_parse_from(words.split_whitespace()).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{wrong}");
        }
    }

    #[test]
    fn single_options_are_checked() {
        for (right, wrong) in [
            ("--size 64", "--size 7"),
            ("--size 64", "--size 65536"),
            ("--in-flight 64", "--in-flight 0"),
            ("--in-flight 64", "--in-flight 1025"),
            ("--duration 0.5", "--duration 0"),
            ("--duration 0.5", "--duration nan"),
            ("--duration 0.5", "--duration -1"),
            ("02:00:00:00:00:02", "01:00:00:00:00:02"),
            ("02:00:00:00:00:02", "02:00"),
            ("192.0.2.2:9", "192.0.2.2"),
        ] {
            let words = SEND.replace(right, wrong);
            let error = SendArgs::try_parse_from(words.split_whitespace()).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{wrong}");
        }
    }
}
