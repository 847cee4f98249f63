//! The programs on Interruptlet: what `ilet-echo`, `ilet-httpd` and `ilet-sink` are made of, and what they are
//! compared with.
//!
//! * [`echo`], [`http`], [`sink`]: handlers and their parts, which run without a stack; the binaries add the runtime.
//! * [`bare`]: programs on AF_XDP without the stack.
//! * [`kernel`]: servers on the kernel's own sockets, and a sender.
//! * [`load`]: the load generator, on the stack's client side.

pub mod bare;
pub mod cli;
pub mod echo;
pub mod ending;
pub mod http;
pub mod kernel;
pub mod load;
pub mod printer;
pub mod serve;
pub mod sink;
