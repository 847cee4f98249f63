//! Bodies that are made piece by piece: large files, and several ranges of any file.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use interruptlet::pool::BodySource;

use super::descriptors::StreamPermit;
use super::range::ByteRange;

/// Bytes per chunk: what one slow client holds in memory.
pub const CHUNK_BYTES: usize = 64 * 1024;

/// Where the bytes of ranges come from.
#[derive(Debug)]
pub enum Content {
    /// Memory.
    Shared(Bytes),
    /// The disk. The permit comes last, so that it goes when the file is closed.
    File(File, StreamPermit),
}

impl Content {
    /// Appends `range` to `chunk`. A file that has become shorter is an error.
    fn read(&self, range: ByteRange, chunk: &mut Vec<u8>) -> io::Result<()> {
        let start = chunk.len();
        match self {
            Self::Shared(content) => {
                let bytes = content.get(range.start as usize..range.end as usize);
                chunk.extend_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
            }
            Self::File(file, _) => {
                chunk.resize(start + range.len() as usize, 0);
                file.read_exact_at(&mut chunk[start..], range.start)?;
            }
        }
        Ok(())
    }
}

/// A piece of a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// These bytes.
    Text(Vec<u8>),
    /// A range of the content.
    Range(ByteRange),
}

/// A body of pieces, read when it is asked for.
#[derive(Debug)]
pub struct Pieces {
    content: Content,
    left: VecDeque<Piece>,
}

impl Pieces {
    /// The pieces, one after the other.
    pub fn new(content: Content, pieces: impl IntoIterator<Item = Piece>) -> Self {
        Self {
            content,
            left: pieces.into_iter().collect(),
        }
    }

    /// Their length in bytes.
    pub fn len(&self) -> u64 {
        let len = |piece: &Piece| match piece {
            Piece::Text(text) => text.len() as u64,
            Piece::Range(range) => range.len(),
        };
        self.left.iter().map(len).sum()
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    fn needs_content(&self) -> bool {
        self.left
            .iter()
            .any(|piece| matches!(piece, Piece::Range(_)))
    }
}

impl BodySource for Pieces {
    fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        let capacity = self.len().min(CHUNK_BYTES as u64) as usize;
        let mut chunk = Vec::with_capacity(capacity);
        // A text goes with the chunk it begins in; texts are short.
        while chunk.len() < CHUNK_BYTES {
            match self.left.pop_front() {
                None => break,
                Some(Piece::Text(text)) => chunk.extend_from_slice(&text),
                Some(Piece::Range(range)) => {
                    let room = (CHUNK_BYTES - chunk.len()) as u64;
                    let end = range.end.min(range.start.saturating_add(room));
                    if end < range.end {
                        let start = end;
                        self.left
                            .push_front(Piece::Range(ByteRange { start, ..range }));
                    }
                    self.content.read(ByteRange { end, ..range }, &mut chunk)?;
                }
            }
        }
        if !self.needs_content() {
            // Here and not when the body is dropped, which is on the poll loop: closing a file that was
            // deleted meanwhile frees it, and that takes time.
            self.content = Content::Shared(Bytes::new());
        }
        Ok((!chunk.is_empty()).then(|| chunk.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::descriptors::Streams;
    use std::io::Write;

    fn all(pieces: &mut Pieces) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while let Some(chunk) = pieces.next_chunk()? {
            assert!(!chunk.is_empty() && chunk.len() <= CHUNK_BYTES + 100);
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file
    }

    fn permit() -> StreamPermit {
        Streams::new(1).start().unwrap()
    }

    fn content(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i % 251) as u8).collect()
    }

    #[test]
    fn a_file_in_chunks() {
        let content = content(3 * CHUNK_BYTES + 7);
        let range = ByteRange {
            start: 1,
            end: content.len() as u64,
        };
        for source in [
            Content::File(file(&content), permit()),
            Content::Shared(content.clone().into()),
        ] {
            let mut pieces = Pieces::new(source, [Piece::Range(range)]);
            assert_eq!(pieces.len(), range.len());
            assert_eq!(all(&mut pieces).unwrap(), content[1..]);
            assert!(pieces.is_empty());
        }
    }

    #[test]
    fn a_file_is_closed_with_its_last_chunk() {
        let content = content(2 * CHUNK_BYTES);
        let range = |start, end| Piece::Range(ByteRange { start, end });
        let end = content.len() as u64;
        // The text after it makes a chunk of its own.
        let pieces = [range(0, end), Piece::Text(b"end".to_vec())];
        let streams = Streams::new(1);
        let source = Content::File(file(&content), streams.start().unwrap());
        let mut pieces = Pieces::new(source, pieces);
        assert!(pieces.next_chunk().is_ok() && streams.start().is_none());
        assert!(pieces.next_chunk().is_ok() && streams.start().is_some());
        assert!(matches!(pieces.content, Content::Shared(_)));
        assert_eq!(pieces.next_chunk().unwrap().unwrap(), "end");
        assert_eq!(pieces.next_chunk().unwrap(), None);
    }

    #[test]
    fn texts_and_ranges() {
        let range = |start, end| Piece::Range(ByteRange { start, end });
        let pieces = [
            Piece::Text(b"<".to_vec()),
            range(3, 5),
            Piece::Text(b"|".to_vec()),
            range(0, 1),
            Piece::Text(b">".to_vec()),
        ];
        let mut pieces = Pieces::new(Content::Shared(Bytes::from_static(b"abcdef")), pieces);
        assert_eq!(pieces.len(), 6);
        assert_eq!(pieces.next_chunk().unwrap().unwrap(), "<de|a>");
        assert_eq!(pieces.next_chunk().unwrap(), None);
    }

    #[test]
    fn a_file_that_shrinks_is_an_error_and_one_that_grows_is_not() {
        let content = content(2 * CHUNK_BYTES);
        let range = ByteRange {
            start: 0,
            end: content.len() as u64,
        };
        let mut growing = file(&content);
        growing.write_all(b"more").unwrap();
        let mut pieces = Pieces::new(Content::File(growing, permit()), [Piece::Range(range)]);
        assert_eq!(all(&mut pieces).unwrap(), content);

        let shrinking = file(&content);
        let truncated = shrinking.try_clone().unwrap();
        let mut pieces = Pieces::new(Content::File(shrinking, permit()), [Piece::Range(range)]);
        assert!(pieces.next_chunk().is_ok());
        truncated.set_len(CHUNK_BYTES as u64 + 1).unwrap();
        assert_eq!(
            pieces.next_chunk().unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
    }
}
