//! Running a stack in the foreground: the ready line, the counters, signals, and the exit code.

use std::fmt;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use interruptlet::arena::Owner;
use interruptlet::{Builder, Report, RunError, StartError};

use crate::bare::memory::Broken;
use crate::cli::{Misuse, StackArgs};
use crate::ending::Ending;
use crate::http::files::RootError;
use crate::printer::Printer;

/// How long requests in progress may take after a signal.
const GRACE: Duration = Duration::from_secs(10);
/// How often signals and the stack's health are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Why a server ends with an error.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The command line makes no sense.
    #[error(transparent)]
    Misuse(#[from] Misuse),
    /// There is nothing to serve.
    #[error(transparent)]
    Root(#[from] RootError),
    /// The stack did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The stack ended by itself.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The system failed.
    #[error(
        "cannot watch for signals: {0}; this is unusual, see whether the system is short of memory"
    )]
    Signals(io::Error),
    /// The system has no thread left.
    #[error("cannot start the thread that prints: {0}; see the limits of processes and memory")]
    Printer(io::Error),
    /// A sender got no answer at all.
    #[error(
        "nothing came back from {0}: see whether ilet-reflect serves there, and whether --peer-link is right"
    )]
    Silent(SocketAddr),
    /// A server in memory did not do what it was measured for.
    #[error(transparent)]
    Broken(#[from] Broken),
    /// It was told to end at once while it ended in order.
    #[error(
        "told to end at once: connections that were not finished were reset; one signal, or several within a second, \
         give them {} s",
        GRACE.as_secs()
    )]
    CutShort,
    /// Some queues had no worker in the end.
    #[error(
        "queue {} lost its worker, and its traffic was left to the kernel: the lines above say why",
        .0.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )]
    QueuesLost(Vec<u32>),
    /// Some cores did not come back from a handler.
    #[error(
        "the core of queue {} did not come back from a handler: its connections were not reset, and its frames are not \
         accounted for",
        .0.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )]
    QueuesLeft(Vec<u32>),
    /// A frame was lost.
    #[error(
        "frames were not conserved: a defect of this program, please report it with the counters"
    )]
    FramesLost,
}

/// Says on standard error what went wrong, in a line, and turns it into an exit code: 0 if nothing did,
/// 2 for misuse, else 1.
pub fn exit_code(result: Result<(), Failure>) -> ExitCode {
    let Err(failure) = result else {
        return ExitCode::SUCCESS;
    };
    // If nobody listens, the exit code is left.
    let _ = writeln!(io::stderr(), "error: {failure}");
    match failure {
        Failure::Misuse(_) => ExitCode::from(2),
        _ => ExitCode::FAILURE,
    }
}

/// Starts a stack and runs it until a signal ends it in order, or a failure. `services` says in the ready
/// line what is served. A second request to end (see [`Ending`]) resets what is left; the counters are printed all the same.
///
/// # Errors
/// When it cannot start, ends by itself, or was not given the time to end in order.
pub fn run(builder: Builder, args: &StackArgs, services: &str) -> Result<(), Failure> {
    log_to_stderr();
    let ending = Ending::watch().map_err(Failure::Signals)?;
    let printer = Printer::start(io::stdout()).map_err(Failure::Printer)?;
    let mut stack = builder.start()?;
    let addresses: Vec<String> = args.addresses.iter().map(ToString::to_string).collect();
    let (interface, addresses) = (&args.interface, addresses.join(", "));
    let facts = stack.facts();
    printer.print(format!(
        "ready: {services} of {addresses} on {interface}, {facts}\n"
    ));

    let mut reported_at = Instant::now();
    let ended = loop {
        if ending.is_asked() {
            break Ok(());
        }
        if let Err(error) = stack.check() {
            break Err(error);
        }
        if args
            .stats_interval()
            .is_some_and(|every| reported_at.elapsed() >= every)
        {
            reported_at = Instant::now();
            printer.print(Lines(&stack.report()).to_string());
        }
        std::thread::sleep(LOOK_EVERY);
    };
    let report = stack.shutdown_unless(GRACE, || ending.is_urgent());
    printer.finish(Lines(&report).to_string());
    judge(ended, &report)
}

/// Says whether a stack that ran until `ended` and left `report` ended well.
fn judge(ended: Result<(), RunError>, report: &Report) -> Result<(), Failure> {
    ended?;
    if !report.queues_lost.is_empty() {
        return Err(Failure::QueuesLost(report.queues_lost.clone()));
    }
    if !report.queues_left.is_empty() {
        return Err(Failure::QueuesLeft(report.queues_left.clone()));
    }
    if !report.conserved {
        return Err(Failure::FramesLost);
    }
    if report.cut_short {
        return Err(Failure::CutShort);
    }
    Ok(())
}

/// A report in lines that scripts can read: `counter NAME VALUE` and `xdp NAME VALUE` for what is not
/// zero, `frames queue=N total=N OWNER=N ...` for each queue, and `conserved yes` or `no` at the end.
pub(crate) struct Lines<'a>(pub(crate) &'a Report);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, values) in [("counter", &self.0.counters), ("xdp", &self.0.xdp)] {
            for (name, value) in values.iter().filter(|(_, value)| *value > 0) {
                writeln!(f, "{kind} {name} {value}")?;
            }
        }
        for (queue, count) in &self.0.frames {
            write!(f, "frames queue={queue} total={}", count.total)?;
            for owner in Owner::ALL {
                write!(f, " {}={}", owner.name(), count.of(owner))?;
            }
            writeln!(f)?;
        }
        let conserved = if self.0.conserved { "yes" } else { "no" };
        writeln!(f, "conserved {conserved}")
    }
}

/// Warnings and worse, a line each.
struct StderrLog;

impl log::Log for StderrLog {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let level = record.level().as_str().to_ascii_lowercase();
            let _ = writeln!(io::stderr(), "{level}: {}", record.args());
        }
    }

    fn flush(&self) {}
}

/// Warnings go to standard error from here on.
pub fn log_to_stderr() {
    // Fails only if there is a logger already, which will do.
    if log::set_logger(&StderrLog).is_ok() {
        log::set_max_level(log::LevelFilter::Warn);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use interruptlet::arena::FrameCount;

    #[test]
    fn a_report_in_lines() {
        let mut count = FrameCount {
            total: 8,
            ..FrameCount::default()
        };
        count.by_owner[Owner::Free as usize] = 5;
        count.by_owner[Owner::Fill as usize] = 3;
        let report = Report {
            counters: vec![("rx_frames", 7), ("tx_frames", 0)],
            xdp: vec![("redirect", 7)],
            frames: vec![(1, count)],
            conserved: true,
            ..Report::default()
        };
        assert_eq!(
            Lines(&report).to_string(),
            "counter rx_frames 7\nxdp redirect 7\n\
             frames queue=1 total=8 free=5 fill=3 rx=0 tx=0 flow=0 loan=0\nconserved yes\n"
        );
    }

    #[test]
    fn it_ended_well_unless_it_was_cut_short_or_lost_frames() {
        let report = |conserved, cut_short| Report {
            conserved,
            cut_short,
            ..Report::default()
        };
        assert!(judge(Ok(()), &report(true, false)).is_ok());
        let cut = judge(Ok(()), &report(true, true));
        assert!(matches!(cut, Err(Failure::CutShort)));
        let lost = judge(Ok(()), &report(false, true));
        assert!(matches!(lost, Err(Failure::FramesLost)));
        let without_worker = Report {
            queues_lost: vec![1, 3],
            ..report(false, false)
        };
        let failure = judge(Ok(()), &without_worker).unwrap_err();
        assert!(
            failure.to_string().starts_with("queue 1, 3 lost"),
            "{failure}"
        );
        let hanging = Report {
            queues_left: vec![2],
            ..report(false, false)
        };
        assert!(matches!(
            judge(Ok(()), &hanging),
            Err(Failure::QueuesLeft(_))
        ));
        let gone = RunError::Panicked { queue: 0 };
        let ended = judge(Err(gone), &report(false, true));
        assert!(matches!(ended, Err(Failure::Run(_))));
    }

    #[test]
    fn misuse_has_an_exit_code_of_its_own() {
        assert_eq!(exit_code(Ok(())), ExitCode::SUCCESS);
        assert_eq!(exit_code(Err(Failure::FramesLost)), ExitCode::FAILURE);
        let misuse = Misuse::CoresPerQueue {
            queues: 1,
            cores: 2,
        };
        assert_eq!(exit_code(Err(misuse.into())), ExitCode::from(2));
    }
}
