//! What a process costs, from `/proc`: processor time, context switches, memory.

use std::fs;
use std::io;

/// What a process had cost when it was looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time of all its threads, user and system, in nanoseconds.
    pub cpu_nanos: u64,
    /// Times that its threads waited for something.
    pub voluntary_switches: u64,
    /// Times that a processor was taken from its threads.
    pub involuntary_switches: u64,
    /// Memory that it has resident, in bytes.
    pub resident_bytes: u64,
}

/// Looks at process `pid`; `None` if it has ended.
///
/// # Errors
///
/// If `/proc` cannot be read or understood.
pub fn sample(pid: u32) -> io::Result<Option<Usage>> {
    match read(pid) {
        Err(error) if is_gone(&error) => Ok(None),
        other => other,
    }
}

/// What is said of files of a process that is no more: not found, or ESRCH when it goes while we read.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

fn read(pid: u32) -> io::Result<Option<Usage>> {
    let garbled = || io::Error::other(format!("/proc/{pid} is not as expected"));
    let directory = format!("/proc/{pid}");
    let stat = fs::read_to_string(format!("{directory}/stat"))?;
    let stat = Stat::parse(&stat).ok_or_else(garbled)?;
    if stat.has_ended {
        return Ok(None);
    }
    let statm = fs::read_to_string(format!("{directory}/statm"))?;
    let pages = resident_pages(&statm).ok_or_else(garbled)?;
    let mut usage = Usage {
        cpu_nanos: stat.ticks * (1_000_000_000 / rustix::param::clock_ticks_per_second()),
        resident_bytes: pages * rustix::param::page_size() as u64,
        ..Usage::default()
    };
    for task in fs::read_dir(format!("{directory}/task"))? {
        let status = match fs::read_to_string(task?.path().join("status")) {
            // A thread that has just ended.
            Err(error) if is_gone(&error) => continue,
            status => status?,
        };
        let (voluntary, involuntary) = switches(&status).ok_or_else(garbled)?;
        usage.voluntary_switches += voluntary;
        usage.involuntary_switches += involuntary;
    }
    Ok(Some(usage))
}

/// What is of interest in `/proc/PID/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    has_ended: bool,
    ticks: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name in parentheses may have anything in it.
        let mut fields = text.get(text.rfind(')')? + 1..)?.split_whitespace();
        let state = fields.next()?;
        // utime and stime are the fields 14 and 15, the state is the third.
        let user: u64 = fields.nth(10)?.parse().ok()?;
        let system: u64 = fields.next()?.parse().ok()?;
        Some(Self {
            // A zombie: it waits for its parent only.
            has_ended: matches!(state, "Z" | "X" | "x"),
            ticks: user.checked_add(system)?,
        })
    }
}

fn resident_pages(statm: &str) -> Option<u64> {
    statm.split_whitespace().nth(1)?.parse().ok()
}

/// Voluntary and involuntary context switches, from `/proc/PID/task/TID/status`.
fn switches(status: &str) -> Option<(u64, u64)> {
    let field = |name: &str| -> Option<u64> {
        let line = status.lines().find(|line| line.starts_with(name))?;
        line.get(name.len()..)?.trim().parse().ok()
    };
    Some((
        field("voluntary_ctxt_switches:")?,
        field("nonvoluntary_ctxt_switches:")?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::process::{Command, Stdio};

    #[test]
    fn stat_of_a_name_with_everything_in_it() {
        let text =
            "77 (a) R 1 (b) S 1 77 77 0 -1 4194560 10 0 0 0 123 45 0 0 20 0 1 0 99 1000 200\n";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.has_ended, stat.ticks), (false, 168));
        let zombie = text.replace(") S", ") Z");
        assert!(Stat::parse(&zombie).unwrap().has_ended);
        for text in ["", "1 (x", "1 (x) R", "1 (x) R 1 2 3 4 5 6 7 8 9 10 a b"] {
            assert_eq!(Stat::parse(text), None, "{text}");
        }
    }

    #[test]
    fn other_files() {
        assert_eq!(resident_pages("100 25 3 4 5 6 7\n"), Some(25));
        assert_eq!(resident_pages("100"), None);
        let status = "Name:\tx\nvoluntary_ctxt_switches:\t12\nnonvoluntary_ctxt_switches:\t34\n";
        assert_eq!(switches(status), Some((12, 34)));
        assert_eq!(switches("Name:\tx\n"), None);
    }

    #[test]
    fn ourselves_a_process_that_ended_and_one_that_never_was() {
        let usage = sample(std::process::id()).unwrap().unwrap();
        assert!(usage.resident_bytes > 100_000);

        let mut child = Command::new("true").stdout(Stdio::null()).spawn().unwrap();
        let pid = child.id();
        // A zombie from when it ends until it is waited for.
        while sample(pid).unwrap().is_some() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        child.wait().unwrap();
        assert_eq!(sample(u32::MAX).unwrap(), None);
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text: String) {
            let _ = Stat::parse(&text);
            let _ = resident_pages(&text);
            let _ = switches(&text);
        }
    }
}
