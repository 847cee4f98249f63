//! Tests that load the program into the kernel, and so need root: in network namespaces of their own.
//!
//! Without root they fail, unless `ILET_UNPRIVILEGED=1` says that this is expected.

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
    if !rustix::process::geteuid().is_root() {
        assert!(
            env::var_os("ILET_UNPRIVILEGED").is_some_and(|value| value == "1"),
            "needs root: run the tests as root, or set ILET_UNPRIVILEGED=1 to go without this one"
        );
        println!("skipped: needs root");
        return;
    }
    let ended = thread::scope(|scope| scope.spawn(|| body(&Namespace::enter_new())).join());
    ended.unwrap_or_else(|panic| resume_unwind(panic));
}
