//! One queue without a stack: for programs that want the frames themselves.

use std::time::Instant;

use interruptlet_xdp::Program;

use super::builder::rules;
use super::reserve::{Reservations, reserve};
use super::{Facts, Report, RunError, StartError, check, probe, queues, report};
use crate::arena::{Arena, Frame};
use crate::clock::MonotonicClock;
use crate::config::Config;
use crate::port::settle;
use crate::port::xsk::{Bound, XskPort, XskStatistics};
use crate::telemetry::Counters;

/// What feeds a queue of the caller's: the XDP program on its interface. Dropping it gives the traffic back to
/// the kernel; see [`close`](Self::close) for the orderly way.
///
/// Nothing is answered on the caller's behalf: with an address of its own it has to answer ARP and neighbour
/// discovery, or to do without being found.
#[derive(Debug)]
pub struct Attachment {
    interface: String,
    queue: u32,
    link: [u8; 6],
    mtu: usize,
    // Fields drop in order: the program goes before the sockets.
    program: Program,
    statistics: XskStatistics,
    facts: Facts,
    _reservations: Reservations,
}

impl Attachment {
    /// Checks everything as a [`Stack`](crate::Stack) does, attaches the XDP program, binds the first of the
    /// configuration's queues and moves the calling thread to its core. Slow path, polling and gateways do not
    /// matter here. Of a shared address the ports given are taken, of an address that is not shared everything.
    ///
    /// # Errors
    ///
    /// See [`StartError`]; nothing is left behind.
    pub fn open(
        config: &Config,
        tcp_ports: &[u16],
        udp_ports: &[u16],
    ) -> Result<(Self, XskPort, Arena), StartError> {
        let interface = queues::with_link(check::config(config, tcp_ports, udp_ports)?);
        probe::addresses(config, &interface)?;
        let (queue, core) = (config.queues[0], config.cores[0]);
        let reservations = reserve(config, &interface, tcp_ports, udp_ports)?;
        let program = Program::attach(&config.interface, &rules(config, tcp_ports, udp_ports))?;
        queues::check_served(config, &interface)?;
        let mut bound = queues::bind_all(config, &[queue], &interface, &program)?;
        let facts = Facts::new(&program, &[queue], &bound);
        let Bound { port, arena, .. } = bound.remove(0);
        let statistics = port.statistics().map_err(|source| StartError::System {
            action: "keep a second descriptor of a queue's socket",
            source,
        })?;
        program.register(queue, port.fd())?;
        queues::wait_for_link(&interface);
        core_affinity::set_for_current(core_affinity::CoreId { id: core });
        let attachment = Self {
            interface: config.interface.clone(),
            queue,
            link: interface.link.0,
            mtu: interface.mtu,
            facts,
            program,
            statistics,
            _reservations: reservations,
        };
        Ok((attachment, port, arena))
    }

    /// How the queue is attached.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The link address of the interface.
    pub fn link_address(&self) -> [u8; 6] {
        self.link
    }

    /// Bytes of an IP packet at most.
    pub fn mtu(&self) -> usize {
        self.mtu
    }

    /// Whether the interface still is there. A system call: for every now and then.
    ///
    /// # Errors
    ///
    /// If it was deleted.
    pub fn check(&self) -> Result<(), RunError> {
        if self.program.is_attached() {
            return Ok(());
        }
        Err(RunError::InterfaceGone {
            interface: self.interface.clone(),
        })
    }

    /// What a failure of the queue's port means.
    pub fn failed(&self, source: std::io::Error) -> RunError {
        RunError::Queue {
            interface: self.interface.clone(),
            queue: self.queue,
            source,
        }
    }

    /// Sends what is left in `outgoing`, gives the traffic back to the kernel and closes the socket. Every frame
    /// that is then neither in the arena nor with the kernel is missing in the report.
    pub fn close(
        self,
        mut port: XskPort,
        mut arena: Arena,
        mut outgoing: Vec<Frame>,
        counters: &Counters,
    ) -> Report {
        let mut clock = MonotonicClock::since(Instant::now());
        settle(&mut port, &mut arena, &mut outgoing, &mut clock, counters);
        let xdp = report::kernel_counters(Some(&self.program), [&self.statistics].into_iter());
        // Detach first: whatever arrives from now on is the kernel's.
        if let Err(error) = self.program.detach() {
            log::debug!("detaching the XDP program: {error}");
        }
        // It holds the socket open.
        drop(self.statistics);
        port.close(&mut arena, counters);
        let (frames, conserved) = report::final_frames(&mut [(self.queue, arena)], 0);
        Report {
            counters: counters.snapshot(),
            xdp,
            frames,
            conserved,
            queues_lost: Vec::new(),
            queues_left: Vec::new(),
            cut_short: false,
            slow_threads_left: 0,
        }
    }
}
