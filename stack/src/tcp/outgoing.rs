//! What a flow still has to send and its engine has no room for yet: the rest of one reply.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};
use smoltcp::socket::tcp::Socket;

use crate::pool::Source;

/// The rest of a reply: pieces in order, then what a body source still produces.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    pieces: VecDeque<Bytes>,
    source: BodyState,
}

/// Where the source of the body is.
#[derive(Debug, Default)]
enum BodyState {
    /// There is none, or it is spent.
    #[default]
    None,
    /// Here: the next chunk can be asked for.
    Here(Source),
    /// With the pool, producing a chunk.
    Away,
}

impl Outgoing {
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty() && matches!(self.source, BodyState::None)
    }

    pub(super) fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.pieces.push_back(piece);
        }
    }

    pub(super) fn set_source(&mut self, source: Source) {
        self.source = BodyState::Here(source);
    }

    /// The chunk that the pool produced, if any, and the source if there may be more.
    pub(super) fn add_chunk(&mut self, chunk: Option<Bytes>, source: Option<Source>) {
        if let Some(chunk) = chunk {
            self.push(chunk);
        }
        self.source = source.map_or(BodyState::None, BodyState::Here);
    }

    /// Takes the source for good: nobody wants the rest.
    pub(super) fn abandon(&mut self) -> Option<Source> {
        self.pieces.clear();
        match std::mem::take(&mut self.source) {
            BodyState::Here(source) => Some(source),
            BodyState::None | BodyState::Away => None,
        }
    }

    /// Takes the source, to have the next chunk produced, if few enough bytes are left.
    pub(super) fn take_source_if_low(&mut self) -> Option<Source> {
        // One chunk being sent and one being produced keep both sides busy.
        if self.pieces.len() > 1 {
            return None;
        }
        match std::mem::replace(&mut self.source, BodyState::Away) {
            BodyState::Here(source) => Some(source),
            other => {
                self.source = other;
                None
            }
        }
    }

    /// The pool had no room: the source stays here and is offered again later.
    pub(super) fn put_back(&mut self, source: Source) {
        self.source = BodyState::Here(source);
    }

    /// Moves what fits into the engine's send buffer; returns how much.
    pub(super) fn fill(&mut self, socket: &mut Socket<'_>) -> usize {
        let mut moved = 0;
        while let Some(piece) = self.pieces.front_mut() {
            // An engine that can send no more takes nothing; the flow notices its state.
            let sent = socket.send_slice(piece).unwrap_or(0);
            moved += sent;
            if sent < piece.len() {
                piece.advance(sent);
                break;
            }
            self.pieces.pop_front();
        }
        moved
    }
}
