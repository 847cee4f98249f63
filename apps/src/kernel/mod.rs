//! `kernel-echo`, `kernel-httpd` and `kernel-sink`: the servers on the kernel's sockets that ours are measured
//! against; and `kernel-upload`, which sends to a sink.
//!
//! The servers are meant to be the best that one core can do with sockets, so that the comparison is worth
//! something: one thread, edge-triggered epoll without `epoll_ctl` after the first, one read and one write
//! per request, and replies that are ready to be sent.
//!
//! ```text
//! listen ─ event_loop ─┬─ connection ─ service ─┬─ echo
//!                      │                        ├─ httpd ─ site
//!                      │                        └─ sink
//!                      └─ datagrams
//! ```
//!
//! [`event_loop`] owns who is served when, [`connection`] what is kept of a connection between two looks at
//! it, and a [`service`] only answers bytes with bytes. [`upload`] is a program of its own.
//!
//! There is no io_uring variant. One was measured against these (Linux 6.18, multishot accept and receive,
//! provided buffers, deferred task work): its rates did not differ beyond the noise, its CPU time per request
//! was about 5 % lower with 64 connections that stay open and the same or higher with one.

pub mod cli;
pub mod connection;
pub mod datagrams;
pub mod echo;
pub mod event_loop;
pub mod httpd;
pub mod listen;
pub mod run;
pub mod service;
pub mod sink;
pub mod site;
pub mod stop;
pub mod upload;
