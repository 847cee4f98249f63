//! Owns the file that a relay writes the beginnings of frames to, in the format of pcap (draft-ietf-opsawg-pcap),
//! with nanoseconds.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Bytes of a frame that are written at most: all headers of Ethernet, IP and TCP.
const FRAME_BYTES: usize = 134;
const MAGIC_NANOSECONDS: u32 = 0xa1b2_3c4d;
const LINKTYPE_ETHERNET: u32 = 1;

/// A file that is written.
#[derive(Debug)]
pub struct Trace {
    file: BufWriter<File>,
    /// Since 1970, when the relay's clock was zero, or nearly.
    began: Duration,
}

impl Trace {
    /// Makes the file.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn create(path: &Path) -> io::Result<Self> {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
        for word in [
            MAGIC_NANOSECONDS,
            // Version 2.4: two halves, the first of them first in memory.
            u32::from_ne_bytes(version()),
            0,
            0,
            FRAME_BYTES as u32,
            LINKTYPE_ETHERNET,
        ] {
            file.write_all(&word.to_ne_bytes())?;
        }
        let began = SystemTime::now().duration_since(UNIX_EPOCH);
        Ok(Self {
            file,
            // A clock before its own beginning is nobody's.
            began: began.unwrap_or_default(),
        })
    }

    /// Writes the beginning of a frame that came at `now`.
    pub(crate) fn write(&mut self, frame: &[u8], now: Duration) -> io::Result<()> {
        let time = self.began + now;
        let kept = &frame[..frame.len().min(FRAME_BYTES)];
        for word in [
            time.as_secs() as u32,
            time.subsec_nanos(),
            kept.len() as u32,
            frame.len() as u32,
        ] {
            self.file.write_all(&word.to_ne_bytes())?;
        }
        self.file.write_all(kept)
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn version() -> [u8; 4] {
    let [[a, b], [c, d]] = [2_u16, 4].map(u16::to_ne_bytes);
    [a, b, c, d]
}
