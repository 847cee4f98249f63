//! The slow path: threads that read the disk, fill the cache and answer what the fast path does not.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::SystemTime;

use bytes::Bytes;
use interruptlet::pool::{Body, Deferred, Responder, Response, SlowPath};

use super::Site;
use super::answer::{Asked, Exchange, Status, sort};
use super::cache::Entry;
use super::clock::LoopClock;
use super::date;
use super::descriptors::StreamPermit;
use super::files::{Identity, Kind, Opened, Refused};
use super::plan::{self, Plan};
use super::range::ByteRange;
use super::representation::Representation;
use super::request::{Request, header_storage, looks_like_head, parse};
use super::response::{Detail, Multipart, answer, content_range, file_head};
use super::source::{Content, Piece, Pieces};
use super::target::{Target, directory_location, file_path};
use super::watch::Watch;

/// How often a file that changes while it is read is read again before it is sent as it comes.
const READ_ATTEMPTS: usize = 3;

/// A system in trouble fails for every request: one line in this time is enough.
const WARN_EVERY_MICROS: i64 = 1_000_000;

/// The HTTP handler of the slow path's threads.
#[derive(Debug)]
pub struct Slow {
    site: Arc<Site>,
    clock: LoopClock,
    warned_at: AtomicI64,
}

/// A file ready to be sent.
enum Found {
    Cached(Arc<Entry>),
    /// Too large for the cache or for what is left of the memory, or changing too fast.
    OnDisk(std::fs::File, StreamPermit, Representation),
    /// A directory that was asked for like a file.
    Directory,
}

impl Slow {
    /// A handler for all threads.
    pub fn new(site: Arc<Site>) -> Self {
        Self {
            site,
            clock: LoopClock::start(),
            warned_at: AtomicI64::new(i64::MIN),
        }
    }

    /// Answers the request in `bytes`, taken up by the loop at `now` (in microseconds of its clock).
    pub fn respond(&self, bytes: &[u8], now: i64) -> Response {
        let mut storage = header_storage();
        let request = match parse(bytes, &mut storage) {
            Ok(Some(request)) => request,
            // The fast path defers whole and valid requests only.
            Ok(None) => return refusal(Exchange::last(looks_like_head(bytes)), Status::BadRequest),
            Err(status) => return refusal(Exchange::last(looks_like_head(bytes)), status),
        };
        let exchange = Exchange::of(&request);
        let result = match sort(&request) {
            Asked::File(target) => self.respond_with_file(&request, target, now),
            Asked::Answer(status) => Err(status),
        };
        result.unwrap_or_else(|status| refusal(exchange, status))
    }

    fn respond_with_file(
        &self,
        request: &Request<'_, '_>,
        target: Target<'_>,
        now: i64,
    ) -> Result<Response, Status> {
        let path = file_path(target.path)?;
        let exchange = Exchange::of(request);
        match self.find(&path, now) {
            Ok(Found::Cached(entry)) => {
                entry.used(now);
                let content = Content::Shared(entry.body.clone());
                Ok(self.response(request, &entry.representation, content))
            }
            Ok(Found::OnDisk(file, permit, representation)) => {
                Ok(self.response(request, &representation, Content::File(file, permit)))
            }
            Ok(Found::Directory) => {
                let location = directory_location(&path, target.query);
                let detail = Detail::Location(&location);
                Ok(small(exchange, Status::MovedPermanently, detail))
            }
            Err(refused) => {
                if matches!(refused, Refused::Failed(_) | Refused::TooMany) && self.may_warn(now) {
                    // Escaped: the client chose the name.
                    log::warn!("{:?}: {refused}", String::from_utf8_lossy(&path));
                }
                Err(refused.status())
            }
        }
    }

    /// Finds the file as it is after `now`: in the cache if it is still the same, else on the disk.
    fn find(&self, path: &[u8], now: i64) -> Result<Found, Refused> {
        // The time before any look. The request came earlier, perhaps much, as far as there is a queue.
        let looked_at = self.clock.now(now);
        self.follow_root(now);
        match self.site.cache.get(path) {
            // Another thread has looked at the file since.
            Some(entry) if entry.is_fresh(now) => Ok(Found::Cached(entry)),
            Some(entry) => self.look(path, entry, now, looked_at),
            None => self.load(path, looked_at),
        }
    }

    /// Looks at the file of a cached entry without a request, at `now`. The next request is served from the updated cache.
    pub fn look_beside(&self, path: &[u8], now: i64) {
        let Some(entry) = self.site.cache.get(path) else {
            return;
        };
        if let Ok(Found::Cached(found)) = self.look(path, entry.clone(), now, now)
            && !Arc::ptr_eq(&found, &entry)
        {
            found.replaces(&entry);
        }
    }

    /// Serves another directory from now on if the root's path leads to it.
    pub fn follow_root(&self, now: i64) {
        match self.site.root.follow() {
            Ok(false) => {}
            // What a thread reads from the old directory at this moment is found out at its next look.
            Ok(true) => self.site.cache.clear(),
            Err(error) if self.may_warn(now) => {
                log::warn!("cannot look where --root leads, it is served as it was: {error}");
            }
            Err(_) => {}
        }
    }

    /// Returns the loop's time in microseconds, if a request has told it.
    pub fn loop_time(&self) -> Option<i64> {
        self.clock.estimate()
    }

    /// Returns the entries to look at beside the requests.
    pub fn watch(&self) -> &Watch {
        &self.site.watch
    }

    /// Finds the file of a cached entry in a state that it had at `looked_at` or later.
    fn look(
        &self,
        path: &[u8],
        entry: Arc<Entry>,
        now: i64,
        looked_at: i64,
    ) -> Result<Found, Refused> {
        if let Ok(Kind::File(identity)) = self.site.root.kind(path)
            && identity == entry.identity
            && !entry.is_racy
        {
            entry.validated(looked_at);
            self.site.watch.join(path, &entry);
            return Ok(Found::Cached(entry));
        }
        let found = self.load(path, looked_at);
        match &found {
            Ok(Found::Cached(_)) => {}
            // Nobody can look now, which says nothing about the file.
            Err(refused) if refused.is_exhaustion() && entry.is_usable(now) => {
                return Ok(Found::Cached(entry));
            }
            Err(Refused::Failed(_) | Refused::TooMany) => {}
            // It is something else now, or gone.
            Ok(_) | Err(Refused::NotFound | Refused::Forbidden) => self.site.cache.remove(path),
        }
        found
    }

    /// Whether it is time for another line about a failing system.
    fn may_warn(&self, now: i64) -> bool {
        let before = self.warned_at.load(Ordering::Relaxed);
        now.saturating_sub(before) >= WARN_EVERY_MICROS
            && self
                .warned_at
                .compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// Reads a file after `looked_at`, into the cache if it may go there.
    fn load(&self, path: &[u8], looked_at: i64) -> Result<Found, Refused> {
        let (file, mut identity) = match self.site.root.open_file(path)? {
            Opened::File(file, identity) => (file, identity),
            Opened::Directory => return Ok(Found::Directory),
        };
        for _ in 0..READ_ATTEMPTS {
            if identity.len > self.site.cache.max_file_bytes() as u64 {
                break;
            }
            let Some(reservation) = self.site.cache.reserve(identity.len as usize) else {
                break;
            };
            // Before the reading: a change during it must count as recent.
            let is_racy = identity.is_racy(SystemTime::now());
            let mut body = vec![0; identity.len as usize];
            let read = file.read_exact_at(&mut body, 0);
            let identity_after = Identity::of_file(&file)?;
            if identity_after != identity {
                identity = identity_after;
                continue;
            }
            read?;
            let entry = Arc::new(Entry::new(
                representation(path, &identity),
                reservation.fill(body),
                identity,
                is_racy,
                looked_at,
            ));
            if self.site.cache.insert(path, entry.clone()) {
                self.site.watch.join(path, &entry);
            }
            return Ok(Found::Cached(entry));
        }
        let permit = self.site.streams.start().ok_or(Refused::TooMany)?;
        let representation = representation(path, &identity);
        Ok(Found::OnDisk(file, permit, representation))
    }

    fn response(
        &self,
        request: &Request<'_, '_>,
        file: &Representation,
        content: Content,
    ) -> Response {
        let exchange = Exchange::of(request);
        let plan = plan::decide(request, file);
        let mut multipart = Multipart::default();
        let body = match &plan {
            Plan::Whole if !exchange.head_only => {
                let (start, end) = (0, file.len);
                body_of_range(content, ByteRange { start, end })
            }
            Plan::Part(range) => body_of_range(content, *range),
            Plan::Parts(ranges) => {
                let pieces = pieces_of_parts(ranges, file, &self.site.boundary);
                let pieces = Pieces::new(content, pieces);
                multipart.boundary = &self.site.boundary;
                multipart.len = pieces.len();
                Body::Source(Box::new(pieces))
            }
            _ => Body::Empty,
        };
        let mut head = Vec::with_capacity(512);
        let date = date::date_line();
        file_head(&mut head, exchange, date.as_bytes(), file, &plan, multipart);
        Response {
            head,
            body,
            close: !exchange.keep_alive,
        }
    }
}

impl SlowPath for Slow {
    fn serve(&self, request: Deferred, responder: Responder) {
        let now = request.info().now.total_micros();
        responder.send(self.respond(request.bytes(), now));
    }
}

fn representation(path: &[u8], identity: &Identity) -> Representation {
    let modified = identity.modified(date::wall_seconds());
    let name = String::from_utf8_lossy(path);
    Representation::new(&name, identity.len, identity.etag(), modified)
}

fn body_of_range(content: Content, range: ByteRange) -> Body {
    if range.is_empty() {
        return Body::Empty;
    }
    match content {
        Content::Shared(bytes) => Body::Content(slice(&bytes, range)),
        content @ Content::File(..) => {
            Body::Source(Box::new(Pieces::new(content, [Piece::Range(range)])))
        }
    }
}

/// `range` was selected from these very bytes.
fn slice(bytes: &Bytes, range: ByteRange) -> Bytes {
    bytes.slice(range.start as usize..range.end as usize)
}

/// The body of a `multipart/byteranges` reply (RFC 9110 section 14.6).
fn pieces_of_parts(ranges: &[ByteRange], file: &Representation, boundary: &str) -> Vec<Piece> {
    let mut pieces = Vec::with_capacity(2 * ranges.len() + 1);
    for (number, range) in ranges.iter().enumerate() {
        let line_end = if number == 0 { "" } else { "\r\n" };
        let mut text = format!("{line_end}--{boundary}\r\n").into_bytes();
        text.extend_from_slice(file.content_type());
        content_range(&mut text, *range, file.len);
        text.extend_from_slice(b"\r\n");
        pieces.push(Piece::Text(text));
        pieces.push(Piece::Range(*range));
    }
    pieces.push(Piece::Text(format!("\r\n--{boundary}--\r\n").into_bytes()));
    pieces
}

fn refusal(exchange: Exchange, status: Status) -> Response {
    small(exchange, status, Detail::None)
}

fn small(exchange: Exchange, status: Status, detail: Detail<'_>) -> Response {
    let mut head = Vec::with_capacity(256);
    let date = date::date_line();
    answer(&mut head, exchange, date.as_bytes(), status, detail);
    Response {
        head,
        body: Body::Empty,
        close: !exchange.keep_alive,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_warning_a_second() {
        let dir = tempfile::tempdir().unwrap();
        let slow = Slow::new(Site::open(dir.path(), 0).unwrap());
        assert!(slow.may_warn(0));
        assert!(!slow.may_warn(WARN_EVERY_MICROS - 1));
        assert!(slow.may_warn(WARN_EVERY_MICROS));
        assert!(!slow.may_warn(WARN_EVERY_MICROS));
    }
}
