//! The fast path: the interruptlet that answers what needs no disk, within the poll loop.
//!
//! Nothing here waits, and nothing allocates for a request whose target this worker has served lately.

use std::num::NonZeroUsize;
use std::sync::{Arc, Weak};

use interruptlet::interruptlet::{StreamInterruptlet, StreamReply, StreamRequest};
use lru::LruCache;

use super::Site;
use super::answer::{Asked, Exchange, Status, sort};
use super::cache::{Entry, Freshness};
use super::date::DateLine;
use super::plan::{self, Plan};
use super::request::{self, header_storage, parse};
use super::response::{Detail, Multipart, answer, file_head};
use super::target::{Target, file_path};

/// Targets that a worker knows by heart.
const KNOWN_TARGETS: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
/// Longer ones are resolved every time: they are rare, and would be a way to fill memory.
const MAX_KNOWN_TARGET_BYTES: usize = 256;

/// The HTTP handler of one worker.
#[derive(Debug)]
pub struct Fast {
    site: Arc<Site>,
    /// By path as it was sent: many may lead to one entry.
    known: LruCache<Box<[u8]>, Weak<Entry>, ahash::RandomState>,
    date: DateLine,
}

/// What to do with the request, owning all it needs: the bytes are out of reach once a reply is begun.
#[derive(Debug)]
enum Decision {
    NeedMore,
    Close,
    Defer {
        consumed: usize,
    },
    Answer {
        consumed: usize,
        exchange: Exchange,
        status: Status,
    },
    Cached {
        consumed: usize,
        exchange: Exchange,
        entry: Arc<Entry>,
        plan: Plan,
    },
}

impl Decision {
    /// The last words on a connection whose bytes make no sense any more.
    fn refuse(bytes: &[u8], status: Status) -> Self {
        Self::Answer {
            consumed: bytes.len(),
            exchange: Exchange::last(request::looks_like_head(bytes)),
            status,
        }
    }
}

impl Fast {
    /// A handler; each worker needs one of its own.
    pub fn new(site: Arc<Site>) -> Self {
        Self {
            site,
            known: LruCache::with_hasher(KNOWN_TARGETS, ahash::RandomState::new()),
            date: DateLine::default(),
        }
    }

    /// Decides about a request. `overloaded`: the slow path has no room.
    fn decide(&mut self, request: &StreamRequest<'_>, overloaded: bool) -> Decision {
        let bytes = request.bytes();
        let now = request.now().total_micros();
        let mut storage = header_storage();
        let read = match parse(bytes, &mut storage) {
            Ok(Some(read)) => read,
            Ok(None) if request.is_end_of_stream() && request::is_blank(bytes) => {
                return Decision::Close;
            }
            Ok(None) if request.is_end_of_stream() => {
                return Decision::refuse(bytes, Status::BadRequest);
            }
            Ok(None) if request.is_full() => {
                return Decision::refuse(bytes, Status::HeaderFieldsTooLarge);
            }
            Ok(None) => return Decision::NeedMore,
            Err(status) => return Decision::refuse(bytes, status),
        };
        let consumed = read.consumed;
        let exchange = Exchange::of(&read);
        let defer = if overloaded {
            Decision::refuse(bytes, Status::ServiceUnavailable)
        } else {
            Decision::Defer { consumed }
        };
        let answered = |status| Decision::Answer {
            consumed,
            exchange,
            status,
        };
        let target = match sort(&read) {
            Asked::File(target) => target,
            Asked::Answer(status) => return answered(status),
        };
        let entry = match self.look_up(target) {
            Ok(Some(entry)) => entry,
            Ok(None) => return defer,
            Err(status) => return answered(status),
        };
        let servable = if overloaded {
            entry.is_usable(now)
        } else {
            entry.freshness(now) == Freshness::Fresh
        };
        if !servable {
            return defer;
        }
        entry.used(now);
        let plan = plan::decide(&read, &entry.representation);
        if matches!(plan, Plan::Parts(_)) {
            // Content made of pieces: rare, and too much copying for the loop.
            return defer;
        }
        Decision::Cached {
            consumed,
            exchange,
            entry,
            plan,
        }
    }

    /// Finds the entry of a target without waiting for anybody.
    fn look_up(&mut self, target: Target<'_>) -> Result<Option<Arc<Entry>>, Status> {
        if let Some(entry) = self.known.get(target.path).and_then(Weak::upgrade) {
            return Ok(Some(entry));
        }
        let path = file_path(target.path)?;
        let entry = self.site.cache.try_get(&path);
        if let Some(entry) = &entry
            && target.path.len() <= MAX_KNOWN_TARGET_BYTES
        {
            self.known.put(target.path.into(), Arc::downgrade(entry));
        }
        Ok(entry)
    }

    fn carry_out(&mut self, request: StreamRequest<'_>, decision: Decision) -> StreamReply {
        let date = self.date.at(request.now());
        match decision {
            Decision::NeedMore => request.need_more(),
            Decision::Close => request.close(),
            Decision::Defer { consumed } => request.defer(consumed),
            Decision::Answer {
                consumed,
                exchange,
                status,
            } => {
                let mut reply = request.reply(consumed);
                answer(&mut reply, exchange, date, status, Detail::None);
                if exchange.keep_alive {
                    reply.send()
                } else {
                    reply.send_and_close()
                }
            }
            Decision::Cached {
                consumed,
                exchange,
                entry,
                plan,
            } => {
                let mut reply = request.reply(consumed);
                let file = &entry.representation;
                let no_multipart = Multipart::default();
                file_head(&mut reply, exchange, date, file, &plan, no_multipart);
                let body = match plan {
                    Plan::Whole if !exchange.head_only => entry.body.clone(),
                    Plan::Part(range) => entry.body.slice(range.start as usize..range.end as usize),
                    _ => bytes::Bytes::new(),
                };
                reply.send_with_content(body, !exchange.keep_alive)
            }
        }
    }
}

impl StreamInterruptlet for Fast {
    fn handle(&mut self, request: StreamRequest<'_>) -> StreamReply {
        let decision = self.decide(&request, false);
        self.carry_out(request, decision)
    }

    fn timed_out(&mut self, request: StreamRequest<'_>) -> StreamReply {
        let decision = if request::is_blank(request.bytes()) {
            Decision::Close
        } else {
            Decision::refuse(request.bytes(), Status::RequestTimeout)
        };
        self.carry_out(request, decision)
    }

    /// What is in memory and not too old is better than a refusal.
    fn overloaded(&mut self, request: StreamRequest<'_>) -> StreamReply {
        let decision = self.decide(&request, true);
        self.carry_out(request, decision)
    }
}
