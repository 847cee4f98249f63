//! A sequence of frames into a simulated worker with live connections, deferred requests and passing time.
//!
//! The input is a list of commands: one byte that says what, then its operands. Checksums of commands that
//! make packets are made right, so that the fuzzer gets behind them; raw frames are taken as they are.
#![no_main]

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use interruptlet::Duration;
use interruptlet::interruptlet::{
    DatagramInterruptlet, DatagramReply, DatagramRequest, StreamInterruptlet, StreamReply,
    StreamRequest,
};
use interruptlet::pool::{Body, BodySource, Deferred, Responder, Response, SlowPath};
use interruptlet::sim::{Sim, SimConfig, SimDatagram, SimStream};
use interruptlet::wire::checksum::Sum;
use interruptlet::wire::{Address, ip};
use libfuzzer_sys::fuzz_target;

const PORT: u16 = 7;
const PEER_V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));
const PEER_V6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2));
const OURS_V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
const OURS_V6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

/// Does what the first byte of a request says, with up to as many bytes as the second one says.
struct Anything;

impl StreamInterruptlet for Anything {
    fn handle(&mut self, request: StreamRequest<'_>) -> StreamReply {
        let [what, count, ..] = *request.bytes() else {
            return request.need_more();
        };
        let consumed = usize::from(count) + 1;
        match what % 8 {
            0 => request.need_more(),
            1 => request.defer(consumed),
            2 => request.close(),
            3 => request.abort(),
            4 => request.ignore(consumed),
            5 => {
                let mut writer = request.reply(consumed);
                writer.write(&[count; 10]);
                writer.send_with_content(vec![count; usize::from(count) * 100].into(), false)
            }
            _ => {
                let len = request.bytes().len();
                request.reply_in_place(len).send(len)
            }
        }
    }
}

impl DatagramInterruptlet for Anything {
    fn handle(&mut self, request: DatagramRequest<'_>) -> DatagramReply {
        match request.bytes().first().map_or(0, |what| what % 4) {
            0 => request.ignore(),
            1 => request.defer(),
            2 => request.reply(&[1; 2000]),
            _ => {
                let len = request.bytes().len();
                request.reply_in_place().send(len)
            }
        }
    }
}

impl SlowPath for Anything {
    fn serve(&self, request: Deferred, responder: Responder) {
        let count = request.bytes().get(1).copied().unwrap_or(0);
        let body = match count % 4 {
            0 => return,
            1 => Body::Source(Box::new(Countdown(count))),
            _ => Body::Content(vec![count; usize::from(count)].into()),
        };
        responder.send(Response {
            head: vec![count; 3],
            body,
            close: count >= 128,
        });
    }
}

/// Chunks, fewer each time, that sometimes fail.
struct Countdown(u8);

impl BodySource for Countdown {
    fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        self.0 /= 2;
        match self.0 {
            0 => Ok(None),
            5 => Err(io::Error::other("five")),
            count => Ok(Some(vec![count; usize::from(count) * 50].into())),
        }
    }
}

/// The input, consumed from the front; zeros once it is over.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken.to_vec()
    }
}

/// One connection of the peer, as the fuzzer's segments refer to it.
#[derive(Clone, Copy)]
struct Flow {
    v4: bool,
    port: u16,
    seq: u32,
    ack: u32,
}

fn ends(v4: bool) -> (Address, Address) {
    if v4 {
        (PEER_V4.into(), OURS_V4.into())
    } else {
        (PEER_V6.into(), OURS_V6.into())
    }
}

/// A frame with an IP packet whose transport checksum, at `at`, is made right.
fn frame(v4: bool, protocol: u8, mut transport: Vec<u8>, at: usize) -> Vec<u8> {
    let (source, destination) = ends(v4);
    if let Some(field) = transport.get_mut(at..at + 2) {
        field.fill(0);
        let len = transport.len() as u16;
        let sum = if protocol == ip::PROTOCOL_ICMP {
            Sum::default()
        } else {
            Sum::pseudo_header(&source, &destination, protocol, len)
        };
        let field = sum.plus(&transport).finish_udp();
        transport[at..at + 2].copy_from_slice(&field);
    }
    let header = ip::header_bytes(&source);
    let mut packet = vec![0; header];
    packet.extend(&transport);
    ip::write_header(&mut packet, &source, &destination, protocol);
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(if v4 { [0x08, 0x00] } else { [0x86, 0xdd] });
    frame.extend(packet);
    frame
}

fn segment(flow: &Flow, flags: u8, window: u16, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let options = &options[..options.len() / 4 * 4];
    let mut bytes = flow.port.to_be_bytes().to_vec();
    bytes.extend(PORT.to_be_bytes());
    bytes.extend(flow.seq.to_be_bytes());
    bytes.extend(flow.ack.to_be_bytes());
    bytes.extend([(((20 + options.len()) / 4) << 4) as u8, flags]);
    bytes.extend(window.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(options);
    bytes.extend(payload);
    frame(flow.v4, ip::PROTOCOL_TCP, bytes, 16)
}

/// Takes what the worker sent and follows its sequence numbers.
fn follow(sim: &Sim, flows: &mut [Flow]) {
    while let Some(frame) = sim.peer().take() {
        let v4 = frame[12] == 0x08;
        let at = if v4 { 34 } else { 54 };
        let protocol = if v4 { frame[23] } else { frame[20] };
        if frame[12..14] != [0x08, 0x06] && protocol == ip::PROTOCOL_TCP && frame.len() >= at + 20 {
            let port = u16::from_be_bytes([frame[at + 2], frame[at + 3]]);
            let number = |at: usize| {
                u32::from_be_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]])
            };
            let header = usize::from(frame[at + 12] >> 4) * 4;
            let controls = u32::from(frame[at + 13] & 3 != 0);
            let next = number(at + 4)
                .wrapping_add((frame.len() - at - header) as u32)
                .wrapping_add(controls);
            for flow in flows
                .iter_mut()
                .filter(|flow| (flow.v4, flow.port) == (v4, port))
            {
                flow.ack = next;
                flow.seq = number(at + 8);
            }
        }
        sim.peer().recycle(frame);
    }
}

fn exchange(sim: &mut Sim, frame: &[u8], flows: &mut [Flow]) {
    sim.peer().inject(frame);
    sim.turn();
    follow(sim, flows);
}

fn worker() -> Sim {
    let mut config = SimConfig {
        streams: vec![SimStream {
            port: PORT,
            interruptlet: Box::new(Anything),
            slow: Some(Arc::new(Anything)),
            request_timeout: Duration::from_secs(10),
            idle_timeout: Some(Duration::from_secs(60)),
            keep_alive: Some(Duration::from_secs(20)),
        }],
        datagrams: vec![SimDatagram {
            port: PORT,
            interruptlet: Box::new(Anything),
            slow: Some(Arc::new(Anything)),
        }],
        ..SimConfig::default()
    };
    config.limits.frames = 24;
    config.limits.loans = 8;
    config.limits.flows = 8;
    config.limits.held_frames = 8;
    config.limits.held_per_flow = 3;
    config.limits.engines = 3;
    config.limits.time_wait = 2;
    config.limits.slow_queue = 4;
    Sim::new(config)
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let mut sim = worker();
    let mut flows: Vec<Flow> = (0..4)
        .map(|number| Flow {
            v4: number % 2 == 0,
            port: 5000 + number,
            seq: 1000,
            ack: 0,
        })
        .collect();
    for number in 0..flows.len() {
        let syn = segment(&flows[number], 0x02, 0xffff, &[2, 4, 5, 0xb4], b"");
        exchange(&mut sim, &syn, &mut flows);
        let ack = segment(&flows[number], 0x10, 0xffff, &[], b"");
        exchange(&mut sim, &ack, &mut flows);
    }
    while !input.0.is_empty() {
        let what = input.byte();
        match what % 8 {
            0..=3 => {
                // A segment near what a connection expects.
                let mut flow = flows[usize::from(what >> 3) % flows.len()];
                let shape = input.byte();
                if shape & 1 != 0 {
                    flow.seq = flow.seq.wrapping_add_signed(i32::from(input.word() as i16));
                }
                if shape & 2 != 0 {
                    flow.ack = flow.ack.wrapping_add_signed(i32::from(input.word() as i16));
                }
                let flags = if shape & 4 != 0 { input.byte() } else { 0x10 };
                let window = if shape & 8 != 0 { input.word() } else { 0xffff };
                let options = if shape & 16 != 0 {
                    let len = usize::from(input.byte()) % 41;
                    input.bytes(len)
                } else {
                    Vec::new()
                };
                let len = usize::from(input.byte()) * if shape & 32 != 0 { 5 } else { 1 };
                let payload = input.bytes(len);
                let bytes = segment(&flow, flags, window, &options, &payload);
                exchange(&mut sim, &bytes, &mut flows);
            }
            4 => {
                let len = usize::from(input.byte());
                let bytes = input.bytes(len);
                exchange(&mut sim, &bytes, &mut flows);
            }
            5 => {
                let protocol = [ip::PROTOCOL_UDP, ip::PROTOCOL_ICMP, ip::PROTOCOL_ICMPV6, 0]
                    [usize::from(what >> 4) % 4];
                let at = if protocol == ip::PROTOCOL_UDP { 6 } else { 2 };
                let len = usize::from(input.byte());
                let transport = input.bytes(len);
                let bytes = frame(what & 8 != 0, protocol, transport, at);
                exchange(&mut sim, &bytes, &mut flows);
            }
            6 => {
                sim.set_engine_only(what & 8 != 0);
                sim.advance(Duration::from_millis(
                    u64::from(input.byte()) * u64::from(what),
                ));
                sim.turn();
                follow(&sim, &mut flows);
            }
            _ => {
                sim.run_jobs(usize::from(what >> 3));
                sim.turn();
                follow(&sim, &mut flows);
            }
        }
        assert!(sim.frames().is_conserved());
    }
    // Whatever it was: time clears it away.
    for _ in 0..200 {
        sim.run_jobs(64);
        sim.advance(Duration::from_secs(5));
        sim.turn();
        follow(&sim, &mut flows);
    }
    assert_eq!(sim.flows(), 0, "a connection stays for ever");
    assert!(sim.is_at_rest(), "frames are lost: {:?}", sim.frames());
    let ping = frame(true, ip::PROTOCOL_ICMP, vec![8, 0, 0, 0, 0, 1, 0, 2], 2);
    sim.peer().inject(&ping);
    sim.turn();
    assert!(sim.peer().take().is_some(), "a ping is answered");
});
