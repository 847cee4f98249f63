//! Network namespaces of single threads, and what is in them.

#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::process::{self, Command};

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// A network namespace. It goes when neither this nor a thread, process or socket is in it.
pub(super) struct Namespace(File);

impl Namespace {
    /// Move this thread into a new one, with the loopback interface up.
    pub(super) fn enter_new() -> Namespace {
        // SAFETY: the network namespace says which network system calls see. It holds no memory, and
        // file descriptors stay what they are.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
        ip("link set lo up");
        Namespace(File::open("/proc/thread-self/ns/net").unwrap())
    }

    /// Move this thread into it.
    pub(super) fn enter(&self) {
        move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    }

    /// A path that `ip link ... netns` takes.
    pub(super) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", process::id(), self.0.as_raw_fd())
    }
}

/// Run `ip` with these arguments, separated by spaces, in the namespace of this thread.
pub(super) fn ip(args: &str) -> String {
    let output = Command::new("ip").args(args.split(' ')).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {args}: {error}");
    text
}

/// Whether `ip` shows an XDP program on the interface.
pub(super) fn has_xdp(interface: &str) -> bool {
    ip(&format!("-d link show dev {interface}")).contains("prog/xdp")
}
