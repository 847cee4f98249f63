//! Request targets: from what the client sent to a path below the root.
//!
//! The path is split, decoded and resolved as text, so what leaves the root is refused before the disk
//! is asked. Symbolic links are the sandbox's business ([`super::files`]).

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode, percent_encode};

use super::answer::Status;
use super::request::is_host;

/// What a path that names a directory stands for.
const INDEX: &[u8] = b"index.html";

/// A request target, still encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'b> {
    /// Begins with a slash.
    pub path: &'b [u8],
    /// After the question mark, if there was one.
    pub query: Option<&'b [u8]>,
}

/// Splits an origin-form or absolute-form target (RFC 9112 section 3.2).
///
/// # Errors
/// 400 for the other forms and for what no form allows.
pub fn split(target: &[u8]) -> Result<Target<'_>, Status> {
    // A fragment is never sent (RFC 9110 section 7.1).
    if memchr::memchr(b'#', target).is_some() {
        return Err(Status::BadRequest);
    }
    let origin = match target {
        [b'/', ..] => target,
        _ => strip_authority(target)?,
    };
    let (path, query) = match memchr::memchr(b'?', origin) {
        Some(mark) => (&origin[..mark], Some(&origin[mark + 1..])),
        None => (origin, None),
    };
    // `http://host` and `http://host?query`.
    let path = if path.is_empty() { b"/" } else { path };
    Ok(Target { path, query })
}

/// What follows `http://host`. The host itself is not looked at: there is one site.
fn strip_authority(target: &[u8]) -> Result<&[u8], Status> {
    const SCHEME: &[u8] = b"http://";
    let (scheme, rest) = target
        .split_at_checked(SCHEME.len())
        .ok_or(Status::BadRequest)?;
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?'));
    let (authority, origin) = rest.split_at(end.unwrap_or(rest.len()));
    let is_valid = scheme.eq_ignore_ascii_case(SCHEME)
        && !authority.is_empty()
        && authority[0] != b':'
        && is_host(authority);
    if is_valid {
        Ok(origin)
    } else {
        Err(Status::BadRequest)
    }
}

/// The file that an encoded path asks for: decoded, relative to the root, without `.`, `..` and empty
/// segments. A path that ends like a directory asks for its `index.html`.
///
/// # Errors
/// 400 for invalid encodings, NUL, and paths that climb above the root; 404 for an encoded slash, which
/// no file name can hold.
pub fn file_path(path: &[u8]) -> Result<Vec<u8>, Status> {
    let mut resolved = Vec::with_capacity(path.len() + INDEX.len());
    let mut ends_as_directory = true;
    for segment in path.split(|&byte| byte == b'/').skip(1) {
        check_encoding(segment)?;
        let before = resolved.len();
        if before > 0 {
            resolved.push(b'/');
        }
        let name_start = resolved.len();
        resolved.extend(percent_decode(segment));
        let name = &resolved[name_start..];
        ends_as_directory = matches!(name, b"" | b"." | b"..");
        match name {
            b"" | b"." => resolved.truncate(before),
            b".." => {
                if before == 0 {
                    return Err(Status::BadRequest);
                }
                let parent = resolved[..before].iter().rposition(|&byte| byte == b'/');
                resolved.truncate(parent.unwrap_or(0));
            }
            _ if name.contains(&0) => return Err(Status::BadRequest),
            _ if name.contains(&b'/') => return Err(Status::NotFound),
            _ => {}
        }
    }
    if ends_as_directory {
        if !resolved.is_empty() {
            resolved.push(b'/');
        }
        resolved.extend_from_slice(INDEX);
    }
    Ok(resolved)
}

/// RFC 3986 section 2.1: a percent sign is followed by two hexadecimal digits.
fn check_encoding(segment: &[u8]) -> Result<(), Status> {
    let is_encoded = |percent: usize| {
        matches!(segment.get(percent + 1..percent + 3), Some([high, low])
            if high.is_ascii_hexdigit() && low.is_ascii_hexdigit())
    };
    if memchr::memchr_iter(b'%', segment).all(is_encoded) {
        Ok(())
    } else {
        Err(Status::BadRequest)
    }
}

/// RFC 3986 section 3.3: what a path may hold unencoded.
const NOT_IN_PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'!')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')')
    .remove(b'*')
    .remove(b'+')
    .remove(b',')
    .remove(b';')
    .remove(b'=')
    .remove(b':')
    .remove(b'@')
    .remove(b'/');

/// Where the directory at `path` (as from [`file_path`]) really is. Built from the resolved path, so it
/// begins with exactly one slash and cannot point to another host.
pub fn directory_location(path: &[u8], query: Option<&[u8]>) -> Vec<u8> {
    let mut location = format!("/{}/", percent_encode(path, NOT_IN_PATH)).into_bytes();
    if let Some(query) = query {
        location.push(b'?');
        location.extend_from_slice(query);
    }
    location
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path(encoded: &str) -> Result<String, Status> {
        file_path(encoded.as_bytes()).map(|path| String::from_utf8(path).unwrap())
    }

    #[test]
    fn forms_of_the_target() {
        let path_of = |target: &'static str| split(target.as_bytes()).map(|target| target.path);
        assert_eq!(path_of("/a?b?c"), Ok(&b"/a"[..]));
        assert_eq!(split(b"/a?b?c").unwrap().query, Some(&b"b?c"[..]));
        assert_eq!(path_of("http://host/a"), Ok(&b"/a"[..]));
        assert_eq!(path_of("HTTP://[::1]:8080/a"), Ok(&b"/a"[..]));
        assert_eq!(path_of("http://host"), Ok(&b"/"[..]));
        assert_eq!(path_of("http://host?x"), Ok(&b"/"[..]));
        for bad in [
            "*",
            "a",
            "host:80",
            "http:///a",
            "http://u@h/",
            "https://h/",
            "/a#b",
            "http:/",
            "ftp://h/",
            "http://:80/",
        ] {
            assert_eq!(path_of(bad), Err(Status::BadRequest), "{bad}");
        }
    }

    #[test]
    fn paths_resolve_below_the_root() {
        for (encoded, resolved) in [
            ("/", "index.html"),
            ("/a", "a"),
            ("/a/", "a/index.html"),
            ("//a///b", "a/b"),
            ("/a/./b/../c", "a/c"),
            ("/a/..", "index.html"),
            ("/a/b/..", "a/index.html"),
            ("/a/.", "a/index.html"),
            ("/a/%2e%2E/b", "b"),
            ("/%61%20b", "a b"),
            ("/...", "..."),
            ("/%25", "%"),
            ("/a\\..\\b", "a\\..\\b"),
        ] {
            assert_eq!(path(encoded).as_deref(), Ok(resolved), "{encoded}");
        }
    }

    #[test]
    fn paths_that_lead_nowhere() {
        for encoded in [
            "/..",
            "/../etc/passwd",
            "/a/../../b",
            "/%2e%2e/b",
            "/.%2e",
            "/%",
            "/%4",
            "/%zz",
            "/a%00b",
        ] {
            assert_eq!(path(encoded), Err(Status::BadRequest), "{encoded}");
        }
        assert_eq!(path("/a%2fb"), Err(Status::NotFound));
        assert_eq!(path("/..%2f..%2fetc"), Err(Status::NotFound));
    }

    #[test]
    fn a_directory_moves_to_this_host() {
        assert_eq!(
            directory_location(b"evil.example", Some(b"q=1")),
            b"/evil.example/?q=1"
        );
        assert_eq!(
            directory_location(b"a b/\xff\r\n", None),
            b"/a%20b/%FF%0D%0A/"
        );
    }

    proptest! {
        #[test]
        fn a_path_never_leaves_the_root(encoded in "/(\\.|%2e|%2E|/|a|%2f|%00|%)*") {
            if let Ok(path) = file_path(encoded.as_bytes()) {
                prop_assert!(!path.is_empty() && path[0] != b'/');
                for name in path.split(|&byte| byte == b'/') {
                    prop_assert!(!matches!(name, b"" | b"." | b".."));
                    prop_assert!(!name.contains(&0));
                }
            }
        }

        #[test]
        fn any_bytes_are_resolved_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(target) = split(&bytes) {
                let _ = file_path(target.path);
            }
        }
    }
}
