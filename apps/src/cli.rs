//! The command lines of the servers, and what is wrong with them.

use std::collections::HashSet;
use std::hash::Hash;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, ValueEnum};
use interruptlet::{Cidr, Config, Limits};

/// Echo TCP and UDP on one port, straight from the network card's queues (AF_XDP).
#[derive(Debug, Clone, Parser)]
#[command(name = "ilet-echo", version, after_help = EXIT_CODES)]
pub struct EchoArgs {
    /// Port to echo on, TCP and UDP
    #[arg(long, value_name = "P", default_value_t = 7, value_parser = port())]
    pub port: u16,

    /// What it needs of the stack.
    #[command(flatten)]
    pub stack: StackArgs,
}

/// Take and drop what comes over TCP, straight from the network card's queues (AF_XDP).
#[derive(Debug, Clone, Parser)]
#[command(name = "ilet-sink", version, after_help = EXIT_CODES)]
pub struct SinkArgs {
    /// TCP port to listen on
    #[arg(long, value_name = "P", default_value_t = 9, value_parser = port())]
    pub port: u16,

    /// What it needs of the stack.
    #[command(flatten)]
    pub stack: StackArgs,
}

/// Serve static files over HTTP, straight from the network card's queues (AF_XDP).
#[derive(Debug, Clone, Parser)]
#[command(name = "ilet-httpd", version, after_help = EXIT_CODES)]
pub struct HttpdArgs {
    /// Directory to serve; nothing outside of it is ever read
    ///
    /// Symbolic links in it are followed as far as they stay inside. Absolute ones are refused with 403,
    /// even if they lead back into it: make links relative. If DIR itself is replaced, as a link that is
    /// pointed elsewhere, the new directory is served within about a second.
    #[arg(long, value_name = "DIR")]
    pub root: PathBuf,

    /// TCP port to serve on
    #[arg(long, value_name = "P", default_value_t = 80, value_parser = port())]
    pub port: u16,

    /// Memory for cached files, in bytes or with a suffix K, M or G; 0 reads every file from disk
    ///
    /// Evicted files that slow clients are still being sent may take as much again.
    #[arg(long, value_name = "N", default_value = "64M", value_parser = byte_count)]
    pub cache_bytes: usize,

    /// Threads that read files
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = thread_count())]
    pub threads: u16,

    /// What it needs of the stack.
    #[command(flatten)]
    pub stack: StackArgs,
}

/// The options that concern the stack.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Network")]
pub struct StackArgs {
    /// Network interface to serve on
    #[arg(long, value_name = "IF")]
    pub interface: String,

    /// Address to serve, with its prefix length, as 192.0.2.1/24 or 2001:db8::1/64; repeatable
    #[arg(long = "address", value_name = "CIDR", required = true)]
    pub addresses: Vec<Cidr>,

    /// Router for connections that the stack opens; one for each IP version; repeatable
    ///
    /// A server needs none to answer: answers go back to where the frame of the request came from.
    #[arg(long = "gateway", value_name = "IP")]
    pub gateways: Vec<IpAddr>,

    /// Receive queues of the interface to serve, as 0,1
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "0")]
    pub queues: Vec<u32>,

    /// Processor core for each queue, as 0,1; as many as queues [default: 0, 1, ...]
    ///
    /// A core that is named again serves its queues in turn: at once if it sleeps when idle, a time slice of the kernel's
    /// late with `--poll busy`.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub cores: Vec<usize>,

    /// How frames reach the queue
    #[arg(long, value_enum, default_value_t = Mode::Auto)]
    pub mode: Mode,

    /// What an idle core does
    #[arg(long, value_enum, default_value_t = Poll::Adaptive)]
    pub poll: Poll,

    /// The kernel uses the addresses too: take only our port from it, and leave it ARP, ND and ICMP
    #[arg(long)]
    pub shared_address: bool,

    /// Connections at most, for each queue; beyond, new ones are ignored
    ///
    /// Each takes some 100 bytes; one that an engine has to help takes 18 to 82 KB meanwhile.
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(1..=4_000_000))]
    pub flows: u32,

    /// Packets that may arrive on a queue between two looks of its core; beyond, they are lost
    ///
    /// As many as there are connections that ask at once. Each takes two frames of locked memory, one to receive
    /// and one that is kept until its reply is acknowledged: 4 KB each, or 2 in copy mode
    /// with an MTU of up to 1,770.
    #[arg(long, value_name = "N", default_value_t = BURST, value_parser = clap::value_parser!(u32).range(64..=32_768))]
    pub burst: u32,

    /// Every packet is handled by an engine, none directly: for comparison
    #[arg(long)]
    pub engine_only: bool,

    /// Print the counters every so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub stats_interval: Option<u32>,
}

/// The library's default: see ARCHITECTURE.md, "Frames".
const BURST: u32 = 1024;

pub(crate) const EXIT_CODES: &str = "Ends on SIGTERM and SIGINT when the requests in progress are answered; a signal \
    later than a second after the first ends it at once.\n\
    Exit code: 0 after a signal, 1 if it could not start or go on or was ended at once, 2 for a wrong command line.";

/// How frames reach the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Zero-copy if the driver can, else copy
    Auto,
    /// The card writes into our memory
    ZeroCopy,
    /// The kernel copies every frame
    Copy,
}

/// What an idle core does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Poll {
    /// Polls for ever: lowest latency, a full core
    Busy,
    /// Polls for a moment, then sleeps
    Adaptive,
    /// Sleeps at once
    Sleep,
}

impl From<Mode> for interruptlet::Mode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Auto => Self::Auto,
            Mode::ZeroCopy => Self::ZeroCopy,
            Mode::Copy => Self::Copy,
        }
    }
}

impl From<Poll> for interruptlet::Poll {
    fn from(poll: Poll) -> Self {
        match poll {
            Poll::Busy => Self::Busy,
            Poll::Adaptive => Self::Adaptive,
            Poll::Sleep => Self::Sleep,
        }
    }
}

/// Lists that cannot be meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misuse {
    /// Not one core for each queue.
    #[error("--queues names {queues} and --cores {cores}: give a core for each queue")]
    CoresPerQueue {
        /// Number of queues given.
        queues: usize,
        /// Number of cores given.
        cores: usize,
    },
    /// The same queue or address again.
    #[error("{option} names {value} twice: give each one once")]
    Twice {
        /// The option.
        option: &'static str,
        /// The value.
        value: String,
    },
    /// Both ends of a packet have one IP version.
    #[error("{option} {from} and --target {to}: give two addresses of one IP version")]
    Versions {
        /// The option of the source.
        option: &'static str,
        /// The source.
        from: IpAddr,
        /// The target.
        to: IpAddr,
    },
    /// A message that no packet of the interface holds.
    #[error("--size {size}: a packet of this interface holds {most} bytes, give at most that")]
    Size {
        /// The size given, in bytes.
        size: usize,
        /// What there is room for, in bytes.
        most: usize,
    },
}

impl StackArgs {
    /// Checks the lists, and fills in [`Self::cores`]. What the values mean is the stack's to check.
    ///
    /// # Errors
    /// The first contradiction.
    pub fn checked(mut self) -> Result<Self, Misuse> {
        if self.cores.is_empty() {
            self.cores = (0..self.queues.len()).collect();
        }
        let (queues, cores) = (self.queues.len(), self.cores.len());
        if queues != cores {
            return Err(Misuse::CoresPerQueue { queues, cores });
        }
        once("--queues", self.queues.iter())?;
        let addresses: Vec<IpAddr> = self.addresses.iter().map(|cidr| cidr.address).collect();
        once("--address", addresses.iter())?;
        Ok(self)
    }

    /// The configuration of the stack that these options ask for.
    ///
    /// # Errors
    /// The first contradiction.
    pub fn config(&self, slow_threads: usize) -> Result<Config, Misuse> {
        let args = self.clone().checked()?;
        let limits = args.limits();
        Ok(Config {
            addresses: args.addresses,
            gateways: args.gateways,
            queues: args.queues,
            cores: args.cores,
            mode: args.mode.into(),
            poll: args.poll.into(),
            shared_address: args.shared_address,
            slow_threads,
            engine_only: args.engine_only,
            limits,
            ..Config::new(args.interface)
        })
    }

    /// The bounds that follow from [`Self::flows`] and [`Self::burst`].
    fn limits(&self) -> Limits {
        let default = Limits::default();
        let flows = self.flows as usize;
        // A reply's frame is held until it is acknowledged, by the next request of a connection that asks at once:
        // so many connections hold one while as many packets arrive. The others are idle and hold none, however
        // many there are.
        let held_frames = default.held_frames.max(self.burst);
        Limits {
            flows,
            // With loss or large replies everywhere each connection needs one, which costs nothing before.
            engines: flows,
            held_frames,
            fill_target: self.burst,
            ring_entries: self.burst.next_power_of_two().max(default.ring_entries),
            // The rest of the arena has other work.
            frames: default.frames - default.fill_target - default.held_frames
                + self.burst
                + held_frames,
            ..default
        }
    }

    /// [`Self::stats_interval`] as a duration.
    pub fn stats_interval(&self) -> Option<Duration> {
        let seconds = self.stats_interval?;
        Some(Duration::from_secs(seconds.into()))
    }
}

fn once<'a, T: Eq + Hash + ToString + 'a>(
    option: &'static str,
    values: impl Iterator<Item = &'a T>,
) -> Result<(), Misuse> {
    let mut seen = HashSet::new();
    for value in values {
        if !seen.insert(value) {
            let value = value.to_string();
            return Err(Misuse::Twice { option, value });
        }
    }
    Ok(())
}

pub(crate) fn port() -> clap::builder::RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(1..)
}

fn thread_count() -> clap::builder::RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(1..=256)
}

/// A number of bytes, with a binary suffix if any.
fn byte_count(text: &str) -> Result<usize, String> {
    let (digits, shift) = match text.as_bytes() {
        [.., b'K' | b'k'] => (&text[..text.len() - 1], 10),
        [.., b'M' | b'm'] => (&text[..text.len() - 1], 20),
        [.., b'G' | b'g'] => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: usize = digits
        .parse()
        .map_err(|_| "not a number of bytes, as 1000000, 512K, 64M or 2G".to_owned())?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| "more bytes than this machine can count".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn stack(options: &str) -> Result<StackArgs, Misuse> {
        let words = format!("ilet-echo --interface eth0 {options}");
        let args = EchoArgs::try_parse_from(words.split_whitespace()).unwrap();
        args.stack.checked()
    }

    #[test]
    fn the_definitions_hold() {
        EchoArgs::command().debug_assert();
        HttpdArgs::command().debug_assert();
        SinkArgs::command().debug_assert();
    }

    #[test]
    fn defaults() {
        let words = "ilet-httpd --root /srv --interface eth0 --address 192.0.2.1/24";
        let args = HttpdArgs::try_parse_from(words.split_whitespace()).unwrap();
        assert_eq!(
            (args.port, args.cache_bytes, args.threads),
            (80, 64 << 20, 2)
        );
        let stack = args.stack.checked().unwrap();
        assert_eq!((&stack.queues[..], &stack.cores[..]), (&[0][..], &[0][..]));
        assert_eq!((stack.mode, stack.poll), (Mode::Auto, Poll::Adaptive));
        assert_eq!(stack.addresses[0].address, IpAddr::from([192, 0, 2, 1]));
        assert!(!stack.shared_address && stack.stats_interval().is_none());
        let (ours, default) = (stack.config(1).unwrap().limits, Limits::default());
        assert_eq!(
            (ours.fill_target, ours.ring_entries, ours.frames),
            (default.fill_target, default.ring_entries, default.frames)
        );
        let held = (default.held_frames, default.flows, default.flows);
        assert_eq!((ours.held_frames, ours.flows, ours.engines), held);
        assert!(!stack.config(1).unwrap().engine_only);
    }

    #[test]
    fn everything_given() {
        let stack = stack(
            "--address 192.0.2.1/24 --address 2001:db8::1/64 --gateway 192.0.2.254 --gateway fe80::1 \
             --queues 2,3 --cores 1,0 --mode zero-copy --poll busy --shared-address --stats-interval 5 \
             --flows 500000 --burst 10000 --engine-only",
        )
        .unwrap();
        let config = stack.config(1).unwrap();
        let (limits, default) = (config.limits, Limits::default());
        assert!(config.engine_only);
        assert_eq!((limits.flows, limits.engines), (500_000, 500_000));
        let rings = (limits.fill_target, limits.ring_entries, limits.held_frames);
        assert_eq!(rings, (10_000, 16_384, 10_000));
        let rest = |limits: &Limits| limits.frames - limits.fill_target - limits.held_frames;
        assert_eq!(rest(&limits), rest(&default));
        assert_eq!((stack.addresses.len(), stack.gateways.len()), (2, 2));
        assert_eq!((stack.queues, stack.cores), (vec![2, 3], vec![1, 0]));
        assert_eq!((stack.mode, stack.poll), (Mode::ZeroCopy, Poll::Busy));
        assert_eq!(stack.stats_interval, Some(5));
    }

    #[test]
    fn cores_follow_queues() {
        let stack = stack("--address 192.0.2.1/24 --queues 4,5,6").unwrap();
        assert_eq!(stack.cores, [0, 1, 2]);
    }

    #[test]
    fn a_core_may_have_two_queues() {
        let stack = stack("--address 192.0.2.1/24 --queues 0,1 --cores 1,1").unwrap();
        assert_eq!(stack.checked().unwrap().cores, [1, 1]);
    }

    #[test]
    fn contradictions_are_told_in_a_line() {
        for (options, word) in [
            (
                "--address 192.0.2.1/24 --queues 0,1 --cores 0",
                "give a core for each queue",
            ),
            (
                "--address 192.0.2.1/24 --queues 1,1",
                "--queues names 1 twice",
            ),
            (
                "--address 192.0.2.1/24 --address 192.0.2.1/25",
                "--address names 192.0.2.1 twice",
            ),
        ] {
            let line = stack(options).unwrap_err().to_string();
            assert!(line.contains(word) && !line.contains('\n'), "{line}");
        }
    }

    #[test]
    fn single_options_are_checked() {
        for options in [
            "--address 192.0.2.1",
            "--address 192.0.2.1/33",
            "",
            "--address 192.0.2.1/24 --port 0",
            "--address 192.0.2.1/24 --queues x",
            "--address 192.0.2.1/24 --mode fast",
            "--address 192.0.2.1/24 --stats-interval 0",
            "--address 192.0.2.1/24 --flows 0",
            "--address 192.0.2.1/24 --burst 63",
        ] {
            let words = format!("ilet-echo --interface eth0 {options}");
            let error = EchoArgs::try_parse_from(words.split_whitespace()).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{options}");
        }
    }

    #[test]
    fn byte_counts() {
        for (text, count) in [
            ("0", Some(0)),
            ("123", Some(123)),
            ("2k", Some(2048)),
            ("64M", Some(64 << 20)),
            ("1G", Some(1 << 30)),
            ("", None),
            ("M", None),
            ("-1", None),
            ("1.5M", None),
            ("99999999999999999G", None),
        ] {
            assert_eq!(byte_count(text).ok(), count, "{text}");
        }
    }
}
