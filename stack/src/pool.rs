//! The slow path pool: ordinary threads that serve deferred requests and produce streamed bodies.
//!
//! The core hands over jobs through one bounded queue and never waits: when the queue is full it
//! answers for itself. Results come back as [`Command`]s through the core's mailbox. A large body is
//! produced chunk by chunk, one job per chunk, asked for by the core when the flow has room: so a slow
//! client holds one chunk of memory and no thread.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, TrySendError};

use crate::arena::Loan;
use crate::flow::FlowId;
use crate::interruptlet::{
    DatagramInterruptlet, DatagramOutcome, DatagramRequest, Outbox, RequestInfo,
    StreamInterruptlet, StreamOutcome, StreamRequest,
};
use crate::mailbox::MailboxSender;
use crate::wire::LinkHeader;

/// Serves deferred requests on the threads of the pool.
///
/// One instance is shared by all threads. It may block and allocate; the core goes on meanwhile.
pub trait SlowPath: Send + Sync + 'static {
    /// Answers one request. Dropping `responder` unused closes the connection (or sends nothing, for a
    /// datagram) and is counted, so a panicking handler cannot leave a peer hanging.
    fn serve(&self, request: Deferred, responder: Responder);
}

/// A deferred request.
#[derive(Debug)]
pub struct Deferred {
    bytes: DeferredBytes,
    info: RequestInfo,
}

#[derive(Debug)]
enum DeferredBytes {
    /// Still in the frame that it came in.
    Lent(Loan),
    /// Was never in one frame as a whole, or too many frames were lent already.
    Copied(Box<[u8]>),
}

impl Deferred {
    pub(crate) fn lent(loan: Loan, info: RequestInfo) -> Self {
        Self {
            bytes: DeferredBytes::Lent(loan),
            info,
        }
    }

    pub(crate) fn copied(bytes: &[u8], info: RequestInfo) -> Self {
        Self {
            bytes: DeferredBytes::Copied(bytes.into()),
            info,
        }
    }

    /// The bytes that the interruptlet deferred.
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            DeferredBytes::Lent(loan) => loan.bytes(),
            DeferredBytes::Copied(bytes) => bytes,
        }
    }

    /// What the core knew of the request.
    pub fn info(&self) -> &RequestInfo {
        &self.info
    }
}

/// A reply from the slow path.
#[derive(Debug, Default)]
pub struct Response {
    /// Sent first.
    pub head: Vec<u8>,
    /// Sent after the head.
    pub body: Body,
    /// Close the connection after the body.
    pub close: bool,
}

/// The body of a [`Response`].
#[derive(Default)]
pub enum Body {
    /// Nothing.
    #[default]
    Empty,
    /// Shared immutable content, of any size.
    Content(Bytes),
    /// Produced chunk by chunk while the client takes it. Not for datagrams.
    Source(Box<dyn BodySource>),
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Empty => f.write_str("Empty"),
            Self::Content(content) => write!(f, "Content({} bytes)", content.len()),
            Self::Source(_) => f.write_str("Source"),
        }
    }
}

/// Produces a body chunk by chunk, on the threads of the pool.
pub trait BodySource: Send + 'static {
    /// The next chunk, of a size that it chooses (64 KiB is a good one); `None` at the end. An error
    /// resets the connection, because the promised length can no longer be kept.
    fn next_chunk(&mut self) -> io::Result<Option<Bytes>>;
}

/// The one chance to answer a deferred request.
#[derive(Debug)]
pub struct Responder {
    /// `None` once used.
    to: Option<ReplyTo>,
}

impl Responder {
    pub(crate) fn new(to: ReplyTo) -> Self {
        Self { to: Some(to) }
    }

    /// Sends the reply. Blocks only while the core's command queue is full.
    pub fn send(mut self, response: Response) {
        if let Some(to) = self.to.take() {
            to.core.send(Command::Reply {
                route: to.route,
                consumed: to.consumed,
                response,
            });
        }
    }
}

impl Responder {
    /// Forgets the duty to answer: something else answers, or nothing is to be sent.
    fn disarm(mut self) {
        self.to = None;
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if let Some(to) = self.to.take() {
            to.core.send(Command::Abandoned { route: to.route });
        }
    }
}

/// Where a slow-path reply goes.
#[derive(Debug, Clone)]
pub(crate) struct ReplyTo {
    pub(crate) core: MailboxSender,
    pub(crate) route: Route,
    /// Bytes of the flow's receive queue that the reply consumes: zero for a deferred request, whose
    /// bytes left the queue when it was deferred.
    pub(crate) consumed: usize,
}

/// The recipient on the core.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Route {
    /// A connection.
    Flow(FlowId),
    /// A datagram keeps no flow: all that the reply needs.
    Datagram { link: LinkHeader, info: RequestInfo },
}

/// What other threads ask a core to do.
#[derive(Debug)]
pub(crate) enum Command {
    /// The answer to a deferred request.
    Reply {
        route: Route,
        consumed: usize,
        response: Response,
    },
    /// A deferred request will never be answered.
    Abandoned { route: Route },
    /// A demoted handler wants to see more bytes first.
    NeedMore { flow: FlowId },
    /// A demoted handler resets its connection.
    Abort { flow: FlowId },
    /// The next chunk of a streamed body (`None`: it is over), and its source.
    Chunk {
        flow: FlowId,
        chunk: io::Result<Option<Bytes>>,
        source: Source,
    },
}

/// A [`BodySource`] on its way between core and pool.
pub(crate) struct Source(pub(crate) Box<dyn BodySource>);

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Source")
    }
}

/// A handler that overran its budget too often and is now run by the pool, one call at a time.
pub(crate) type SharedStream = Arc<Mutex<Box<dyn StreamInterruptlet>>>;
/// As [`SharedStream`], for datagrams.
pub(crate) type SharedDatagram = Arc<Mutex<Box<dyn DatagramInterruptlet>>>;

/// Work for a pool thread.
pub(crate) enum Job {
    /// A deferred request.
    Serve {
        slow: Arc<dyn SlowPath>,
        request: Deferred,
        responder: Responder,
    },
    /// A body chunk.
    Chunk {
        flow: FlowId,
        source: Source,
        core: MailboxSender,
    },
    /// A stream request of a demoted handler: all unconsumed bytes of the flow.
    Stream {
        handler: SharedStream,
        slow: Option<Arc<dyn SlowPath>>,
        request: Deferred,
        flow: FlowId,
        core: MailboxSender,
    },
    /// A datagram of a demoted handler.
    Datagram {
        handler: SharedDatagram,
        slow: Option<Arc<dyn SlowPath>>,
        request: Deferred,
        reply_to: ReplyTo,
    },
}

/// The threads.
#[derive(Debug)]
pub(crate) struct Pool {
    submitter: Submitter,
    threads: Vec<JoinHandle<()>>,
}

/// A core's access to the pool.
#[derive(Clone, Debug)]
pub(crate) struct Submitter {
    jobs: Sender<Job>,
}

impl Pool {
    /// Starts `threads` threads behind a queue of `capacity` jobs.
    pub(crate) fn start(threads: usize, capacity: usize) -> io::Result<Self> {
        let (jobs, queue) = crossbeam_channel::bounded(capacity);
        let threads = (0..threads)
            .map(|number| {
                let queue = queue.clone();
                std::thread::Builder::new()
                    .name(format!("ilet-slow-{number}"))
                    .spawn(move || work(&queue))
            })
            .collect::<io::Result<_>>()?;
        Ok(Self {
            submitter: Submitter { jobs },
            threads,
        })
    }

    pub(crate) fn submitter(&self) -> &Submitter {
        &self.submitter
    }

    /// Ends the threads once the queue is empty. All other submitters must be gone.
    pub(crate) fn join(self) {
        drop(self.submitter);
        for thread in self.threads {
            // A panic was caught and reported in `work`; there is nothing to add here.
            let _ = thread.join();
        }
    }
}

impl Submitter {
    /// Queues a job; gives it back when the queue is full.
    #[allow(clippy::result_large_err)] // the job itself: boxing it would allocate when all goes well
    pub(crate) fn try_submit(&self, job: Job) -> Result<(), Job> {
        match self.jobs.try_send(job) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => Err(job),
        }
    }

    /// A queue that nobody serves: what is submitted comes out of the receiver (simulations).
    pub(crate) fn detached(capacity: usize) -> (Self, Receiver<Job>) {
        let (jobs, queue) = crossbeam_channel::bounded(capacity);
        (Self { jobs }, queue)
    }
}

fn work(queue: &Receiver<Job>) {
    while let Ok(job) = queue.recv() {
        // A panicking handler costs its own request (the responder's drop tells the core), not a thread.
        if catch_unwind(AssertUnwindSafe(|| job.run())).is_err() {
            log::error!("a slow-path handler panicked; its request was abandoned");
        }
    }
}

impl Job {
    /// Takes the request back out of a job that found no room; its responder is not used. A chunk job
    /// has none.
    pub(crate) fn cancel(self) -> Option<Deferred> {
        match self {
            Self::Serve {
                request, responder, ..
            } => {
                responder.disarm();
                Some(request)
            }
            Self::Stream { request, .. } | Self::Datagram { request, .. } => Some(request),
            Self::Chunk { .. } => None,
        }
    }

    /// Does the work on the calling thread.
    pub(crate) fn run(self) {
        match self {
            Self::Serve {
                slow,
                request,
                responder,
            } => slow.serve(request, responder),
            Self::Chunk {
                flow,
                mut source,
                core,
            } => {
                let chunk = catch_unwind(AssertUnwindSafe(|| source.0.next_chunk()))
                    .unwrap_or_else(|_| Err(io::Error::other("the body source panicked")));
                core.send(Command::Chunk {
                    flow,
                    chunk,
                    source,
                });
            }
            Self::Stream {
                handler,
                slow,
                request,
                flow,
                core,
            } => run_stream(&handler, slow, &request, flow, core),
            Self::Datagram {
                handler,
                slow,
                request,
                reply_to,
            } => run_datagram(&handler, slow, request, reply_to),
        }
    }
}

/// Room behind the request that a demoted handler finds for a reply in place.
const IN_PLACE_ROOM_BYTES: usize = 2048;

fn run_stream(
    handler: &SharedStream,
    slow: Option<Arc<dyn SlowPath>>,
    request: &Deferred,
    flow: FlowId,
    core: MailboxSender,
) {
    let mut reply_to = ReplyTo {
        core,
        route: Route::Flow(flow),
        consumed: 0,
    };
    // Until the outcome is known, an unwinding handler abandons the request.
    let abandon = Responder::new(reply_to.clone());
    let len = request.bytes().len();
    let mut buffer = request.bytes().to_vec();
    buffer.resize(len + IN_PLACE_ROOM_BYTES, 0);
    let mut outbox = Outbox::default();
    let outcome = {
        let mut handler = handler.lock().unwrap_or_else(|broken| broken.into_inner());
        handler
            .handle(StreamRequest::new(
                &mut buffer,
                len,
                request.info(),
                &mut outbox,
            ))
            .into_outcome()
    };
    abandon.disarm();
    match outcome {
        StreamOutcome::NeedMore => reply_to.core.send(Command::NeedMore { flow }),
        StreamOutcome::Abort => reply_to.core.send(Command::Abort { flow }),
        StreamOutcome::InPlace { consumed, len } => {
            reply_to.consumed = consumed;
            buffer.truncate(len);
            Responder::new(reply_to).send(Response {
                head: buffer,
                ..Response::default()
            });
        }
        StreamOutcome::Reply { consumed, close } => {
            reply_to.consumed = consumed;
            Responder::new(reply_to).send(response_of(outbox, close));
        }
        StreamOutcome::Defer { consumed } => {
            reply_to.consumed = consumed;
            let responder = Responder::new(reply_to);
            if let Some(slow) = slow {
                slow.serve(
                    Deferred::copied(&request.bytes()[..consumed], *request.info()),
                    responder,
                );
            }
        }
    }
}

fn run_datagram(
    handler: &SharedDatagram,
    slow: Option<Arc<dyn SlowPath>>,
    request: Deferred,
    reply_to: ReplyTo,
) {
    let responder = Responder::new(reply_to);
    let len = request.bytes().len();
    let mut buffer = request.bytes().to_vec();
    buffer.resize(len + IN_PLACE_ROOM_BYTES, 0);
    let mut outbox = Outbox::default();
    let outcome = {
        let mut handler = handler.lock().unwrap_or_else(|broken| broken.into_inner());
        handler
            .handle(DatagramRequest::new(
                &mut buffer,
                len,
                request.info(),
                &mut outbox,
            ))
            .into_outcome()
    };
    match outcome {
        DatagramOutcome::Ignore => responder.disarm(),
        DatagramOutcome::InPlace { len } => {
            buffer.truncate(len);
            responder.send(Response {
                head: buffer,
                ..Response::default()
            });
        }
        DatagramOutcome::Outbox => responder.send(response_of(outbox, false)),
        DatagramOutcome::Defer => {
            if let Some(slow) = slow {
                slow.serve(request, responder);
            }
        }
    }
}

fn response_of(outbox: Outbox, close: bool) -> Response {
    let (head, content) = outbox.into_parts();
    let body = if content.is_empty() {
        Body::Empty
    } else {
        Body::Content(content)
    };
    Response { head, body, close }
}
