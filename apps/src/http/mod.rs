//! Static files over HTTP/1.0 and HTTP/1.1 (RFC 9110, RFC 9112).
//!
//! ```text
//! bytes ─ request ─ target ─┬─ fast: cached content, errors that need no disk
//!                           └─ slow: disk, fills the cache, everything else
//! ```
//!
//! Both sides take the same decisions with the same code: [`request`] (framing), [`target`] (paths),
//! [`answer`] (what needs no file), [`plan`] (conditions and ranges over a representation) and
//! [`response`] (bytes of heads). They differ in where the content comes from: [`fast`] knows only
//! [`cache`], [`slow`] also [`files`] and [`source`]. [`watch`] has the slow side's looks made for what was served
//! lately, beside the requests.

pub mod answer;
pub mod cache;
pub mod clock;
pub mod conditions;
pub mod date;
pub mod descriptors;
pub mod fast;
pub mod files;
pub mod plan;
pub mod range;
pub mod representation;
pub mod request;
pub mod response;
pub mod slow;
pub mod source;
pub mod target;
pub mod watch;

#[cfg(test)]
mod tests;

use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::sync::Arc;

use cache::SharedCache;
use descriptors::Streams;
use files::{Root, RootError};
use watch::Watch;

/// What all handlers of one server share.
#[derive(Debug)]
pub struct Site {
    root: Root,
    cache: SharedCache,
    watch: Watch,
    streams: Streams,
    boundary: String,
}

impl Site {
    /// A site of the files under `root`, of which at most `cache_bytes` are kept in memory.
    ///
    /// # Errors
    /// When `root` is no directory that can be read.
    pub fn open(root: &Path, cache_bytes: usize) -> Result<Arc<Self>, RootError> {
        Self::with_streams(root, cache_bytes, descriptors::streams_allowed())
    }

    /// The same with at most `streams` files that are sent from the disk at a time.
    fn with_streams(root: &Path, cache_bytes: usize, streams: u64) -> Result<Arc<Self>, RootError> {
        // Not to be guessed by who writes the files, or a file could pretend to be another part.
        let random = || RandomState::new().hash_one(0_u8);
        Ok(Arc::new(Self {
            root: Root::open(root)?,
            cache: SharedCache::new(cache_bytes),
            watch: Watch::default(),
            streams: Streams::new(streams),
            boundary: format!("{:016x}{:016x}", random(), random()),
        }))
    }

    /// The cache, for its figures.
    pub fn cache(&self) -> &SharedCache {
        &self.cache
    }
}
