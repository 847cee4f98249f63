//! The command line of the load generator, what is wrong with it, and what it comes to.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::path::PathBuf;

use clap::Parser;
use interruptlet::config::{ENGINE_RX_BYTES, MTU_MAX};
use interruptlet::port::link::{Burst, Faults};
use interruptlet::{Cidr, Config, Duration, Limits};
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::plan::Plan;
use super::schedule::{Bucket, SECOND};
use super::sources::Sources;
use super::target::{Protocol, Target};
use crate::cli::{Mode, Poll};

/// Measure a server: ask it as fast as it answers, or at a rate, and check every answer.
///
/// The connections come from a TCP/IP stack of its own (AF_XDP), from many addresses. A run opens the
/// connections, warms up, measures, and waits for the answers that are owed at the end. A request counts if
/// its answer was complete within the measured time; its latency counts if it was due within it.
#[derive(Debug, Clone, Parser)]
#[command(name = "ilet-load", version, after_help = EXIT_CODES)]
pub struct LoadArgs {
    /// Whom to ask: udp-echo://IP:PORT, tcp-echo://IP:PORT, tcp-upload://IP:PORT (one upload per connection),
    /// http://IP[:PORT]/PATH, http-connection:// (one request per connection) or http-download:// (large bodies)
    #[arg(long, value_name = "URL")]
    pub target: Target,

    /// Connections that are busy, or datagrams in flight
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=CONNECTIONS_MAX))]
    pub connections: u32,

    /// Further connections that do one request each and are then kept open, unused
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=CONNECTIONS_MAX))]
    pub idle: u32,

    /// New connections per second
    ///
    /// With http-connection:// and tcp-upload:// a connection that follows an answer is opened at once.
    #[arg(long, value_name = "R", default_value = "20000", value_parser = rate)]
    pub open_rate: f64,

    /// Requests outstanding per connection
    #[arg(long, value_name = "D", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub depth: u32,

    /// Open loop: requests per second over all connections, whether they are answered or not
    ///
    /// Latencies count from when a request is to be sent, even if no connection is free then.
    #[arg(long, value_name = "R", value_parser = rate)]
    pub rate: Option<f64>,

    /// Bytes of a message to be echoed, or of an upload [default: 64, of an upload 100000000]
    ///
    /// An upload is answered when the server has closed the connection after we did.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=1 << 30))]
    pub size: Option<u32>,

    /// Seconds to measure
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds)]
    pub duration: f64,

    /// Seconds before that, not measured
    #[arg(long, value_name = "S", default_value = "1", value_parser = seconds_or_none)]
    pub warmup: f64,

    /// Seconds after which a request without an answer is an error
    ///
    /// With http-download:// and --slow: seconds in which nothing of the answer comes. With tcp-upload://: seconds in
    /// which nothing can be sent.
    #[arg(long, value_name = "S", default_value = "5", value_parser = seconds)]
    pub timeout: f64,

    /// Each connection reads at most so many bytes per second
    #[arg(long, value_name = "BYTES_PER_SECOND", value_parser = clap::value_parser!(u64).range(1..=Bucket::RATE_MAX))]
    pub slow: Option<u64>,

    /// What HTTP bodies must be [default: what the first one is]
    #[arg(long, value_name = "FILE")]
    pub body_file: Option<PathBuf>,

    /// A process of the server, to say what it cost; repeatable
    #[arg(long = "server-pid", value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    pub server_pids: Vec<u32>,

    /// Decides patterns, addresses and ports [default: random]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,

    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,

    /// With --json: also how many requests were answered by when
    #[arg(long, requires = "json")]
    pub series: bool,

    /// Network interface to send from
    #[arg(long, value_name = "IF", help_heading = "Network")]
    pub interface: String,

    /// Addresses to send from, as 10.9.1.0/24: every host address of the prefix, which nobody else uses
    #[arg(long, value_name = "CIDR", help_heading = "Network")]
    pub sources: Cidr,

    /// Router to the target, if it is not on the link
    #[arg(long, value_name = "IP", help_heading = "Network")]
    pub gateway: Option<IpAddr>,

    /// Queue of the interface
    #[arg(long, value_name = "Q", default_value_t = 0, help_heading = "Network")]
    pub queue: u32,

    /// Processor core to run on
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Network")]
    pub core: usize,

    /// How frames reach the queue
    #[arg(long, value_enum, default_value_t = Mode::Auto, help_heading = "Network")]
    pub mode: Mode,

    /// What the core does when there is nothing to do
    #[arg(long, value_enum, default_value_t = Poll::Busy, help_heading = "Network")]
    pub poll: Poll,

    /// Our end, too, has an engine handle every packet, none directly: for comparison
    #[arg(long, help_heading = "Network")]
    pub engine_only: bool,

    /// Lose frames, each with this probability, in both directions
    #[arg(long, value_name = "P", default_value = "0", value_parser = probability, help_heading = "Faults")]
    pub loss: f64,

    /// Hold frames back for up to a millisecond, each with this probability, in both directions
    #[arg(long, value_name = "P", default_value = "0", value_parser = probability, help_heading = "Faults")]
    pub reorder: f64,

    /// Lose frames in bursts, in both directions: the probabilities, per frame, that a burst begins (P), that it ends
    /// (R), and of loss in a burst (LOSS)
    #[arg(long, value_name = "P,R,LOSS", value_parser = burst, help_heading = "Faults")]
    pub fault_burst: Option<Burst>,

    /// Bits per second that get through in each direction
    #[arg(long, value_name = "R", value_parser = rate, help_heading = "Faults")]
    pub fault_rate: Option<f64>,

    /// With --fault-rate: bytes that wait at most, in each direction; beyond, frames are lost [default: no bound]
    #[arg(long, value_name = "BYTES", requires = "fault_rate", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Faults")]
    pub fault_queue: Option<u32>,

    /// Seconds by which every frame is delayed, in each direction: half of the additional round trip
    #[arg(long, value_name = "S", value_parser = seconds_or_none, help_heading = "Faults")]
    pub fault_delay: Option<f64>,

    /// Decides which frames are lost or held back
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Faults")]
    pub fault_seed: u64,
}

const EXIT_CODES: &str = "SIGTERM and SIGINT end it early, with the result so far.\n\
    Exit code: 0 if all answers were right and in time, 1 if not or if it could not run, 2 for a wrong command \
    line.";

/// Bytes of a message at most.
const MESSAGE_MAX: u32 = 1 << 24;
/// Bytes of an upload unless told otherwise.
const UPLOAD_BYTES: u32 = 100_000_000;
/// More than source addresses and memory are likely to be there for.
const CONNECTIONS_MAX: i64 = 16_000_000;
/// Bytes that may be outstanding on a connection.
const OUTSTANDING_MAX: u64 = 1 << 30;
/// Bytes of a datagram's payload (RFC 768, with the smaller header).
const DATAGRAM_MAX: u32 = 65_507;
/// The largest window without scaling.
const WINDOW_MAX: usize = 65_535;
/// Connections up to which each has a large receive buffer.
const LARGE_BUFFERS_MAX: usize = 10_000;
/// Bytes of a packet's payload, about.
const SEGMENT_BYTES: usize = 1400;
/// Frames on the FILL ring at least.
const FILL_MIN: usize = 256;
/// Frames that wait for what arrives, at most: 32 MiB of them.
const FILL_MAX: usize = 16_384;
/// The longest that a frame is held back.
const REORDER_DELAY: Duration = Duration::from_millis(1);

/// Options that cannot be meant together.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Misuse {
    /// Of a protocol that does not have it.
    #[error("{option} has no meaning for {scheme}://: leave it out")]
    NotFor {
        /// The option.
        option: &'static str,
        /// The protocol.
        scheme: &'static str,
    },
    /// IP versions that differ.
    #[error("{option} {address} and the target {target} are of different IP versions")]
    Versions {
        /// The option.
        option: &'static str,
        /// Its value.
        address: IpAddr,
        /// The target's address.
        target: IpAddr,
    },
    /// All addresses of the prefix are ours.
    #[error("--sources {sources} has {address} in it, which is not ours: choose another prefix")]
    InSources {
        /// The prefix.
        sources: Cidr,
        /// The address of somebody else.
        address: IpAddr,
    },
    /// More connections than pairs of address and port.
    #[error(
        "{connections} connections are more than --sources {sources} has addresses and ports for ({pairs}): \
         choose a larger prefix"
    )]
    Pairs {
        /// How many are to be open.
        connections: u64,
        /// The prefix.
        sources: Cidr,
        /// How many there can be.
        pairs: u64,
    },
    /// A datagram that does not exist.
    #[error("--size {0} is more than a datagram holds ({DATAGRAM_MAX})")]
    Datagram(u32),
    /// A message that would have to be kept.
    #[error("--size {0} is more than a message to be echoed may have ({MESSAGE_MAX})")]
    Message(u32),
    /// More than is sensible.
    #[error(
        "--size {size} times --depth {depth} is more than {OUTSTANDING_MAX} bytes: ask for less"
    )]
    Outstanding {
        /// Bytes of a message.
        size: u32,
        /// Messages.
        depth: u32,
    },
}

impl LoadArgs {
    /// Checks what belongs together, and says what the client is to do; the body file is not read.
    ///
    /// # Errors
    /// The first contradiction.
    pub fn plan(&self) -> Result<Plan, Misuse> {
        self.check_protocol()?;
        self.check_addresses()?;
        let size = self.size.unwrap_or(match self.target.protocol {
            Protocol::TcpUpload => UPLOAD_BYTES,
            _ => 64,
        });
        match self.target.protocol {
            Protocol::UdpEcho if size > DATAGRAM_MAX => return Err(Misuse::Datagram(size)),
            Protocol::TcpEcho if size > MESSAGE_MAX => return Err(Misuse::Message(size)),
            _ => {}
        }
        let depth = self.depth;
        if u64::from(size) * u64::from(depth) > OUTSTANDING_MAX {
            return Err(Misuse::Outstanding { size, depth });
        }
        let seed = self
            .seed
            // Short enough for every reader of JSON.
            .unwrap_or_else(|| RandomState::new().hash_one("seed") >> 32);
        let plan = Plan {
            target: self.target.clone(),
            connections: self.connections,
            idle: self.idle,
            depth,
            size,
            open_rate: self.open_rate,
            rate: self.rate,
            duration: nanos(self.duration),
            warmup: nanos(self.warmup),
            timeout: nanos(self.timeout),
            slow: self.slow,
            sources: self.sources,
            seed,
            body: None,
        };
        let pairs = Sources::new(self.sources, &mut SmallRng::seed_from_u64(seed)).pairs();
        let connections = plan.slots() as u64;
        if connections > pairs {
            return Err(Misuse::Pairs {
                connections,
                sources: self.sources,
                pairs,
            });
        }
        Ok(plan)
    }

    fn check_protocol(&self) -> Result<(), Misuse> {
        let protocol = self.target.protocol;
        let is_udp = protocol == Protocol::UdpEcho;
        let is_single = protocol.is_single();
        let is_upload = protocol == Protocol::TcpUpload;
        for (option, is_given, has_none) in [
            ("--idle", self.idle > 0, is_udp || is_upload),
            ("--slow", self.slow.is_some(), is_udp || is_upload),
            ("--depth", self.depth > 1, is_udp || is_single),
            ("--size", self.size.is_some(), protocol.is_http()),
            ("--body-file", self.body_file.is_some(), !protocol.is_http()),
        ] {
            if is_given && has_none {
                let scheme = protocol.scheme();
                return Err(Misuse::NotFor { option, scheme });
            }
        }
        Ok(())
    }

    fn check_addresses(&self) -> Result<(), Misuse> {
        let target = self.target.address.ip();
        for (option, address) in [
            ("--sources", Some(self.sources.address)),
            ("--gateway", self.gateway),
        ] {
            if let Some(address) = address
                && address.is_ipv4() != target.is_ipv4()
            {
                return Err(Misuse::Versions {
                    option,
                    address,
                    target,
                });
            }
        }
        let others = [Some(target), self.gateway];
        match others
            .into_iter()
            .flatten()
            .find(|address| self.sources.contains(*address))
        {
            Some(address) => Err(Misuse::InSources {
                sources: self.sources,
                address,
            }),
            None => Ok(()),
        }
    }

    /// The configuration of the stack that the plan needs.
    pub fn config(&self, plan: &Plan) -> Config {
        let faults = Faults {
            loss: self.loss,
            burst: self.fault_burst.unwrap_or_default(),
            reordering: self.reorder,
            delay_max: REORDER_DELAY,
            // Less than a bit per second is none to the model.
            rate: self.fault_rate.map_or(0, |rate| rate.ceil() as u64),
            queue_bytes: self.fault_queue.unwrap_or(0) as usize,
            delay: Duration::from_micros((self.fault_delay.unwrap_or(0.0) * 1e6) as u64),
            ..Faults::default()
        };
        Config {
            sources: vec![self.sources],
            gateways: self.gateway.into_iter().collect(),
            queues: vec![self.queue],
            cores: vec![self.core],
            mode: self.mode.into(),
            poll: self.poll.into(),
            slow_threads: 1,
            faults: (!faults.is_perfect()).then_some((faults, self.fault_seed)),
            engine_only: self.engine_only,
            limits: limits(plan),
            ..Config::new(&self.interface)
        }
    }
}

/// Room for the connections, and for those that are being closed beside them; buffers as small as the
/// requests allow, since there may be very many; and frames for what may arrive at once.
fn limits(plan: &Plan) -> Limits {
    let slots = plan.slots();
    let outstanding = plan.size as usize * plan.depth as usize;
    let small = 2 * MTU_MAX;
    let client_rx_bytes = match plan.target.protocol {
        Protocol::UdpEcho => small,
        Protocol::TcpEcho => outstanding.clamp(small, WINDOW_MAX),
        Protocol::TcpUpload => small,
        _ if plan.slow.is_some() => ENGINE_RX_BYTES,
        Protocol::HttpDownload => WINDOW_MAX,
        _ if slots <= LARGE_BUFFERS_MAX => WINDOW_MAX,
        _ => ENGINE_RX_BYTES,
    };
    let frames_each = match plan.target.protocol {
        Protocol::UdpEcho => 1,
        Protocol::TcpEcho => outstanding.min(client_rx_bytes) / SEGMENT_BYTES + 1,
        // An acknowledgement for each segment, at worst.
        Protocol::TcpUpload => outstanding.min(WINDOW_MAX) / SEGMENT_BYTES + 1,
        _ => client_rx_bytes / SEGMENT_BYTES,
    };
    let at_once = (plan.connections as usize).saturating_mul(frames_each);
    // Twice that, and no more: frames that are used again soon are still in the cache.
    let fill_target = (2 * at_once).clamp(FILL_MIN, FILL_MAX).next_power_of_two() as u32;
    let ring_entries = fill_target.max(2048);
    let flows = slots + (plan.connections as usize).min(65_536) + 1024;
    Limits {
        flows,
        // Loss, reordering and large answers may need one for each.
        engines: flows,
        // What was asked is kept until it is acknowledged, by the answer at the latest.
        held_frames: fill_target / 2,
        client_rx_bytes,
        client_tx_bytes: outstanding.clamp(2048, WINDOW_MAX),
        fill_target,
        ring_entries,
        // Nothing is lent; the other half is for what is sent and held.
        loans: 0,
        frames: 2 * ring_entries,
        ..Limits::default()
    }
}

fn nanos(seconds: f64) -> u64 {
    (seconds * SECOND as f64) as u64
}

fn number(text: &str, what: &str, is_right: impl Fn(f64) -> bool) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|number| is_right(*number))
        .ok_or_else(|| format!("not {what}"))
}

fn rate(text: &str) -> Result<f64, String> {
    number(text, "a number per second, from 0.001 to 1e9", |number| {
        (0.001..=1e9).contains(&number)
    })
}

fn seconds(text: &str) -> Result<f64, String> {
    number(text, "seconds, from 0.001 to 86400", |number| {
        (0.001..=86_400.0).contains(&number)
    })
}

fn seconds_or_none(text: &str) -> Result<f64, String> {
    number(text, "seconds, from 0 to 86400", |number| {
        (0.0..=86_400.0).contains(&number)
    })
}

fn probability(text: &str) -> Result<f64, String> {
    number(text, "a probability, from 0 to 1", |number| {
        (0.0..=1.0).contains(&number)
    })
}

fn burst(text: &str) -> Result<Burst, String> {
    let parts: Result<Vec<f64>, String> = text.split(',').map(probability).collect();
    match parts?[..] {
        [enter, leave, loss_bad] => Ok(Burst {
            enter,
            leave,
            loss_good: 0.0,
            loss_bad,
        }),
        _ => Err("not three probabilities, as in 0.001,0.2,0.5".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    const ECHO: &str = "--target tcp-echo://10.0.0.2:7";
    const UDP: &str = "--target udp-echo://10.0.0.2:7";
    const HTTP: &str = "--target http://10.0.0.2/";
    const SINGLE: &str = "--target http-connection://10.0.0.2/";
    const UPLOAD: &str = "--target tcp-upload://10.0.0.2:9";

    fn parse(options: &str) -> Result<LoadArgs, clap::Error> {
        let words = format!("ilet-load --interface eth0 {options}");
        LoadArgs::try_parse_from(words.split_whitespace())
    }

    fn args(options: &str) -> LoadArgs {
        parse(&format!("--sources 10.9.1.0/24 {options}")).unwrap()
    }

    #[test]
    fn the_definition_holds() {
        LoadArgs::command().debug_assert();
    }

    #[test]
    fn defaults() {
        let args = args(ECHO);
        let plan = args.plan().unwrap();
        assert_eq!(
            (plan.connections, plan.idle, plan.depth, plan.size),
            (64, 0, 1, 64)
        );
        assert_eq!(
            (plan.open_rate, plan.rate, plan.slow),
            (20_000.0, None, None)
        );
        let times = (plan.duration, plan.warmup, plan.timeout);
        assert_eq!(times, (10 * SECOND, SECOND, 5 * SECOND));
        assert_eq!((args.queue, args.core, args.poll), (0, 1, Poll::Busy));
        let upload = self::args(UPLOAD).plan().unwrap();
        assert_eq!(upload.size, 100_000_000);
        let config = args.config(&plan);
        assert!(config.faults.is_none() && !config.engine_only);
        // Random unless given.
        assert_ne!(plan.seed, args.plan().unwrap().seed);
    }

    #[test]
    fn everything_given() {
        let args = args(
            "--target http-download://10.0.0.2:8080/big --connections 3 --idle 4 --open-rate 0.5 --depth 2 \
             --rate 1e6 --duration 0.25 --warmup 0 --timeout 1.5 --slow 3600 --body-file /x --server-pid 1 \
             --server-pid 2 --gateway 10.0.1.1 --queue 1 --core 0 --mode copy --poll sleep --seed 7 --json \
             --loss 0.01 --reorder 0.5 --fault-seed 9 --engine-only --fault-burst 0.001,0.2,0.5 --fault-rate 1e7 \
             --fault-queue 50000 --fault-delay 0.01",
        );
        let plan = args.plan().unwrap();
        assert_eq!((plan.duration, plan.warmup), (SECOND / 4, 0));
        assert_eq!((plan.rate, plan.open_rate, plan.seed), (Some(1e6), 0.5, 7));
        assert_eq!(args.server_pids, [1, 2]);
        let config = args.config(&plan);
        let (faults, seed) = config.faults.unwrap();
        assert_eq!((faults.loss, faults.reordering, seed), (0.01, 0.5, 9));
        let Burst {
            enter,
            leave,
            loss_good,
            loss_bad,
        } = faults.burst;
        assert_eq!([enter, leave, loss_good, loss_bad], [0.001, 0.2, 0.0, 0.5]);
        assert_eq!((faults.rate, faults.queue_bytes), (10_000_000, 50_000));
        assert_eq!(faults.delay, Duration::from_millis(10));
        assert!(config.engine_only);
        assert_eq!((config.queues, config.cores), (vec![1], vec![0]));
        assert_eq!(config.gateways, [IpAddr::from([10, 0, 1, 1])]);
    }

    #[test]
    fn contradictions_are_told_in_a_line() {
        for (options, word) in [
            (
                format!("{UDP} --idle 1"),
                "--idle has no meaning for udp-echo",
            ),
            (format!("{UDP} --slow 1"), "--slow"),
            (format!("{UDP} --depth 2"), "--depth"),
            (
                format!("{SINGLE} --depth 2"),
                "--depth has no meaning for http-connection",
            ),
            (format!("{HTTP} --size 64"), "--size"),
            (format!("{ECHO} --body-file x"), "--body-file"),
            (format!("{UDP} --size 65508"), "more than a datagram holds"),
            (
                format!("{ECHO} --size 16777217"),
                "more than a message to be echoed",
            ),
            (
                format!("{UPLOAD} --idle 1"),
                "--idle has no meaning for tcp-upload",
            ),
            (format!("{UPLOAD} --slow 1"), "--slow"),
            (format!("{UPLOAD} --depth 2"), "--depth"),
            (format!("{UPLOAD} --body-file x"), "--body-file"),
            (
                format!("{ECHO} --size 16000000 --depth 1024"),
                "--depth 1024",
            ),
            (format!("{ECHO} --gateway fd00::1"), "--gateway fd00::1"),
            (
                "--target tcp-echo://[fd00::2]:7".into(),
                "--sources 10.9.1.0",
            ),
            ("--target tcp-echo://10.9.1.7:7".into(), "10.9.1.7 in it"),
            (format!("{ECHO} --gateway 10.9.1.255"), "10.9.1.255 in it"),
            (
                format!("{ECHO} --connections 16000000 --idle 16000000"),
                "32000000 connections",
            ),
        ] {
            let line = args(&options).plan().unwrap_err().to_string();
            assert!(
                line.contains(word) && !line.contains('\n'),
                "{options}: {line}"
            );
        }
    }

    #[test]
    fn single_options_are_checked() {
        for options in [
            ECHO,
            "--sources 10.9.1.0/24",
            "--sources 10.9.1.0 --target tcp-echo://10.0.0.2:7",
            "--sources 10.9.1.0/24 --target tcp-echo://10.0.0.2",
        ] {
            assert_eq!(parse(options).unwrap_err().exit_code(), 2, "{options}");
        }
        for options in [
            "--connections 0",
            "--depth 0",
            "--depth 1025",
            "--size 0",
            "--rate 0",
            "--rate -1",
            "--rate nan",
            "--open-rate inf",
            "--duration 0",
            "--warmup -1",
            "--timeout 0",
            "--slow 0",
            "--server-pid 0",
            "--loss 1.1",
            "--reorder -0.1",
            "--fault-burst 0.1,0.2",
            "--fault-burst 0.1,0.2,1.2",
            "--fault-rate 0",
            "--fault-delay -1",
            "--fault-queue 50000",
            "--fault-rate 1e6 --fault-queue 0",
            "--mode fast",
            "--poll never",
            "--series",
            "--unheard-of",
        ] {
            let options = format!("--sources 10.9.1.0/24 {ECHO} {options}");
            assert_eq!(parse(&options).unwrap_err().exit_code(), 2, "{options}");
        }
    }

    #[test]
    fn limits_are_enough_for_every_plan() {
        for options in [
            format!("{ECHO} --connections 500000 --idle 16"),
            format!("{ECHO} --size 16000000"),
            format!("{UDP} --size 65507"),
            format!("{HTTP} --connections 20000"),
            format!("{HTTP} --slow 1"),
            format!("{SINGLE} --connections 1"),
            format!("{UPLOAD} --connections 1000"),
            format!("{UPLOAD} --size 1073741824"),
        ] {
            let plan = args(&options).plan().unwrap();
            let limits = limits(&plan);
            assert!(limits.flows > plan.slots(), "{options}");
            assert!((2 * MTU_MAX..=WINDOW_MAX).contains(&limits.client_rx_bytes));
            assert!(limits.client_tx_bytes <= WINDOW_MAX);
            assert!((FILL_MIN..=FILL_MAX).contains(&(limits.fill_target as usize)));
            assert!(limits.fill_target <= limits.ring_entries);
            assert!(limits.engines == limits.flows);
            let taken = limits.fill_target + limits.held_frames + limits.loans;
            assert!(limits.frames >= taken + 1024);
        }
    }
}
