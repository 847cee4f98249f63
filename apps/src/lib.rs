//! The servers on Interruptlet: what `ilet-echo` and `ilet-httpd` are made of.
//!
//! Everything here is a handler or a part of one and runs without a stack; the binaries add the
//! runtime. See [`http`] for how the web server is cut, and [`bare`] for the programs that the servers are
//! compared with.

pub mod bare;
pub mod cli;
pub mod echo;
pub mod http;
pub mod printer;
pub mod serve;
