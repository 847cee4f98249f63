//! The client's side of a connection: its engine and the core's [`Client`] in conversation.

use super::{Connection, State};
use crate::client::{Actions, Client, End, Stream, StreamId};
use crate::flow::FlowId;
use crate::tcp::{Resources, Turn};

/// What a connection that we opened has besides what every connection has.
#[derive(Debug)]
pub(super) struct ClientSide {
    /// What the client calls it.
    token: u64,
    /// When to show the client again what it left, in nanoseconds of the loop's clock.
    pub(super) read_at: Option<u64>,
    /// The client gave more than there was room for.
    wants_room: bool,
    told_ended: bool,
    /// How it ended, once that is known.
    end: Option<End>,
}

impl ClientSide {
    /// Of a connection whose client knows that the handshake is complete.
    pub(super) fn connected(token: u64, told_ended: bool, wants_room: bool) -> Self {
        Self {
            token,
            read_at: None,
            wants_room,
            told_ended,
            end: None,
        }
    }

    /// Whether the client waits for something that only an engine can do.
    pub(super) fn waits(&self) -> bool {
        self.wants_room || self.read_at.is_some()
    }

    /// The first cause is the one that counts.
    pub(super) fn note_end(&mut self, end: End) {
        self.end.get_or_insert(end);
    }
}

impl Connection {
    /// Tells the client what there is to tell, and does what it asks for.
    pub(super) fn attend(&mut self, id: FlowId, resources: &mut Resources, turn: &mut Turn<'_>) {
        let Resources {
            client: Some(client),
            actions,
            ..
        } = resources
        else {
            return;
        };
        let client = client.as_mut();
        self.show(id, client, actions, turn);
        // A reset is no end of a stream.
        let ended = self.peer_has_closed()
            && self.engine.state() != State::Closed
            && self.engine.socket().recv_queue() == 0;
        if ended && !self.closing && !self.tell(|side| &mut side.told_ended) {
            self.event(id, turn, actions, |stream| client.ended(stream));
        }
        let waits = self.client.as_ref().is_some_and(|side| side.wants_room);
        if waits && self.room() > 0 && !self.closing {
            if let Some(side) = &mut self.client {
                side.wants_room = false;
            }
            self.event(id, turn, actions, |stream| client.writable(stream));
        }
    }

    /// Lets the client act on the connection out of turn.
    pub(in crate::tcp) fn act(
        &mut self,
        id: FlowId,
        turn: &Turn<'_>,
        actions: &mut Actions,
        act: impl FnOnce(&mut Stream<'_>),
    ) {
        self.event(id, turn, actions, act);
    }

    /// How the connection ended, now that it has.
    pub(super) fn end(&self) -> End {
        let end = self.client.as_ref().and_then(|side| side.end);
        end.unwrap_or(End::Unanswered)
    }

    /// Shows the client what was received, for as long as it takes it.
    fn show(
        &mut self,
        id: FlowId,
        client: &mut dyn Client,
        actions: &mut Actions,
        turn: &Turn<'_>,
    ) {
        let waits = |side: &ClientSide| side.read_at.is_some_and(|at| at > turn.nanos);
        if self.client.as_ref().is_some_and(waits) && !self.closing {
            return;
        }
        // At most twice: the ring may wrap once.
        while self.engine.socket().recv_queue() > 0 {
            if self.closing {
                let Ok(dropped) = self
                    .engine
                    .socket()
                    .recv(|bytes| (bytes.len(), bytes.len()))
                else {
                    return;
                };
                self.next_seq = self.next_seq.wrapping_add(dropped as u32);
                continue;
            }
            let Some(mut stream) = self.stream(id, turn, actions) else {
                return;
            };
            let (taken, shown) = self
                .engine
                .socket()
                .recv(|bytes| {
                    let taken = client.received(bytes, &mut stream).min(bytes.len());
                    (taken, (taken, bytes.len()))
                })
                .unwrap_or((0, 0));
            if taken > 0 {
                self.next_seq = self.next_seq.wrapping_add(taken as u32);
                self.progress_at = turn.now;
            }
            self.carry_out_actions(actions);
            if taken < shown || shown == 0 {
                return;
            }
        }
    }

    /// Runs one event of the client, and does what it asks for.
    fn event(
        &mut self,
        id: FlowId,
        turn: &Turn<'_>,
        actions: &mut Actions,
        event: impl FnOnce(&mut Stream<'_>),
    ) {
        if let Some(mut stream) = self.stream(id, turn, actions) {
            event(&mut stream);
            self.carry_out_actions(actions);
        }
    }

    /// What the client acts through in one event.
    fn stream<'a>(
        &mut self,
        id: FlowId,
        turn: &Turn<'_>,
        actions: &'a mut Actions,
    ) -> Option<Stream<'a>> {
        let room = self.room();
        let side = self.client.as_ref()?;
        actions.clear();
        Some(Stream {
            id: StreamId(id),
            token: side.token,
            nanos: turn.nanos,
            room,
            actions,
        })
    }

    pub(super) fn carry_out_actions(&mut self, actions: &Actions) {
        let Some(side) = &mut self.client else {
            return;
        };
        side.wants_room |= actions.wants_room;
        if actions.read_at.is_some() {
            side.read_at = actions.read_at;
        }
        if actions.abort {
            self.abort();
            return;
        }
        if !actions.outbox.is_empty() {
            // All of it: no more was taken than there was room for.
            let _ = self.engine.socket().send_slice(&actions.outbox);
        }
        self.closing |= actions.close;
    }

    /// Bytes that may be sent now.
    fn room(&mut self) -> usize {
        let socket = self.engine.socket();
        if self.closing || !socket.may_send() {
            return 0;
        }
        socket.send_capacity() - socket.send_queue()
    }

    /// Raises a flag of the client's side; returns whether it was up, as for a connection without one.
    fn tell(&mut self, flag: impl FnOnce(&mut ClientSide) -> &mut bool) -> bool {
        self.client
            .as_mut()
            .is_none_or(|side| std::mem::replace(flag(side), true))
    }

    /// Notes that the connection ended in order, if what was just taken in ended it. (A reset is not taken in.)
    pub(super) fn note_client_end(&mut self) {
        let closed = self.engine.state() == State::Closed;
        if let Some(side) = &mut self.client
            && closed
        {
            side.note_end(End::Closed);
        }
    }
}
