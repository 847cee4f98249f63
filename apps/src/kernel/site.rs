//! All files below a directory in memory, as whole responses.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::http::answer::Status;
use crate::http::representation::Representation;

/// More content than this is refused, in bytes.
pub const MAX_BYTES: u64 = 1 << 30;
/// What is answered without a file.
const WITHOUT_FILE: [Status; 9] = [
    Status::BadRequest,
    Status::NotFound,
    Status::MethodNotAllowed,
    Status::ContentTooLarge,
    Status::UriTooLong,
    Status::ExpectationFailed,
    Status::HeaderFieldsTooLarge,
    Status::NotImplemented,
    Status::VersionNotSupported,
];

/// The files cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum SiteError {
    /// The disk says no.
    #[error("cannot read {path}: {source}; give a directory whose files may be read")]
    Read {
        /// What could not be read.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// They do not fit.
    #[error(
        "the files below {root} have more than {max} bytes, and all are kept in memory: serve fewer"
    )]
    TooMuch {
        /// The directory.
        root: PathBuf,
        /// How much there may be, in bytes.
        max: u64,
    },
}

/// A response that is ready to be sent.
#[derive(Debug, PartialEq, Eq)]
pub struct Page {
    /// Head and body, for a connection that stays open.
    whole: Vec<u8>,
    head_len: usize,
    /// The head that announces the end of the connection.
    last_head: Vec<u8>,
}

impl Page {
    /// `fields` are lines with their ends. `len` is how long the body has to be, in bytes.
    fn new(status: Status, fields: &str, body: impl Read, len: u64) -> io::Result<Self> {
        let start = format!(
            "HTTP/1.1 {}\r\nServer: kernel-httpd\r\n{fields}Content-Length: {len}\r\n",
            status.as_str()
        );
        let mut whole = format!("{start}\r\n").into_bytes();
        let head_len = whole.len();
        let expected = usize::try_from(len).map_err(io::Error::other)?;
        whole.reserve_exact(expected);
        body.take(len).read_to_end(&mut whole)?;
        if whole.len() - head_len != expected {
            return Err(io::Error::other("it changed while it was read"));
        }
        Ok(Self {
            whole,
            head_len,
            last_head: format!("{start}Connection: close\r\n\r\n").into_bytes(),
        })
    }

    fn without_file(status: Status) -> io::Result<Self> {
        let allow = match status {
            Status::MethodNotAllowed => "Allow: GET, HEAD\r\n",
            _ => "",
        };
        let fields = format!("{allow}Content-Type: text/plain; charset=utf-8\r\n");
        let body = format!("{}\n", status.as_str());
        Self::new(status, &fields, body.as_bytes(), body.len() as u64)
    }

    /// The response in two parts, the second of which may be empty.
    pub fn parts(&self, keep_alive: bool, head_only: bool) -> [&[u8]; 2] {
        let (head, body) = self.whole.split_at(self.head_len);
        match (keep_alive, head_only) {
            (true, false) => [&self.whole, &[]],
            (true, true) => [head, &[]],
            (false, false) => [&self.last_head, body],
            (false, true) => [&self.last_head, &[]],
        }
    }
}

/// The pages of all files.
#[derive(Debug)]
pub struct Site {
    /// By path below the root, as bytes without a slash at the beginning.
    files: HashMap<Box<[u8]>, Page, ahash::RandomState>,
    without_file: Vec<(Status, Page)>,
    internal_error: Page,
}

impl Site {
    /// Reads all files below `root`. Symbolic links in it are left out, as are devices and pipes.
    ///
    /// # Errors
    /// When something cannot be read, or there is more than [`MAX_BYTES`].
    pub fn load(root: &Path) -> Result<Self, SiteError> {
        Self::load_at_most(root, MAX_BYTES)
    }

    fn load_at_most(root: &Path, max: u64) -> Result<Self, SiteError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| SiteError::Read { path, source }
        };
        let mut files = HashMap::default();
        let mut left = max;
        let mut directories = vec![root.to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(&directory).map_err(failed(&directory))? {
                let path = entry.map_err(failed(&directory))?.path();
                let metadata = path.symlink_metadata().map_err(failed(&path))?;
                if metadata.is_dir() {
                    directories.push(path);
                } else if metadata.is_file() {
                    let remaining = left.checked_sub(metadata.len());
                    left = remaining.ok_or_else(|| SiteError::TooMuch {
                        root: root.to_owned(),
                        max,
                    })?;
                    let page = read(&path, metadata.len()).map_err(failed(&path))?;
                    // All are below the root.
                    let name = path.strip_prefix(root).unwrap_or(&path);
                    files.insert(name.as_os_str().as_bytes().into(), page);
                }
            }
        }
        let without_file = || -> io::Result<_> {
            let pages = WITHOUT_FILE.map(|status| Ok((status, Page::without_file(status)?)));
            let pages: io::Result<Vec<_>> = pages.into_iter().collect();
            Ok((pages?, Page::without_file(Status::InternalServerError)?))
        };
        let (without_file, internal_error) = without_file().map_err(failed(root))?;
        Ok(Self {
            files,
            without_file,
            internal_error,
        })
    }

    /// The file at `path`, which is decoded and has no slash at the beginning.
    pub fn file(&self, path: &[u8]) -> Option<&Page> {
        self.files.get(path)
    }

    /// The answer that needs no file.
    pub fn without_file(&self, status: Status) -> &Page {
        let mut pages = self.without_file.iter();
        let found = pages.find(|(other, _)| *other == status);
        found.map_or(&self.internal_error, |(_, page)| page)
    }
}

fn read(path: &Path, len: u64) -> io::Result<Page> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let representation = Representation::new(&name, len, String::new(), None);
    let content_type = String::from_utf8_lossy(representation.content_type());
    Page::new(Status::Ok, &content_type, File::open(path)?, len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(parts: [&[u8]; 2]) -> String {
        String::from_utf8(parts.concat()).unwrap()
    }

    #[test]
    fn files_are_whole_responses() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("a/b")).unwrap();
        fs::write(root.path().join("a/b/c.txt"), "hello").unwrap();
        fs::write(root.path().join("empty"), "").unwrap();
        std::os::unix::fs::symlink("empty", root.path().join("link")).unwrap();
        let site = Site::load(root.path()).unwrap();
        let page = site.file(b"a/b/c.txt").unwrap();
        let fields = "Server: kernel-httpd\r\nContent-Type: text/plain; charset=utf-8\r\n\
                      Content-Length: 5\r\n";
        let start = format!("HTTP/1.1 200 OK\r\n{fields}");
        assert_eq!(text(page.parts(true, false)), format!("{start}\r\nhello"));
        assert_eq!(text(page.parts(true, true)), format!("{start}\r\n"));
        let last = format!("{start}Connection: close\r\n\r\n");
        assert_eq!(text(page.parts(false, false)), format!("{last}hello"));
        assert_eq!(text(page.parts(false, true)), last);
        let empty = text(site.file(b"empty").unwrap().parts(true, false));
        assert!(empty.ends_with("Content-Length: 0\r\n\r\n"), "{empty}");
        for other in [&b"link"[..], b"a", b"", b"a/b"] {
            assert!(site.file(other).is_none());
        }
    }

    #[test]
    fn answers_without_a_file() {
        let root = tempfile::tempdir().unwrap();
        let site = Site::load(root.path()).unwrap();
        for status in WITHOUT_FILE {
            let page = text(site.without_file(status).parts(true, false));
            assert!(page.starts_with(&format!("HTTP/1.1 {}\r\n", status.as_str())));
            assert!(page.ends_with(&format!("\r\n\r\n{}\n", status.as_str())));
        }
        let page = text(site.without_file(Status::Forbidden).parts(true, true));
        assert!(page.starts_with("HTTP/1.1 500 "));
    }

    #[test]
    fn what_cannot_be_served_is_told_in_a_line() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("a"), [0; 6]).unwrap();
        fs::write(root.path().join("b"), [0; 5]).unwrap();
        assert!(Site::load_at_most(root.path(), 11).is_ok());
        let too_much = Site::load_at_most(root.path(), 10).unwrap_err().to_string();
        assert!(too_much.contains("more than 10 bytes"), "{too_much}");
        let missing = Site::load(&root.path().join("none")).unwrap_err();
        let missing = missing.to_string();
        assert!(missing.contains("none: No such file"), "{missing}");
        assert!(!missing.contains('\n') && !too_much.contains('\n'));
    }
}
