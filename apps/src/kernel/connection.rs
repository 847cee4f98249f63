//! One connection between two looks at it: what is left to send, what is left to answer, and how it ends.
//!
//! In the common case nothing is: the request is read whole, the reply goes out whole, and both are in
//! memory that all connections share. Only what the kernel does not take, and the beginning of a request
//! whose end has not come, is kept here.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::IoSlice;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{
    RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, recv, send, sendmsg, shutdown,
};

use super::service::{MAX_PIECES, Next, Piece, Replies, Service};

/// Bytes that are read at once.
const READ_BYTES: usize = 64 * 1024;
/// Bytes that are thrown away after the last reply before the connection is cut: a peer that sends more
/// does not read what it was told.
const MAX_DRAINED: usize = 1 << 20;

/// Memory that all connections of a loop use in turn.
#[derive(Debug)]
pub struct Scratch<'s> {
    input: Box<[u8]>,
    replies: Replies<'s>,
}

impl Default for Scratch<'_> {
    fn default() -> Self {
        Self {
            input: vec![0; READ_BYTES].into(),
            replies: Replies::default(),
        }
    }
}

/// What the loop has to do for a connection after its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Nothing until the kernel has news of it.
    Wait,
    /// Give it another turn: there may be more that the kernel will not tell again.
    Again,
    /// Close it.
    Close,
}

/// A connection.
#[derive(Debug)]
pub struct Connection<'s> {
    socket: OwnedFd,
    /// What the kernel did not take, the first piece without its bytes that were sent. While there is any,
    /// nothing is read: so a peer that does not read cannot make us keep more than one read's replies.
    unsent: VecDeque<Cow<'s, [u8]>>,
    /// What was read and not consumed.
    unanswered: Vec<u8>,
    stage: Stage,
    /// Whether the loop will give it another turn anyway.
    pub(super) is_queued: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Open,
    /// To be closed when all is sent.
    Last,
    /// To be drained when all is sent.
    LastRefused,
    /// All is sent and the peer was told so. The number of bytes thrown away since.
    Draining(usize),
}

/// The connection is of no use any more.
struct Broken;

impl AsFd for Connection<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl<'s> Connection<'s> {
    /// A connection that was just accepted. The socket must not block.
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            unsent: VecDeque::new(),
            unanswered: Vec::new(),
            stage: Stage::Open,
            is_queued: false,
        }
    }

    /// Does what can be done now: sends what is left, else reads once and answers. `has_hung_up`: the
    /// kernel says that the peer closed or reset the connection, so that there is an end to be read.
    pub fn turn<S: Service<'s>>(
        &mut self,
        service: &mut S,
        scratch: &mut Scratch<'s>,
        has_hung_up: bool,
    ) -> Then {
        self.try_turn(service, scratch, has_hung_up)
            .unwrap_or(Then::Close)
    }

    fn try_turn<S: Service<'s>>(
        &mut self,
        service: &mut S,
        scratch: &mut Scratch<'s>,
        has_hung_up: bool,
    ) -> Result<Then, Broken> {
        if !self.unsent.is_empty() {
            self.flush()?;
            if !self.unsent.is_empty() {
                return Ok(Then::Wait);
            }
            if self.stage == Stage::Open && !self.unanswered.is_empty() {
                let input = std::mem::take(&mut self.unanswered);
                self.answer(service, &input, false, &mut scratch.replies)?;
            }
        }
        match self.stage {
            Stage::Open if self.unsent.is_empty() => self.read(service, scratch, has_hung_up),
            Stage::Draining(_) => self.drain(&mut scratch.input),
            _ => self.ended(),
        }
    }

    fn read<S: Service<'s>>(
        &mut self,
        service: &mut S,
        scratch: &mut Scratch<'s>,
        has_hung_up: bool,
    ) -> Result<Then, Broken> {
        let kept = self.unanswered.len();
        // A service that consumes nothing of so much will never do.
        let (front, room) = scratch.input.split_at_mut_checked(kept).ok_or(Broken)?;
        if room.is_empty() {
            return Err(Broken);
        }
        front.copy_from_slice(&self.unanswered);
        let capacity = room.len();
        let len = match recv(&self.socket, room, RecvFlags::empty()) {
            Ok((len, _)) => len,
            Err(Errno::AGAIN) => return Ok(Then::Wait),
            Err(Errno::INTR) => return Ok(Then::Again),
            Err(_) => return Err(Broken),
        };
        let is_end = len == 0;
        self.unanswered.clear();
        let input = &scratch.input[..kept + len];
        self.answer(service, input, is_end, &mut scratch.replies)?;
        if is_end && self.stage != Stage::LastRefused {
            self.stage = Stage::Last;
        }
        if self.stage != Stage::Open {
            if len == capacity {
                self.stage = Stage::LastRefused;
            }
            return self.ended();
        }
        // A stream that gave less than there was room for is empty: the kernel tells when that changes.
        let may_hold_more = len == capacity || has_hung_up;
        Ok(if may_hold_more {
            Then::Again
        } else {
            Then::Wait
        })
    }

    /// Answers as much of `input` as can be sent, and keeps the rest.
    fn answer<S: Service<'s>>(
        &mut self,
        service: &mut S,
        mut input: &[u8],
        is_end: bool,
        replies: &mut Replies<'s>,
    ) -> Result<(), Broken> {
        loop {
            replies.clear();
            let answered = service.answer(input, is_end, replies);
            self.send(replies, input)?;
            input = &input[answered.consumed..];
            match answered.next {
                Next::Answer if self.unsent.is_empty() => {}
                Next::Answer | Next::Read => {
                    self.unanswered.extend_from_slice(input);
                    return Ok(());
                }
                Next::Close if input.is_empty() => {
                    self.stage = Stage::Last;
                    return Ok(());
                }
                Next::Close | Next::Refuse => {
                    self.stage = Stage::LastRefused;
                    return Ok(());
                }
            }
        }
    }

    /// Sends the replies to `input`, and keeps what the kernel does not take.
    fn send(&mut self, replies: &Replies<'s>, input: &[u8]) -> Result<(), Broken> {
        let pieces = replies.pieces();
        let mut sent = match pieces {
            [] => return Ok(()),
            [piece] => taken(send(&self.socket, piece.bytes(input), SendFlags::NOSIGNAL))?,
            _ => send_all(&self.socket, pieces.iter().map(|piece| piece.bytes(input)))?,
        };
        for piece in pieces {
            let bytes = piece.bytes(input);
            let of_this = sent.min(bytes.len());
            sent -= of_this;
            if of_this == bytes.len() {
                continue;
            }
            self.unsent.push_back(match piece {
                Piece::Shared(bytes) => Cow::Borrowed(&bytes[of_this..]),
                Piece::Input(_) => Cow::Owned(bytes[of_this..].to_vec()),
            });
        }
        Ok(())
    }

    /// Sends what was left.
    fn flush(&mut self) -> Result<(), Broken> {
        while !self.unsent.is_empty() {
            let mut sent = send_all(&self.socket, self.unsent.iter().map(|piece| &**piece))?;
            if sent == 0 {
                return Ok(());
            }
            while let Some(first) = self.unsent.front_mut() {
                if sent < first.len() {
                    match first {
                        Cow::Borrowed(bytes) => *bytes = &bytes[sent..],
                        Cow::Owned(bytes) => drop(bytes.drain(..sent)),
                    }
                    break;
                }
                sent -= first.len();
                self.unsent.pop_front();
            }
        }
        Ok(())
    }

    /// What is left to do after the last reply.
    fn ended(&mut self) -> Result<Then, Broken> {
        match self.stage {
            _ if !self.unsent.is_empty() => Ok(Then::Wait),
            Stage::LastRefused => {
                shutdown(&self.socket, Shutdown::Write).map_err(|_| Broken)?;
                self.stage = Stage::Draining(0);
                Ok(Then::Again)
            }
            _ => Ok(Then::Close),
        }
    }

    /// Throws away what comes.
    fn drain(&mut self, room: &mut [u8]) -> Result<Then, Broken> {
        let Stage::Draining(drained) = self.stage else {
            return Err(Broken);
        };
        match recv(&self.socket, room, RecvFlags::empty()) {
            Ok((len, _)) if len > 0 && drained + len <= MAX_DRAINED => {
                self.stage = Stage::Draining(drained + len);
                Ok(Then::Again)
            }
            Err(Errno::AGAIN) => Ok(Then::Wait),
            Err(Errno::INTR) => Ok(Then::Again),
            Ok(_) | Err(_) => Err(Broken),
        }
    }
}

/// Sends the first of `pieces` in one call; how many bytes the kernel took.
fn send_all<'a>(socket: &OwnedFd, pieces: impl Iterator<Item = &'a [u8]>) -> Result<usize, Broken> {
    let mut slices = [IoSlice::new(&[]); MAX_PIECES];
    let mut count = 0;
    for (slice, piece) in slices.iter_mut().zip(pieces) {
        *slice = IoSlice::new(piece);
        count += 1;
    }
    taken(sendmsg(
        socket,
        &slices[..count],
        &mut SendAncillaryBuffer::default(),
        SendFlags::NOSIGNAL,
    ))
}

/// A kernel that has no room took nothing, which is no error: it will tell when it has.
fn taken(sent: Result<usize, Errno>) -> Result<usize, Broken> {
    match sent {
        Ok(len) => Ok(len),
        Err(Errno::AGAIN) => Ok(0),
        Err(_) => Err(Broken),
    }
}
