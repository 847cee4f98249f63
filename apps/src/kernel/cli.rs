//! The command lines of the programs on the kernel's sockets.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser};

use super::listen::Endpoint;

const EXIT_CODES: &str = "Ends on SIGTERM and SIGINT, and closes all connections.\n\
    Exit code: 0 after a signal, 1 if it could not start or go on, 2 for a wrong command line.";

const UPLOAD_EXIT_CODES: &str = "Exit code: 0 if everything was sent and the server closed after that, 1 if not, \
    2 for a wrong command line.";

/// Echo TCP and UDP on one port of the kernel, in one thread.
#[derive(Debug, Clone, Parser)]
#[command(name = "kernel-echo", version, after_help = EXIT_CODES)]
pub struct EchoArgs {
    /// Port to echo on, TCP and UDP
    #[arg(long, value_name = "P", default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,

    /// Where and how to listen.
    #[command(flatten)]
    pub listen: ListenArgs,
}

/// Serve files over HTTP on a port of the kernel, in one thread, from responses made at the start.
#[derive(Debug, Clone, Parser)]
#[command(name = "kernel-httpd", version, after_help = EXIT_CODES)]
pub struct HttpdArgs {
    /// Directory whose files are served as they are at the start; 1 GiB at most
    ///
    /// Symbolic links in it are not followed.
    #[arg(long, value_name = "DIR")]
    pub root: PathBuf,

    /// TCP port to serve on
    #[arg(long, value_name = "P", default_value_t = 80, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,

    /// Where and how to listen.
    #[command(flatten)]
    pub listen: ListenArgs,
}

/// Take and drop what comes over TCP on a port of the kernel, in one thread. Says at the end how many bytes that was.
#[derive(Debug, Clone, Parser)]
#[command(name = "kernel-sink", version, after_help = EXIT_CODES)]
pub struct SinkArgs {
    /// TCP port to listen on
    #[arg(long, value_name = "P", default_value_t = 9, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,

    /// Where and how to listen.
    #[command(flatten)]
    pub listen: ListenArgs,
}

/// Send so many bytes over a TCP connection of the kernel, close it, and wait until the server closes it too. Prints a
/// line of JSON.
#[derive(Debug, Clone, Parser)]
#[command(name = "kernel-upload", version, after_help = UPLOAD_EXIT_CODES)]
pub struct UploadArgs {
    /// Address and port of the server
    #[arg(long, value_name = "IP:PORT")]
    pub target: SocketAddr,

    /// How many bytes to send
    #[arg(long, value_name = "N", default_value_t = 100_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub bytes: u64,

    /// Seconds in which nothing goes on after which it gives up
    #[arg(long, value_name = "S", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub timeout: u32,
}

/// The options that concern the sockets.
#[derive(Debug, Clone, Args)]
pub struct ListenArgs {
    /// Address of the kernel to serve on; 0.0.0.0 or :: for all
    #[arg(long, value_name = "IP")]
    pub address: IpAddr,

    /// Poll for so long before going to sleep, the card's queue too (SO_BUSY_POLL, EPIOCSPARAMS)
    #[arg(long, value_name = "MICROS", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub busy_poll: Option<u32>,
}

impl ListenArgs {
    /// The endpoint with this port.
    pub fn endpoint(&self, port: u16) -> Endpoint {
        Endpoint {
            address: self.address,
            port,
            busy_poll: self
                .busy_poll
                .map(|micros| Duration::from_micros(micros.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definitions_hold() {
        EchoArgs::command().debug_assert();
        HttpdArgs::command().debug_assert();
        SinkArgs::command().debug_assert();
        UploadArgs::command().debug_assert();
    }

    #[test]
    fn what_is_given_is_taken() {
        let words = "kernel-httpd --root /srv --address ::1 --port 8080 --busy-poll 50";
        let args = HttpdArgs::try_parse_from(words.split_whitespace()).unwrap();
        assert_eq!(args.root, PathBuf::from("/srv"));
        assert_eq!(
            args.listen.endpoint(args.port),
            Endpoint {
                address: "::1".parse().unwrap(),
                port: 8080,
                busy_poll: Some(Duration::from_micros(50)),
            }
        );
        let words = "kernel-echo --address 192.0.2.1";
        let args = EchoArgs::try_parse_from(words.split_whitespace()).unwrap();
        let endpoint = args.listen.endpoint(args.port);
        assert_eq!((endpoint.port, endpoint.busy_poll), (7, None));
    }

    #[test]
    fn misuse_is_refused() {
        for words in [
            "kernel-echo",
            "kernel-echo --address 192.0.2.1/24",
            "kernel-echo --address 192.0.2.1 --port 0",
            "kernel-echo --address 192.0.2.1 --busy-poll 0",
            "kernel-echo --address 192.0.2.1 --busy-poll x",
        ] {
            assert!(
                EchoArgs::try_parse_from(words.split_whitespace()).is_err(),
                "{words}"
            );
        }
        assert!(HttpdArgs::try_parse_from(["kernel-httpd", "--address", "::1"]).is_err());
    }
}
