//! What the bytes of a segment in order are for: requests of a service's handler, or what the client reads.

use super::send::{self, Sender};
use super::{After, Context, Direct, Done, Flags, Side, State};
use crate::arena::Frame;
use crate::client::{Actions, End, Stream, StreamId};
use crate::interruptlet::{Info, StreamOutcome, StreamRequest};
use crate::tcp::Resources;
use crate::tcp::segment::{FIN, Segment, payload_offset};
use crate::telemetry::Summon;

impl Direct {
    /// Has the requests of a segment handled, in its frame, and replies.
    #[inline(always)]
    pub(super) fn serve(
        &mut self,
        mut frame: Frame,
        segment: &Segment,
        cx: &mut Context<'_, '_>,
    ) -> After {
        let Side::Service(service) = self.side else {
            return self.show(frame, segment, cx);
        };
        let service = usize::from(service);
        let ended = segment.has(FIN);
        let info = Info::Flow {
            key: cx.key,
            now: cx.turn.now,
            end_of_stream: ended,
        };
        cx.resources.replies.clear();
        let mut start = segment.payload;
        let mut close = ended;
        while start < segment.end {
            let available = segment.end - start;
            let Resources {
                memory,
                ports,
                outbox,
                ..
            } = &mut *cx.resources;
            let consumed_before = start - segment.payload;
            let handled = |outcome| Done::Handled {
                consumed: consumed_before,
                outcome,
            };
            let buffer = &mut memory.frame_mut(&mut frame)[start..];
            let request = StreamRequest::new(buffer, available, info, outbox);
            let outcome = ports[service].handle(request, cx.turn.now, cx.turn.clock);
            let Some(outcome) = outcome else {
                return After::engine(Summon::Demoted, Some(frame), handled(None));
            };
            cx.resources.note_call(service);
            let consumed = match outcome {
                StreamOutcome::InPlace { consumed, .. } => consumed,
                StreamOutcome::Reply { close: true, .. } => available,
                StreamOutcome::Reply { consumed, .. } => consumed,
                StreamOutcome::Abort => {
                    cx.turn.counters.tcp_requests.increment();
                    self.send_reset(Some(frame), cx);
                    return After::Gone(End::Aborted);
                }
                StreamOutcome::NeedMore => 0,
                StreamOutcome::Defer { .. } => {
                    return After::engine(Summon::Deferred, Some(frame), handled(Some(outcome)));
                }
            };
            if consumed == 0 {
                return After::engine(Summon::PartialRequest, Some(frame), handled(Some(outcome)));
            }
            let len = match outcome {
                StreamOutcome::InPlace { len, .. } => len,
                _ => cx.resources.outbox.head.len() + cx.resources.outbox.content.len(),
            };
            let total = cx.resources.replies.len() + len;
            if let Err(reason) = self.fits(total, 1, cx.resources, cx.turn) {
                return After::engine(reason, Some(frame), handled(Some(outcome)));
            }
            cx.turn.counters.tcp_requests.increment();
            close |= matches!(outcome, StreamOutcome::Reply { close: true, .. });
            let last = consumed == available;
            if last && cx.resources.replies.is_empty() {
                self.accept(segment, cx);
                let place =
                    matches!(outcome, StreamOutcome::InPlace { .. }).then_some((start, len));
                return self.answer(frame, place, len, close, cx);
            }
            let Resources {
                memory,
                outbox,
                replies,
                ..
            } = &mut *cx.resources;
            match outcome {
                StreamOutcome::InPlace { len, .. } => {
                    replies.extend_from_slice(&memory.frame(&frame)[start..start + len]);
                }
                _ => {
                    replies.extend_from_slice(&outbox.head);
                    replies.extend_from_slice(&outbox.content);
                }
            }
            start += consumed;
        }
        self.accept(segment, cx);
        cx.resources.outbox.clear();
        let len = cx.resources.replies.len();
        std::mem::swap(&mut cx.resources.outbox.head, &mut cx.resources.replies);
        self.answer(frame, None, len, close, cx)
    }

    /// Everything of a segment was taken.
    #[inline(always)]
    fn accept(&mut self, segment: &Segment, cx: &Context<'_, '_>) {
        let ended = segment.has(FIN);
        self.rcv_nxt = self
            .rcv_nxt
            .wrapping_add(segment.len() as u32 + u32::from(ended));
        if ended {
            self.state = State::CloseWait;
        }
        self.progress_at = cx.turn.millis;
    }

    /// Sends a reply of `len` bytes that fits: from `place` in the frame, if it was made there, else from the
    /// outbox.
    #[inline(always)]
    fn answer(
        &mut self,
        mut frame: Frame,
        place: Option<(usize, usize)>,
        len: usize,
        close: bool,
        cx: &mut Context<'_, '_>,
    ) -> After {
        if len == 0 && !close {
            cx.turn.egress.arena.free(frame);
            self.flags.set(Flags::ACK_DUE);
            return After::Direct;
        }
        let mss = usize::from(self.peer.mss);
        let window = cx.resources.window(self);
        let Resources {
            memory,
            outbox,
            held,
            replies,
            ..
        } = &mut *cx.resources;
        let mut sender = Sender {
            key: cx.key,
            mss,
            window,
            held,
            turn: &mut *cx.turn,
        };
        match place {
            Some((start, len)) if len <= mss => {
                let offset = payload_offset(&self.link, cx.key);
                if start != offset {
                    memory
                        .frame_mut(&mut frame)
                        .copy_within(start..start + len, offset);
                }
                self.transmit(frame, len, true, close, &mut sender);
            }
            Some((start, len)) => {
                // Longer than a segment: it cannot stay where the first one's headers go.
                replies.clear();
                replies.extend_from_slice(&memory.frame(&frame)[start..start + len]);
                self.send(Some(frame), [replies, &[]], close, &mut sender);
            }
            None => self.send(
                Some(frame),
                [&outbox.head, &outbox.content],
                close,
                &mut sender,
            ),
        }
        After::Direct
    }

    /// Shows the client the bytes of a segment, and does what it asks for.
    #[inline(never)]
    fn show(&mut self, frame: Frame, segment: &Segment, cx: &mut Context<'_, '_>) -> After {
        let len = segment.len();
        let frame = Some(frame);
        if len > 0 {
            let room = self.client_room(cx.resources);
            let Resources {
                client: Some(client),
                actions,
                memory,
                ..
            } = &mut *cx.resources
            else {
                return After::engine(Summon::Client, frame, Done::Nothing);
            };
            let Some(mut stream) = stream(self, room, actions, cx.id, cx.turn.nanos) else {
                return After::engine(Summon::Client, frame, Done::Nothing);
            };
            let taken = match &frame {
                Some(frame) => {
                    let bytes = &memory.frame(frame)[segment.payload..segment.end];
                    client.received(bytes, &mut stream).min(len)
                }
                None => 0,
            };
            let done = Done::Acted { taken };
            let waits = actions.wants_room || actions.read_at.is_some();
            if taken < len || (waits && !actions.abort) {
                return After::engine(Summon::Client, frame, done);
            }
            if !actions.abort
                && let Err(reason) =
                    self.fits(cx.resources.actions.outbox.len(), 1, cx.resources, cx.turn)
            {
                return After::engine(reason, frame, done);
            }
        } else {
            cx.resources.actions.clear();
        }
        self.accept(segment, cx);
        self.flags.set(Flags::ACK_DUE);
        let after = self.carry_out(frame, cx);
        let ended = segment.has(FIN) && !self.closes();
        match after {
            After::Direct if ended => self.event(None, cx, |client, stream| client.ended(stream)),
            after => after,
        }
    }

    /// Tells the client that the handshake is complete, and sends what it has to say.
    pub(super) fn greet(&mut self, frame: Frame, cx: &mut Context<'_, '_>) -> After {
        self.flags.set(Flags::ACK_DUE);
        let after = self.event(Some(frame), cx, |client, stream| client.connected(stream));
        self.offer_room(after, cx)
    }

    /// As [`greet`](Self::greet), without a frame to use, and with nothing to acknowledge.
    pub(super) fn greet_late(&mut self, cx: &mut Context<'_, '_>) -> After {
        let after = self.event(None, cx, |client, stream| client.connected(stream));
        self.offer_room(after, cx)
    }

    /// There is room now for a client that wanted to send before the handshake was complete.
    fn offer_room(&mut self, after: After, cx: &mut Context<'_, '_>) -> After {
        if !matches!(after, After::Direct) || !self.flags.has(Flags::WANTS_ROOM) {
            return after;
        }
        self.flags.clear(Flags::WANTS_ROOM);
        self.event(None, cx, |client, stream| client.writable(stream))
    }

    /// Runs one event of the client, and does what it asks for, in `frame` if there is one.
    fn event(
        &mut self,
        frame: Option<Frame>,
        cx: &mut Context<'_, '_>,
        event: impl FnOnce(&mut dyn crate::client::Client, &mut Stream<'_>),
    ) -> After {
        let room = self.client_room(cx.resources);
        let Resources {
            client, actions, ..
        } = &mut *cx.resources;
        if let (Some(client), Some(mut stream)) = (
            client.as_deref_mut(),
            stream(self, room, actions, cx.id, cx.turn.nanos),
        ) {
            event(client, &mut stream);
            return self.carry_out(frame, cx);
        }
        if let Some(frame) = frame {
            cx.turn.egress.arena.free(frame);
        }
        After::Direct
    }

    /// Lets the client act on the connection out of turn.
    pub(in crate::tcp) fn act(
        &mut self,
        cx: &mut Context<'_, '_>,
        act: impl FnOnce(&mut Stream<'_>),
    ) -> After {
        let room = self.client_room(cx.resources);
        let Some(mut stream) = stream(self, room, &mut cx.resources.actions, cx.id, cx.turn.nanos)
        else {
            return After::Direct;
        };
        act(&mut stream);
        self.carry_out(None, cx)
    }

    /// Does what the client asked for in an event.
    fn carry_out(&mut self, frame: Option<Frame>, cx: &mut Context<'_, '_>) -> After {
        let Actions {
            wants_room,
            close,
            abort,
            read_at,
            ..
        } = cx.resources.actions;
        if abort {
            if self.state == State::SynSent {
                // Nobody knows of the connection yet.
                if let Some(frame) = frame {
                    cx.turn.egress.arena.free(frame);
                }
            } else {
                self.send_reset(frame, cx);
            }
            return After::Gone(End::Aborted);
        }
        let len = cx.resources.actions.outbox.len();
        let frames = usize::from(frame.is_some());
        let waits = (wants_room || read_at.is_some()) && !self.closes();
        let reason = if waits {
            Some(Summon::Client)
        } else if len > 0 {
            self.fits(len, frames, cx.resources, cx.turn).err()
        } else {
            None
        };
        if let Some(reason) = reason
            && !self.state.is_opening()
        {
            if let Some(frame) = frame {
                cx.turn.egress.arena.free(frame);
            }
            return After::engine(reason, None, Done::Acted { taken: 0 });
        }
        let close = close && !self.closes();
        if self.state.is_opening() {
            if wants_room {
                self.flags.set(Flags::WANTS_ROOM);
            }
            if close {
                if let Some(frame) = frame {
                    cx.turn.egress.arena.free(frame);
                }
                return After::Gone(End::Aborted);
            }
        } else if len > 0 || close {
            self.progress_at = cx.turn.millis;
            let outbox = std::mem::take(&mut cx.resources.actions.outbox);
            let mut sender = send::sender(self, cx.key, cx.resources, cx.turn);
            self.send(frame, [&outbox, &[]], close, &mut sender);
            // Its capacity is kept.
            cx.resources.actions.outbox = outbox;
            return After::Direct;
        }
        // An acknowledgement that is due leaves at the end of the turn, for everything that came in it.
        if let Some(frame) = frame {
            cx.turn.egress.arena.free(frame);
        }
        After::Direct
    }

    /// Bytes that the client may send now: as many as an engine would take.
    fn client_room(&self, resources: &Resources) -> usize {
        if self.closes() || self.state.is_opening() {
            return 0;
        }
        resources
            .client_tx_bytes
            .saturating_sub(self.in_flight() as usize)
    }
}

/// What the client acts through in one event.
fn stream<'a>(
    direct: &Direct,
    room: usize,
    actions: &'a mut Actions,
    id: crate::flow::FlowId,
    nanos: u64,
) -> Option<Stream<'a>> {
    let Side::Client(token) = direct.side else {
        return None;
    };
    actions.clear();
    Some(Stream {
        id: StreamId(id),
        token,
        nanos,
        room,
        actions,
    })
}
