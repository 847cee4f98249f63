//! What a server says to the bytes of a stream, without any I/O.

use std::ops::Range;

/// Pieces of replies that one call of [`Service::answer`] may give: what one `sendmsg` takes.
pub const MAX_PIECES: usize = 64;

/// Answers the bytes of streams. `'s` is how long the content lives that it sends.
pub trait Service<'s> {
    /// Answers what is at the front of `input`, all that has come and was not consumed yet.
    /// `is_end`: nothing will follow it.
    fn answer(&mut self, input: &[u8], is_end: bool, replies: &mut Replies<'s>) -> Answered;
}

/// What became of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answered {
    /// Bytes that are done with, at most all.
    pub consumed: usize,
    /// What to do when the replies are on their way.
    pub next: Next,
}

/// What to do after a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// More bytes are needed to go on.
    Read,
    /// There was no room for more replies: answer the rest as soon as these are sent.
    Answer,
    /// It was the last reply. The peer expects that, and sends nothing more.
    Close,
    /// It was the last reply, but the peer may still be sending: what comes must be taken, or the reply
    /// could be lost to a reset.
    Refuse,
}

/// The replies to one piece of input, in order.
#[derive(Debug)]
pub struct Replies<'s> {
    pieces: Vec<Piece<'s>>,
}

/// Consecutive bytes of a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece<'s> {
    /// Content that lives as long as the server.
    Shared(&'s [u8]),
    /// This part of the input that is being answered.
    Input(Range<usize>),
}

impl Default for Replies<'_> {
    fn default() -> Self {
        Self {
            pieces: Vec::with_capacity(MAX_PIECES),
        }
    }
}

impl<'s> Replies<'s> {
    /// Whether `count` more pieces fit.
    pub fn has_room_for(&self, count: usize) -> bool {
        self.pieces.len() + count <= MAX_PIECES
    }

    /// Appends a piece, for which there must be room.
    pub fn push(&mut self, piece: Piece<'s>) {
        debug_assert!(self.has_room_for(1), "more pieces than one call sends");
        self.pieces.push(piece);
    }

    /// All pieces.
    pub fn pieces(&self) -> &[Piece<'s>] {
        &self.pieces
    }

    /// Takes all pieces out.
    pub fn clear(&mut self) {
        self.pieces.clear();
    }
}

impl<'s> Piece<'s> {
    /// The bytes, given the input that was answered.
    pub fn bytes<'a>(&self, input: &'a [u8]) -> &'a [u8]
    where
        's: 'a,
    {
        match self {
            Self::Shared(bytes) => bytes,
            Self::Input(range) => &input[range.clone()],
        }
    }
}
