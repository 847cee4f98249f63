//! Files below the root: opened through a sandbox that symbolic links cannot leave, and told apart by
//! their metadata.

use std::ffi::OsStr;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use cap_std::ambient_authority;
use cap_std::fs::{Dir, Metadata, MetadataExt, OpenOptions, OpenOptionsExt};
use rustix::io::Errno;

use super::answer::Status;

/// A change this soon after another might get the same times, on file systems that round them.
const RACY: Duration = Duration::from_secs(2);

/// The directory that is served: whichever its path leads to, once [`Root::follow`] has seen that.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    dir: RwLock<Arc<RootDir>>,
}

#[derive(Debug)]
struct RootDir {
    dir: Dir,
    /// Device and inode. They are given to no other directory as long as this one is open.
    id: (u64, u64),
}

/// Why there is nothing to serve.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve {}: {why}; give --root a directory that this user can read", path.display())]
pub struct RootError {
    path: PathBuf,
    why: io::Error,
}

/// One state of a file. If it is the same, so is the content, unless the file [is racy](Self::is_racy).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Identity {
    device: u64,
    inode: u64,
    /// Length in bytes.
    pub len: u64,
    modified: (i64, i64),
    /// Cannot be set back, unlike the modification time.
    changed: (i64, i64),
}

/// What a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File(Identity),
    /// A directory.
    Directory,
}

/// What a path was opened as.
#[derive(Debug)]
pub enum Opened {
    /// A regular file.
    File(std::fs::File, Identity),
    /// A directory.
    Directory,
}

/// Why a path cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It leads out of the root, may not be read, or is neither file nor directory.
    #[error("not permitted")]
    Forbidden,
    /// It leads nowhere.
    #[error("not there")]
    NotFound,
    /// Too many files are being sent.
    #[error("as many files as may be open are being sent")]
    TooMany,
    /// The system failed.
    #[error(transparent)]
    Failed(io::Error),
}

impl Refused {
    /// What the client is told.
    pub fn status(&self) -> Status {
        match self {
            Self::Forbidden => Status::Forbidden,
            Self::NotFound => Status::NotFound,
            Self::TooMany => Status::ServiceUnavailable,
            Self::Failed(_) if self.is_exhaustion() => Status::ServiceUnavailable,
            Self::Failed(_) => Status::InternalServerError,
        }
    }

    /// Out of descriptors or memory: it may work a moment later.
    pub fn is_exhaustion(&self) -> bool {
        match self {
            Self::TooMany => true,
            Self::Failed(error) => matches!(
                Errno::from_io_error(error),
                Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN)
            ),
            Self::Forbidden | Self::NotFound => false,
        }
    }
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind as Kind;
        if Errno::from_io_error(&error) == Some(Errno::LOOP) {
            return Self::NotFound;
        }
        match error.kind() {
            // The sandbox refuses with this too.
            Kind::PermissionDenied => Self::Forbidden,
            Kind::NotFound | Kind::NotADirectory | Kind::InvalidFilename | Kind::InvalidInput => {
                Self::NotFound
            }
            _ => Self::Failed(error),
        }
    }
}

impl Root {
    /// Opens the directory to serve.
    ///
    /// # Errors
    /// When it is no directory or cannot be read.
    pub fn open(path: &Path) -> Result<Self, RootError> {
        let path = path.to_owned();
        match RootDir::open(&path) {
            Ok(dir) => Ok(Self {
                path,
                dir: RwLock::new(Arc::new(dir)),
            }),
            Err(why) => Err(RootError { path, why }),
        }
    }

    /// Looks where the path leads now, as after a symbolic link was replaced. Says whether that is
    /// another directory than before, which is served from now on.
    ///
    /// # Errors
    /// When it leads to nothing that can be served. The directory stays the one from before.
    pub fn follow(&self) -> io::Result<bool> {
        if RootDir::id_at(&self.path)? == self.dir().id {
            return Ok(false);
        }
        let opened = Arc::new(RootDir::open(&self.path)?);
        let mut dir = self.dir.write().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have been here meanwhile.
        let is_new = dir.id != opened.id;
        *dir = opened;
        Ok(is_new)
    }

    fn dir(&self) -> Arc<RootDir> {
        self.dir
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// What is at `path`, which is relative to the root.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn kind(&self, path: &[u8]) -> Result<Kind, Refused> {
        self.dir().kind(path)
    }

    /// Opens what is at `path` for reading.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn open_file(&self, path: &[u8]) -> Result<Opened, Refused> {
        let root = self.dir();
        // Opening a device can have effects, so it is looked at first.
        if root.kind(path)? == Kind::Directory {
            return Ok(Opened::Directory);
        }
        let mut options = OpenOptions::new();
        // If it has become a FIFO meanwhile: never wait for a writer.
        let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
        options.read(true).custom_flags(flags.bits() as i32);
        let file = root.dir.open_with(os_path(path), &options)?;
        match kind_of(&file.metadata()?)? {
            Kind::File(identity) => Ok(Opened::File(file.into_std(), identity)),
            Kind::Directory => Ok(Opened::Directory),
        }
    }
}

impl RootDir {
    fn open(path: &Path) -> io::Result<Self> {
        let dir = Dir::open_ambient_dir(path, ambient_authority())?;
        dir.entries()?;
        let metadata = dir.dir_metadata()?;
        let id = (metadata.dev(), metadata.ino());
        Ok(Self { dir, id })
    }

    fn id_at(path: &Path) -> io::Result<(u64, u64)> {
        use std::os::unix::fs::MetadataExt as _;
        let metadata = std::fs::metadata(path)?;
        Ok((metadata.dev(), metadata.ino()))
    }

    fn kind(&self, path: &[u8]) -> Result<Kind, Refused> {
        kind_of(&self.dir.metadata(os_path(path))?)
    }
}

fn os_path(path: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(path))
}

fn kind_of(metadata: &Metadata) -> Result<Kind, Refused> {
    if metadata.is_file() {
        Ok(Kind::File(Identity::of(metadata)))
    } else if metadata.is_dir() {
        Ok(Kind::Directory)
    } else {
        Err(Refused::Forbidden)
    }
}

impl Identity {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// The state of an open file.
    ///
    /// # Errors
    /// When the system cannot say.
    pub fn of_file(file: &std::fs::File) -> io::Result<Self> {
        use std::os::unix::fs::MetadataExt as _;
        let metadata = file.metadata()?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    /// Its strong entity tag (RFC 9110 section 8.8.3), in quotes: a digest, so that it tells nobody
    /// inode numbers.
    pub fn etag(&self) -> String {
        // With fixed keys: the same file keeps its tag over a restart.
        let mut digest = DefaultHasher::new();
        self.hash(&mut digest);
        format!("\"{:016x}\"", digest.finish())
    }

    /// Last modification in seconds since 1970, if it is between that and `wall_seconds`.
    pub fn modified(&self, wall_seconds: u64) -> Option<u64> {
        let seconds = u64::try_from(self.modified.0).ok()?;
        (seconds <= wall_seconds).then_some(seconds)
    }

    /// Whether it changed so shortly before `wall` that the next change might look the same.
    pub fn is_racy(&self, wall: SystemTime) -> bool {
        let time = |(seconds, nanos): (i64, i64)| {
            let seconds = u64::try_from(seconds).unwrap_or(0);
            Duration::new(seconds, u32::try_from(nanos).unwrap_or(0))
        };
        let wall = wall.duration_since(SystemTime::UNIX_EPOCH);
        let last_change = time(self.modified).max(time(self.changed));
        wall.unwrap_or_default() < last_change.saturating_add(RACY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn site() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("sub")).unwrap();
        fs::write(root.join("a.txt"), "a").unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        let root = Root::open(&root).unwrap();
        (dir, root)
    }

    #[test]
    fn files_and_directories() {
        let (_dir, root) = site();
        assert!(matches!(root.kind(b"a.txt"), Ok(Kind::File(identity)) if identity.len == 1));
        assert!(matches!(root.kind(b"sub"), Ok(Kind::Directory)));
        assert!(matches!(root.open_file(b"a.txt"), Ok(Opened::File(..))));
        assert!(matches!(root.open_file(b"sub"), Ok(Opened::Directory)));
        for path in [&b"none"[..], b"a.txt/index.html", &[b'x'; 300]] {
            assert!(matches!(root.open_file(path), Err(Refused::NotFound)));
        }
    }

    #[test]
    fn links_lead_around_inside_only() {
        let (dir, root) = site();
        let at = |name: &str| dir.path().join("root").join(name);
        symlink("a.txt", at("inside")).unwrap();
        symlink("../secret", at("outside")).unwrap();
        symlink(dir.path().join("secret"), at("absolute")).unwrap();
        symlink("..", at("sub/up")).unwrap();
        symlink("../..", at("sub/out")).unwrap();
        symlink("loop", at("loop")).unwrap();
        assert!(root.open_file(b"inside").is_ok());
        assert!(root.open_file(b"sub/up/a.txt").is_ok());
        for path in [&b"outside"[..], b"absolute", b"sub/out/secret"] {
            assert!(matches!(root.open_file(path), Err(Refused::Forbidden)));
        }
        assert!(matches!(root.open_file(b"loop"), Err(Refused::NotFound)));
        // The sandbox would not need the lexical check of the target.
        assert!(root.open_file(b"../secret").is_err());
    }

    #[test]
    fn neither_files_nor_directories() {
        let (dir, root) = site();
        let fifo = dir.path().join("root/fifo");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let socket = dir.path().join("root/socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert!(matches!(root.open_file(b"fifo"), Err(Refused::Forbidden)));
        assert!(matches!(root.open_file(b"socket"), Err(Refused::Forbidden)));
    }

    #[test]
    fn what_may_work_a_moment_later() {
        let failed = |errno: Errno| Refused::from(io::Error::from(errno));
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOMEM] {
            assert!(failed(errno).is_exhaustion());
            assert_eq!(failed(errno).status(), Status::ServiceUnavailable);
        }
        assert!(!failed(Errno::IO).is_exhaustion());
        assert_eq!(failed(Errno::IO).status(), Status::InternalServerError);
        assert!(!failed(Errno::NOENT).is_exhaustion());
    }

    #[test]
    fn a_root_that_is_none() {
        let (dir, _root) = site();
        for name in ["nowhere", "secret"] {
            let error = Root::open(&dir.path().join(name)).unwrap_err().to_string();
            assert!(
                error.starts_with("cannot serve ") && error.contains("--root"),
                "{error}"
            );
        }
    }

    #[test]
    fn the_root_is_where_its_path_leads() {
        let (dir, _root) = site();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("next")).unwrap();
        fs::write(at("next/b.txt"), "b").unwrap();
        symlink("root", at("current")).unwrap();
        let root = Root::open(&at("current")).unwrap();
        assert!(!root.follow().unwrap());
        symlink("next", at("swap")).unwrap();
        fs::rename(at("swap"), at("current")).unwrap();
        assert!(root.kind(b"a.txt").is_ok());
        assert!(root.follow().unwrap());
        assert!(!root.follow().unwrap());
        assert!(root.kind(b"a.txt").is_err() && root.open_file(b"b.txt").is_ok());
        // It leads nowhere, or not to a directory: what was there before stays.
        fs::remove_file(at("current")).unwrap();
        assert!(root.follow().is_err() && root.kind(b"b.txt").is_ok());
        symlink("secret", at("current")).unwrap();
        assert!(root.follow().is_err() && root.kind(b"b.txt").is_ok());
    }

    #[test]
    fn states_of_a_file() {
        let (dir, root) = site();
        let path = dir.path().join("root/a.txt");
        let identity = || match root.kind(b"a.txt") {
            Ok(Kind::File(identity)) => identity,
            other => panic!("{other:?}"),
        };
        let first = identity();
        assert_eq!(first, identity());
        assert_eq!(
            first,
            Identity::of_file(&fs::File::open(&path).unwrap()).unwrap()
        );
        assert!(first.is_racy(SystemTime::now()));
        assert!(!first.is_racy(SystemTime::now() + RACY));

        // Same length, and the modification time set back.
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        fs::write(&path, "b").unwrap();
        fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(modified)
            .unwrap();
        assert_ne!(identity(), first);
        assert_ne!(identity().etag(), first.etag());
    }

    #[test]
    fn modification_times_from_the_future_are_not_told() {
        let identity = Identity {
            modified: (100, 0),
            ..Identity::default()
        };
        assert_eq!(identity.modified(100), Some(100));
        assert_eq!(identity.modified(99), None);
    }
}
