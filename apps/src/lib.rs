//! The servers on Interruptlet: what `ilet-echo` and `ilet-httpd` are made of.
//!
//! Everything here is a handler or a part of one and runs without a stack; the binaries add the
//! runtime. See [`http`] for how the web server is cut. [`kernel`] is apart: servers on the kernel's own
//! sockets, which the others are measured against.

pub mod cli;
pub mod echo;
pub mod http;
pub mod kernel;
pub mod printer;
pub mod serve;
