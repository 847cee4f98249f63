//! The harness of the namespace tests: kernel clients on one end of a veth pair, a server of this
//! workspace on the other. Owns no test of the servers itself; those are in `tests/tests`.
//!
//! A test makes a [`lab::Lab`] of its own (two network namespaces with names no other run has),
//! starts a [`server::Server`] in it, talks to it with [`netns::Netns`] (commands and sockets inside
//! the client's namespace), [`http`], [`tcp`] and [`raw`], over a link that [`faults`] and [`relay`] can make
//! a bad one, and ends with [`server::Server::stop`], which
//! checks that every frame is accounted for. Everything is removed on drop, also when a test fails.
//!
//! Waiting is polling with a bound ([`wait`]); nothing here measures speed. The relay is a program, too
//! (`ilet-relay`), for the benchmark.

// Test code: a broken lab or a broken expectation ends the test that met it, by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod echo;
pub mod faults;
pub mod http;
pub mod lab;
pub mod netns;
pub mod packet;
pub mod raw;
pub mod relay;
pub mod report;
pub mod server;
pub mod site;
mod sys;
pub mod tcp;
pub mod trace;
pub mod wait;
