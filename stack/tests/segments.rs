//! Plays the scripts in `segments/`: each shows a clause of an RFC, on the wire. See `common::script`.
//!
//! `SEGMENTS=part-of-a-name` plays those alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use common::script::parse::parse;
use common::script::play::play;
use common::script::{MODES, Mode, Wrong};

/// Fewer means that they were not found.
const FILES_MIN: usize = 60;

/// The scripts, by name.
fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/segments");
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    files.sort();
    files
}

/// Plays a script in every mode that it has; says what went wrong.
fn failures(name: &str, text: &str) -> Vec<String> {
    let script = match parse(text) {
        Ok(script) => script,
        Err(Wrong { line, what }) => return vec![format!("{name}:{line}: {what}")],
    };
    let modes = MODES
        .into_iter()
        .filter(|mode| script.settings.only.is_none_or(|only| only == *mode));
    let mut failures = Vec::new();
    for mode in modes {
        let called = match mode {
            Mode::Direct => "direct",
            Mode::Engine => "engine only",
        };
        match catch_unwind(AssertUnwindSafe(|| play(&script, mode))) {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => failures.push(format!(
                "{name}:{}: ({called})\n    expected {}\n    came     {}\n      {}",
                failure.line,
                failure.expected,
                failure.came,
                failure.trace.join("\n      "),
            )),
            Err(panic) => {
                let said = panic
                    .downcast_ref::<String>()
                    .map(String::as_str)
                    .or_else(|| panic.downcast_ref::<&str>().copied());
                let said = said.unwrap_or("a panic");
                failures.push(format!("{name}: ({called})\n    panicked: {said}"));
            }
        }
    }
    failures
}

#[test]
fn scripts_come_out_as_written() {
    let files = files();
    assert!(files.len() >= FILES_MIN, "only {} scripts", files.len());
    let wanted = std::env::var("SEGMENTS").unwrap_or_default();
    let mut failed = Vec::new();
    let mut played = 0;
    for file in files {
        let name = file.file_name().unwrap().to_string_lossy();
        if !name.contains(&wanted) {
            continue;
        }
        played += 1;
        failed.extend(failures(&name, &fs::read_to_string(&file).unwrap()));
    }
    assert!(played > 0, "no script is called *{wanted}*");
    assert!(
        failed.is_empty(),
        "{} failures in {played} scripts:\n{}",
        failed.len(),
        failed.join("\n")
    );
}

#[test]
fn what_is_no_script_is_told_with_its_line() {
    for (text, line, what) in [
        ("", 1, "without steps"),
        ("ip 5\nnothing", 1, "no IP version: 5"),
        ("nothing\nip 6", 2, "a setting behind a step"),
        ("# a comment\nnothing more", 2, "more than the statement"),
        ("perhaps", 1, "no statement: perhaps"),
        ("> SYN", 1, "without `seq=`"),
        ("> SYN seq=0 ack=0", 1, "belongs to the ACK flag"),
        ("> ACK seq=0", 1, "belongs to the ACK flag"),
        ("> SYM seq=0", 1, "no flag: SYM"),
        ("> SYN seq=0 len=5", 1, "for what we sent"),
        ("< SYN seq=0 len=5 \"x\"", 1, "data and `len=`"),
        ("< SYN seq=0 colour=5", 1, "no part of a segment: colour=5"),
        ("<+ ACK seq=0 ack=0", 1, "about data"),
        ("times 1..2 SYN seq=0", 1, "in place of <"),
        ("within 2s..1s < SYN seq=0", 1, "ends before it begins"),
        ("wait 5", 1, "a time without a unit"),
        ("send \"x", 1, "a quote without its end"),
    ] {
        let wrong = parse(text).unwrap_err();
        assert_eq!(wrong.line, line, "{text}: {wrong:?}");
        assert!(wrong.what.contains(what), "{text}: {wrong:?}");
    }
}

/// A script that expects what does not happen fails, at the line that does not fit.
#[test]
fn what_does_not_come_out_as_written_is_told_with_its_line() {
    let opening = "> SYN seq=0 mss=1460\n\
                   < SYN|ACK seq=0 ack=1 mss=1460\n\
                   > ACK seq=1 ack=1\n";
    let request = "> ACK seq=1 ack=1 \"reply a\\n\"\n";
    let reply = "< ACK seq=1 ack=9 \"<a>\\n\"\n";
    let right = format!("{opening}{request}{reply}");
    assert_eq!(failures("right", &right), [""; 0]);
    for (rest, line, expected) in [
        ("< RST seq=1".to_owned(), 4, "expected RST seq=1"),
        (format!("{request}< ACK seq=1 ack=8 \"<a>\\n\""), 5, "ack=8"),
        (format!("{request}< ACK seq=2 ack=9 \"<a>\\n\""), 5, "seq=2"),
        (format!("{request}< ACK seq=1 ack=9 \"<b>\\n\""), 5, "<b>"),
        (format!("{request}< ACK seq=1 ack=9 len=5"), 5, "len=5"),
        (format!("{request}<+ ACK seq=1 ack=9 len=5"), 5, "len=5"),
        (
            format!("{request}< ACK seq=1 ack=9 win=1 len=4"),
            5,
            "win=1",
        ),
        (format!("{request}nothing"), 5, "expected nothing"),
        (request.to_owned(), 4, "nothing more before the end"),
        (format!("{request}{request}"), 5, "not expected"),
        (format!("{request}{reply}flows 2"), 6, "flows 2"),
        (
            format!("{request}{reply}within 3s..5s < ACK seq=1 ack=9 len=4"),
            6,
            "after 3",
        ),
        (
            format!("{request}times 2..3 < ACK seq=1 ack=9 len=4"),
            5,
            "2 to 3",
        ),
        (
            format!("{request}< ACK seq=1 ack=7..8 len=4"),
            5,
            "ack=7..8",
        ),
        ("counter nonsense 1".to_owned(), 4, "a counter nonsense"),
    ] {
        let failed = failures("wrong", &format!("{opening}{rest}"));
        assert_eq!(failed.len(), 2, "{rest}: {failed:?}");
        let place = format!("wrong:{line}: (direct)");
        assert!(failed[0].starts_with(&place), "{rest}: {failed:?}");
        assert!(failed[0].contains(expected), "{rest}: {failed:?}");
    }
}
