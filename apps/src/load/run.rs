//! A run from the main thread: it starts the stack with the client on its core, looks at signals and at the
//! server's processes, shows progress, and tells the result.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{RecvTimeoutError, bounded};
use interruptlet::client::Client;
use interruptlet::{Facts, RunError, Stack, StartError};

use super::cli::{LoadArgs, Misuse};
use super::course::{Course, EVENTS_MAX, Event, Fatal, Finished, Phase, Shared};
use super::datagram::DatagramClient;
use super::http::BODY_MAX;
use super::plan::Plan;
use super::proc::{self, Usage};
use super::record::Record;
use super::report::{Attachment, Cost, Report, Series};
use super::stream::StreamClient;
use super::target::Protocol;
use crate::ending::Ending;
use crate::serve;

/// How often signals and the stack's health are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How often the server's memory is.
const SAMPLE_EVERY: Duration = Duration::from_millis(250);
/// How often progress is shown.
const SHOW_EVERY: Duration = Duration::from_secs(1);
/// For the last frames to be sent.
const GRACE: Duration = Duration::from_millis(200);

/// Why a run is no success.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The command line makes no sense.
    #[error(transparent)]
    Misuse(#[from] Misuse),
    /// The body file is of no use.
    #[error("cannot read the body file {}: {source}", path.display())]
    BodyFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The stack did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The stack ended by itself.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A process of the server is not there, or not any more.
    #[error("the server's process {0} {1}")]
    ServerGone(u32, &'static str),
    /// A process of the server cannot be looked at.
    #[error("cannot see what process {pid} costs: {source}")]
    Sample {
        /// The process.
        pid: u32,
        /// Why not.
        source: io::Error,
    },
    /// The run ended early by itself.
    #[error("{0}")]
    Ended(String),
    /// A signal ended it.
    #[error("ended early by a signal")]
    Signal,
    /// Not all answers were right and in time.
    #[error("not all went well: {0}")]
    Errors(String),
    /// The system failed.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A frame was lost.
    #[error("frames were not conserved: a defect of this program, please report it")]
    FramesLost,
}

/// Runs what the command line asks for, and says on standard error in a line what went wrong. The exit code
/// is 0 if nothing did, 2 for misuse, else 1.
pub fn main(args: &LoadArgs) -> ExitCode {
    let Err(failure) = run(args) else {
        return ExitCode::SUCCESS;
    };
    // If nobody listens, the exit code is left.
    let _ = writeln!(io::stderr(), "error: {failure}");
    match failure {
        Failure::Misuse(_) => ExitCode::from(2),
        _ => ExitCode::FAILURE,
    }
}

fn run(args: &LoadArgs) -> Result<(), Failure> {
    let mut plan = args.plan()?;
    if let Some(path) = &args.body_file {
        plan.body = Some(read_body(path).map_err(|source| Failure::BodyFile {
            path: path.clone(),
            source,
        })?);
    }
    serve::log_to_stderr();
    let ending = Ending::watch().map_err(|source| Failure::System {
        action: "watch for signals",
        source,
    })?;
    let mut server = Watched::new(&args.server_pids)?;
    let mut generator = Watched::new(&[std::process::id()])?;

    let shared = Arc::new(Shared::default());
    let (to_main, events) = bounded(EVENTS_MAX);
    let record = Record::new().ok_or_else(|| Failure::System {
        action: "make the histogram",
        source: io::ErrorKind::InvalidInput.into(),
    })?;
    let factory = {
        let (plan, shared) = (plan.clone(), Arc::clone(&shared));
        Box::new(move |_worker| {
            let shared = Arc::clone(&shared);
            let course = Course::new(plan.clone(), record.clone(), shared, to_main.clone());
            client(course)
        })
    };
    let mut stack = Stack::builder(args.config(&plan)).client(factory).start()?;
    let attachment = attachment(args, stack.facts());

    let mut progress = Progress::new();
    let mut recorder = args.series.then(Recorder::new);
    let mut sampled_at = Instant::now();
    let mut failure = None;
    let finished = loop {
        match events.recv_timeout(LOOK_EVERY) {
            Ok(Event::Begin) => {
                note(&mut failure, server.begin());
                note(&mut failure, generator.begin());
            }
            Ok(Event::End) => {
                note(&mut failure, server.end());
                note(&mut failure, generator.end());
            }
            Ok(Event::Done(finished)) => break Some(finished),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
        if let Err(error) = stack.check() {
            note(&mut failure, Err(error.into()));
            break None;
        }
        if ending.is_asked() {
            note(&mut failure, Err(Failure::Signal));
        }
        if sampled_at.elapsed() >= SAMPLE_EVERY {
            sampled_at = Instant::now();
            note(&mut failure, server.look());
        }
        if failure.is_some() {
            shared.stop.store(true, Ordering::Relaxed);
        }
        progress.show(&shared);
        if let Some(recorder) = &mut recorder {
            recorder.look(&shared);
        }
    };
    progress.clear();
    let stack_report = stack.shutdown_unless(GRACE, || ending.is_urgent());

    let Some(finished) = finished else {
        return failure.map_or(Ok(()), Err);
    };
    if finished.is_measured {
        let server = (!args.server_pids.is_empty()).then_some(&server.cost);
        let report = Report::new(
            &plan,
            attachment,
            &finished,
            server,
            &generator.cost,
            lost_frames(&stack_report.xdp),
        )
        .with_series(recorder.map(|recorder| recorder.series));
        print(&report, args.json);
    }
    failure = failure.or_else(|| what_went_wrong(&finished, args, &plan));
    if failure.is_none() && !stack_report.conserved {
        failure = Some(Failure::FramesLost);
    }
    failure.map_or(Ok(()), Err)
}

fn read_body(path: &PathBuf) -> io::Result<Vec<u8>> {
    let body = std::fs::read(path)?;
    if body.len() as u64 > BODY_MAX {
        let error = format!("it has more than {BODY_MAX} bytes");
        return Err(io::Error::other(error));
    }
    Ok(body)
}

/// What the kernel dropped between the XDP program and us: it had no frame, or no room on the ring.
fn lost_frames(counters: &[(&str, u64)]) -> u64 {
    let lost = ["xsk_rx_dropped", "xsk_rx_ring_full"];
    let counts = counters.iter().filter(|(name, _)| lost.contains(name));
    counts.map(|(_, count)| count).sum()
}

/// The client that the plan's protocol needs.
pub fn client(course: Course) -> Box<dyn Client> {
    match course.plan().target.protocol {
        Protocol::UdpEcho => Box::new(DatagramClient::new(course)),
        _ => Box::new(StreamClient::new(course)),
    }
}

/// The first failure is the one that is told.
fn note(failure: &mut Option<Failure>, result: Result<(), Failure>) {
    if let Err(error) = result {
        failure.get_or_insert(error);
    }
}

fn print(report: &Report, as_json: bool) {
    let text = if as_json {
        format!("{}\n", report.json())
    } else {
        report.to_string()
    };
    let mut output = io::stdout();
    // If nobody listens, the exit code is left.
    let _ = output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush());
}

fn attachment(args: &LoadArgs, facts: &Facts) -> Attachment {
    Attachment {
        is_zero_copy: facts.is_zero_copy(),
        is_native: facts.native,
        poll: match args.poll {
            crate::cli::Poll::Busy => "busy",
            crate::cli::Poll::Adaptive => "adaptive",
            crate::cli::Poll::Sleep => "sleep",
        },
        core: args.core,
    }
}

fn what_went_wrong(finished: &Finished, args: &LoadArgs, plan: &Plan) -> Option<Failure> {
    let errors = finished.record.errors;
    if let Some(fatal) = finished.fatal {
        let mut line = fatal_line(fatal, args, plan);
        if finished.record.answered > 0 {
            let answered = finished.record.answered;
            line = format!("{line} ({answered} requests were answered before)");
        }
        return Some(Failure::Ended(line));
    }
    (errors.total() > 0).then(|| Failure::Errors(errors.listed()))
}

fn fatal_line(fatal: Fatal, args: &LoadArgs, plan: &Plan) -> String {
    let (target, interface, sources) = (plan.target.address, &args.interface, plan.sources);
    match fatal {
        Fatal::Unreachable => {
            let hop = args.gateway.unwrap_or(target.ip());
            let what = if hop.is_ipv4() {
                "ARP"
            } else {
                "neighbour discovery"
            };
            format!(
                "no answer to {what} for {hop} on {interface}: is it on that link, and does it have a route to \
                 {sources}?"
            )
        }
        Fatal::Refused => format!("connection refused by {target}: is the server running?"),
        Fatal::Silent => format!(
            "nothing came from {target} for more than {} s: is the server running, and does it have a route to \
             {sources}?",
            args.timeout
        ),
        Fatal::NotSent => format!(
            "datagrams of {} bytes cannot be sent on {interface}: do they fit its MTU?",
            plan.size
        ),
        Fatal::NotOpened => format!("no connection is possible from {sources} to {target}"),
    }
}

/// Processes that are looked at.
#[derive(Debug)]
struct Watched {
    cost: Cost,
    is_measuring: bool,
}

impl Watched {
    fn new(pids: &[u32]) -> Result<Self, Failure> {
        let watched = Self {
            cost: Cost {
                pids: pids.to_vec(),
                ..Cost::default()
            },
            is_measuring: false,
        };
        watched.sample("is not there: see --server-pid")?;
        Ok(watched)
    }

    fn sample(&self, when_gone: &'static str) -> Result<Usage, Failure> {
        let mut sum = Usage::default();
        for &pid in &self.cost.pids {
            let usage = proc::sample(pid)
                .map_err(|source| Failure::Sample { pid, source })?
                .ok_or(Failure::ServerGone(pid, when_gone))?;
            sum.cpu_nanos += usage.cpu_nanos;
            sum.voluntary_switches += usage.voluntary_switches;
            sum.involuntary_switches += usage.involuntary_switches;
            sum.resident_bytes += usage.resident_bytes;
        }
        Ok(sum)
    }

    /// Looks whether they are there, and in the interval what they cost so far.
    fn look(&mut self) -> Result<(), Failure> {
        let usage = self.sample("died during the run")?;
        if self.is_measuring {
            let cost = &mut self.cost;
            cost.end = usage;
            cost.resident_bytes_max = cost.resident_bytes_max.max(usage.resident_bytes);
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<(), Failure> {
        self.is_measuring = true;
        self.look()?;
        self.cost.begin = self.cost.end;
        Ok(())
    }

    fn end(&mut self) -> Result<(), Failure> {
        let looked = self.look();
        self.is_measuring = false;
        looked
    }
}

/// Writes down how many requests were answered, at every look.
struct Recorder {
    began: Instant,
    series: Series,
}

impl Recorder {
    fn new() -> Self {
        // A clock before its own beginning is nobody's.
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            began: Instant::now(),
            series: Series {
                began_at: since.unwrap_or_default().as_secs_f64(),
                points: Vec::new(),
            },
        }
    }

    fn look(&mut self, shared: &Shared) {
        let answered = shared.answered.load(Ordering::Relaxed);
        let point = (self.began.elapsed().as_secs_f64(), answered);
        self.series.points.push(point);
    }
}

/// A line on standard error that is written over, if that is a terminal.
struct Progress {
    is_shown: bool,
    shown_at: Instant,
    answered: u64,
}

impl Progress {
    fn new() -> Self {
        Self {
            is_shown: io::stderr().is_terminal(),
            shown_at: Instant::now(),
            answered: 0,
        }
    }

    fn show(&mut self, shared: &Shared) {
        let since = self.shown_at.elapsed();
        if !self.is_shown || since < SHOW_EVERY {
            return;
        }
        self.shown_at = Instant::now();
        let answered = shared.answered.load(Ordering::Relaxed);
        let rate = answered.saturating_sub(self.answered) as f64 / since.as_secs_f64();
        self.answered = answered;
        let line = progress_line(shared, rate);
        let _ = write!(io::stderr(), "\r\x1b[K{line}");
    }

    fn clear(&self) {
        if self.is_shown {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

fn progress_line(shared: &Shared, rate: f64) -> String {
    let phase = shared.phase.load(Ordering::Relaxed);
    let doing = [
        (Phase::Resolving, "looking for the way"),
        (Phase::Opening, "opening"),
        (Phase::Warming, "warming up"),
        (Phase::Measuring, "measuring"),
        (Phase::Draining, "waiting for what is owed"),
    ]
    .into_iter()
    .find(|(candidate, _)| *candidate as u8 == phase)
    .map_or("closing", |(_, doing)| doing);
    format!(
        "{doing}: {} connections, {rate:.0} requests/s, {} errors",
        shared.open.load(Ordering::Relaxed),
        shared.errors.load(Ordering::Relaxed)
    )
}
