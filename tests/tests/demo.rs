//! `scripts/demo --root`: a user's own directory, served until it is told to end.

// Clippy knows test functions, but not their helpers.
#![allow(clippy::expect_used)]

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use interruptlet_tests::lab::{Lab, Options};
use interruptlet_tests::wait;

/// How long the demonstration may take: it looks whether everything is built first.
const DEMO: Duration = Duration::from_secs(300);

/// A demonstration, which is told to end when this is dropped: it takes down what it made.
struct Demo(Child);

impl Demo {
    fn terminate(&self) {
        let pid = self.0.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            self.terminate();
            let _ = self.0.wait();
        }
    }
}

#[test]
fn a_directory_of_ones_own_is_served_until_it_is_told_to_end() {
    // For its scratch directory, and to skip this without root.
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    let site = lab.directory().join("a site");
    std::fs::create_dir(&site).expect("make the site");
    std::fs::write(site.join("note.txt"), "of my own").expect("write a file");
    let output = lab.directory().join("demo.out");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/demo");
    let mut demo = Demo(
        Command::new(script)
            .arg("--root")
            .arg(&site)
            .stdin(Stdio::null())
            .stdout(File::create(&output).expect("make a file"))
            .spawn()
            .expect("run the demonstration"),
    );
    let shown = || std::fs::read_to_string(&output).expect("what it printed");
    let is_up = wait::poll_for(DEMO, || {
        let ended = demo.0.try_wait().expect("look after it").is_some();
        (ended || shown().contains("(files are served from")).then_some(!ended)
    });
    assert_eq!(is_up, Some(true), "{}", shown());
    // The very commands that it prints.
    let text = shown();
    let commands: Vec<&str> = text
        .lines()
        .filter(|line| line.contains(" curl "))
        .collect();
    assert_eq!(commands.len(), 2, "{text}");
    for command in commands {
        let page = Command::new("sh").args(["-c", command]).output();
        let page = page.expect("run a shell").stdout;
        assert_eq!(String::from_utf8_lossy(&page), "of my own", "{command}");
    }
    demo.terminate();
    let status = wait::poll_for(DEMO, || demo.0.try_wait().expect("look after it"));
    let status = status.expect("it ends when it is told to");
    assert!(status.success(), "{status}: {}", shown());
    assert_eq!(shown().matches("all accounted for yes").count(), 2);
}
