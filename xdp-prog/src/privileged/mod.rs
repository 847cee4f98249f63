//! Tests that load the program into the kernel, and so need root: in network namespaces of their own.
//!
//! `ILET_UNPRIVILEGED=1` skips them; else they fail without root. They are to run one at a time: a child process that
//! another test is just starting has a copy of this one's descriptors for a moment, and so keeps its program attached.

mod attach;
mod frames;
mod interfaces;
mod namespace;
mod socket;
mod verdicts;

use std::env;
use std::panic::resume_unwind;
use std::thread;

use namespace::Namespace;

/// Run `body` in a thread with a network namespace of its own, which the kernel takes down with the
/// thread, however that ends. Only the loopback interface is there, and it is up.
fn in_namespace(body: impl FnOnce(&Namespace) + Send) {
    if env::var_os("ILET_UNPRIVILEGED").is_some_and(|value| value == "1") {
        println!("skipped: needs root");
        return;
    }
    assert!(
        rustix::process::geteuid().is_root(),
        "needs root: run the tests as root, or set ILET_UNPRIVILEGED=1 to go without this one"
    );
    let ended = thread::scope(|scope| scope.spawn(|| body(&Namespace::enter_new())).join());
    ended.unwrap_or_else(|panic| resume_unwind(panic));
}
