//! What a connection has to do with the slow path: deferring, demoted handlers, and what the client gets
//! when there is no room.

use std::sync::Arc;

use super::{Connection, Window};
use crate::flow::FlowId;
use crate::interruptlet::{
    Info, RequestInfo, StreamInterruptlet, StreamOutcome, StreamReply, StreamRequest,
};
use crate::pool::{Deferred, Job, ReplyTo, Responder, Route};
use crate::tcp::{Resources, Turn};

/// The parts of [`StreamInterruptlet`] that answer instead of handling.
type Excuse = fn(&mut dyn StreamInterruptlet, StreamRequest<'_>) -> StreamReply;

impl Connection {
    /// Hands the first `consumed` bytes to the slow path: the frame itself if they are in it.
    pub(super) fn defer(
        &mut self,
        id: FlowId,
        consumed: usize,
        window: &mut Window,
        info: RequestInfo,
        resources: &mut Resources,
        turn: &mut Turn<'_>,
    ) {
        let Some(slow) = resources.ports[self.service].slow.clone() else {
            turn.counters.deferred_refused.increment();
            self.closing = true;
            return;
        };
        let mut lent = None;
        if let Some(range) = window.frame_range()
            && let Some(frame) = window.take_frame()
        {
            let request = range.start..range.start + consumed;
            match turn.egress.arena.lend(frame, request) {
                Ok(loan) => lent = Some(Deferred::lent(loan, info)),
                Err(frame) => window.restore(frame, range),
            }
        }
        let request = lent.unwrap_or_else(|| {
            turn.counters.deferred_copied.increment();
            let buffer = window.buffer(&resources.memory, &mut resources.scratch);
            Deferred::copied(&buffer[..consumed], info)
        });
        self.consume(consumed, window, turn.now);
        let job = Job::Serve {
            slow,
            request,
            responder: Responder::new(ReplyTo {
                core: resources.core.clone(),
                route: Route::Flow(id),
                consumed: 0,
            }),
        };
        match resources.pool.try_submit(job) {
            Ok(()) => {
                turn.counters.deferred.increment();
                self.deferred = true;
            }
            Err(job) => {
                turn.counters.deferred_refused.increment();
                let Some(request) = job.cancel() else {
                    return;
                };
                let bytes = request.bytes();
                let len = bytes.len().min(resources.scratch.len());
                resources.scratch[..len].copy_from_slice(&bytes[..len]);
                // The scratch buffer is the excuse's from now on.
                window.forget();
                self.excuse(
                    |handler, request| handler.overloaded(request),
                    len,
                    info,
                    resources,
                    turn,
                );
            }
        }
    }

    /// The service's handler is with the pool: show it everything that is there.
    pub(super) fn submit_to_demoted(
        &mut self,
        id: FlowId,
        available: usize,
        info: RequestInfo,
        resources: &mut Resources,
        turn: &Turn<'_>,
    ) {
        let service = &resources.ports[self.service];
        let Some(handler) = service.handler.demoted() else {
            return;
        };
        let bytes = &mut resources.scratch[..available];
        let copied = self.engine.socket().peek_slice(bytes).unwrap_or(0);
        let job = Job::Stream {
            handler: Arc::clone(handler),
            slow: service.slow.clone(),
            request: Deferred::copied(&bytes[..copied], info),
            flow: id,
            core: resources.core.clone(),
        };
        match resources.pool.try_submit(job) {
            Ok(()) => {
                turn.counters.deferred.increment();
                self.deferred = true;
            }
            Err(_) => {
                turn.counters.deferred_refused.increment();
                // Nobody can say how long the request is: the excuse ends the connection.
                self.closing = true;
                self.excuse(
                    |handler, request| handler.overloaded(request),
                    copied,
                    info,
                    resources,
                    turn,
                );
            }
        }
    }

    /// The request did not become whole in time: the handler says so to the client, and the connection
    /// ends.
    pub(super) fn time_out_request(&mut self, resources: &mut Resources, turn: &Turn<'_>) {
        let available = self.engine.socket().recv_queue();
        let copied = self
            .engine
            .socket()
            .peek_slice(&mut resources.scratch[..available])
            .unwrap_or(0);
        let info = RequestInfo {
            local: self.local,
            peer: self.peer,
            now: turn.now,
            end_of_stream: false,
            full: false,
        };
        self.closing = true;
        self.excuse(
            |handler, request| handler.timed_out(request),
            copied,
            info,
            resources,
            turn,
        );
    }

    /// Has the handler answer the `len` bytes in the scratch buffer, which are consumed already or will
    /// never be. A handler that the pool is running at this moment says nothing: the connection ends.
    fn excuse(
        &mut self,
        excuse: Excuse,
        len: usize,
        info: RequestInfo,
        resources: &mut Resources,
        turn: &Turn<'_>,
    ) {
        let Resources {
            ports,
            scratch,
            outbox,
            ..
        } = &mut *resources;
        let request = StreamRequest::new(scratch, len, Info::Told(&info), outbox);
        let outcome = ports[self.service].excuse(turn.now, |handler| excuse(handler, request));
        resources.note_call(self.service);
        let outcome = outcome.map_or(StreamOutcome::NeedMore, without_consuming);
        // Its own window: the bytes are in the scratch buffer, whatever the caller's is.
        let mut scratch_window = Window::default();
        scratch_window.set_scratch(len);
        self.carry_out(outcome, &mut scratch_window, resources, turn);
    }
}

/// What is answered is not in the receive queue any more, or is dropped with it.
fn without_consuming(outcome: StreamOutcome) -> StreamOutcome {
    match outcome {
        StreamOutcome::InPlace { len, .. } => StreamOutcome::InPlace { consumed: 0, len },
        StreamOutcome::Reply { close, .. } => StreamOutcome::Reply { consumed: 0, close },
        other => other,
    }
}
