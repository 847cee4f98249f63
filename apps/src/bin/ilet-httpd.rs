//! `ilet-httpd`: static files over HTTP.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use interruptlet::{Duration, Stack, StreamService};
use interruptlet_apps::cli::HttpdArgs;
use interruptlet_apps::http::Site;
use interruptlet_apps::http::descriptors;
use interruptlet_apps::http::fast::Fast;
use interruptlet_apps::http::slow::Slow;
use interruptlet_apps::http::watch::Watcher;
use interruptlet_apps::serve::{self, Failure};

/// How long a request may take to arrive, from its first byte to its last.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may wait for its next request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);

fn main() -> ExitCode {
    let args = HttpdArgs::parse();
    serve::exit_code(run(&args))
}

fn run(args: &HttpdArgs) -> Result<(), Failure> {
    let config = args.stack.config(args.threads.into())?;
    serve::log_to_stderr();
    descriptors::raise_limit();
    let site = Site::open(&args.root, args.cache_bytes)?;
    let slow = Arc::new(Slow::new(site.clone()));
    let watcher = Watcher::start(slow.clone());
    if let Err(error) = &watcher {
        log::warn!(
            "cannot start the thread that looks at cached files: {error}; requests wait for that instead"
        );
    }
    let service = StreamService {
        interruptlet: Box::new(move |_worker| Box::new(Fast::new(site.clone()))),
        slow: Some(slow),
        request_timeout: REQUEST_TIMEOUT,
        idle_timeout: Some(IDLE_TIMEOUT),
        keep_alive: None,
    };
    let builder = Stack::builder(config).stream(args.port, service);
    serve::run(builder, &args.stack, &format!("TCP port {}", args.port))
}
