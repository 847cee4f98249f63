//! Preconditions (RFC 9110 section 13) against the validators of a representation.

use std::time::{Duration, SystemTime};

use super::representation::Representation;
use super::request::{Request, trim};

/// Why a request is not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmet {
    /// 412
    Failed,
    /// 304
    NotModified,
}

/// Evaluates all preconditions but If-Range, in the order of RFC 9110 section 13.2.2, for GET and HEAD.
pub fn evaluate(request: &Request<'_, '_>, file: &Representation) -> Option<Unmet> {
    // Steps 1 and 2.
    if request.has("If-Match") {
        let mut lines = request.values("If-Match");
        if !lines.any(|line| list_matches(line, &file.etag, Comparison::Strong)) {
            return Some(Unmet::Failed);
        }
    } else if let Some(date) = request.single("If-Unmodified-Since").and_then(parse_date)
        && file.modified.is_some_and(|modified| modified > date)
    {
        return Some(Unmet::Failed);
    }
    // Steps 3 and 4.
    if request.has("If-None-Match") {
        let mut lines = request.values("If-None-Match");
        if lines.any(|line| list_matches(line, &file.etag, Comparison::Weak)) {
            return Some(Unmet::NotModified);
        }
    } else if let Some(date) = request.single("If-Modified-Since").and_then(parse_date)
        && file.modified.is_some_and(|modified| modified <= date)
    {
        return Some(Unmet::NotModified);
    }
    None
}

/// Whether a Range field counts (RFC 9110 section 13.1.5): step 5.
pub fn range_applies(request: &Request<'_, '_>, file: &Representation) -> bool {
    if !request.has("If-Range") {
        return true;
    }
    let Some(validator) = request.single("If-Range") else {
        return false;
    };
    if validator.starts_with(b"\"") {
        // One entity tag, compared strongly. A weak one never matches and is no date either.
        return validator == file.etag.as_bytes();
    }
    // An exact match, not "not later".
    parse_date(validator).is_some_and(|date| file.modified == Some(date))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Strong,
    Weak,
}

/// Whether `*` or one of a list of entity tags (RFC 9110 section 8.8.3) is `etag`, a strong one in its
/// quotes. What follows a malformed tag is not looked at.
fn list_matches(list: &[u8], etag: &str, comparison: Comparison) -> bool {
    let mut rest = trim(list);
    if rest == b"*" {
        return true;
    }
    loop {
        while let [b' ' | b'\t' | b',', after @ ..] = rest {
            rest = after;
        }
        let (weak, tag) = match rest {
            [b'W', b'/', tag @ ..] => (true, tag),
            tag => (false, tag),
        };
        let [b'"', opaque @ ..] = tag else {
            return false;
        };
        let Some(quote) = memchr::memchr(b'"', opaque) else {
            return false;
        };
        let (tag, after) = tag.split_at(quote + 2);
        if tag == etag.as_bytes() && (!weak || comparison == Comparison::Weak) {
            return true;
        }
        rest = after;
        if !matches!(trim(rest), [b',', ..]) {
            return false;
        }
    }
}

/// Seconds since 1970 of an HTTP date (RFC 9110 section 5.6.7), all three formats.
fn parse_date(value: &[u8]) -> Option<u64> {
    let date = httpdate::parse_http_date(std::str::from_utf8(value).ok()?).ok()?;
    let since = date.duration_since(SystemTime::UNIX_EPOCH);
    Some(since.unwrap_or(Duration::ZERO).as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::request::{header_storage, parse};

    /// Last modified at 784111777, which is Sun, 06 Nov 1994 08:49:37 GMT.
    fn file() -> Representation {
        Representation::new("a.txt", 10, "\"tag\"".into(), Some(784_111_777))
    }

    fn evaluated(fields: &str) -> (Option<Unmet>, bool) {
        let bytes = format!("GET / HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
        let mut storage = header_storage();
        let request = parse(bytes.as_bytes(), &mut storage).unwrap().unwrap();
        (
            evaluate(&request, &file()),
            range_applies(&request, &file()),
        )
    }

    #[test]
    fn entity_tags() {
        for (field, unmet) in [
            ("If-None-Match: \"tag\"", Some(Unmet::NotModified)),
            ("If-None-Match: W/\"tag\"", Some(Unmet::NotModified)),
            (
                "If-None-Match: \"a\", \"b,\" ,, \"tag\"",
                Some(Unmet::NotModified),
            ),
            (
                "If-None-Match: \"a\"\r\nIf-None-Match: \"tag\"",
                Some(Unmet::NotModified),
            ),
            ("If-None-Match: *", Some(Unmet::NotModified)),
            ("If-None-Match: tag", None),
            ("If-None-Match: \"tagg\"", None),
            ("If-None-Match: \"a\" \"tag\"", None),
            ("If-None-Match: \"unclosed", None),
            ("If-None-Match: ", None),
            ("If-Match: \"tag\"", None),
            ("If-Match: *", None),
            ("If-Match: W/\"tag\"", Some(Unmet::Failed)),
            ("If-Match: \"a\", \"b\"", Some(Unmet::Failed)),
        ] {
            assert_eq!(evaluated(&format!("{field}\r\n")).0, unmet, "{field}");
        }
    }

    #[test]
    fn dates() {
        let same = "Sun, 06 Nov 1994 08:49:37 GMT";
        let later = "Sun, 06 Nov 1994 08:49:38 GMT";
        let earlier = "Sun, 06 Nov 1994 08:49:36 GMT";
        for (field, unmet) in [
            (
                format!("If-Modified-Since: {same}"),
                Some(Unmet::NotModified),
            ),
            (
                format!("If-Modified-Since: {later}"),
                Some(Unmet::NotModified),
            ),
            (format!("If-Modified-Since: {earlier}"), None),
            (
                "If-Modified-Since: Sunday, 06-Nov-94 08:49:37 GMT".into(),
                Some(Unmet::NotModified),
            ),
            (
                "If-Modified-Since: Sun Nov  6 08:49:37 1994".into(),
                Some(Unmet::NotModified),
            ),
            ("If-Modified-Since: yesterday".into(), None),
            (
                format!("If-Modified-Since: {same}\r\nIf-Modified-Since: {same}"),
                None,
            ),
            (format!("If-Unmodified-Since: {same}"), None),
            (
                format!("If-Unmodified-Since: {earlier}"),
                Some(Unmet::Failed),
            ),
            ("If-Unmodified-Since: never".into(), None),
        ] {
            assert_eq!(evaluated(&format!("{field}\r\n")).0, unmet, "{field}");
        }
    }

    #[test]
    fn tags_precede_dates() {
        let same = "Sun, 06 Nov 1994 08:49:37 GMT";
        let earlier = "Sun, 06 Nov 1994 08:49:36 GMT";
        let met = |fields: String| evaluated(&fields).0;
        assert_eq!(
            met(format!(
                "If-None-Match: \"x\"\r\nIf-Modified-Since: {same}\r\n"
            )),
            None
        );
        assert_eq!(
            met(format!(
                "If-Match: \"tag\"\r\nIf-Unmodified-Since: {earlier}\r\n"
            )),
            None
        );
        assert_eq!(
            met("If-Match: \"x\"\r\nIf-None-Match: \"tag\"\r\n".into()),
            Some(Unmet::Failed)
        );
    }

    #[test]
    fn if_range() {
        for (field, applies) in [
            ("", true),
            ("If-Range: \"tag\"\r\n", true),
            ("If-Range: \"old\"\r\n", false),
            ("If-Range: W/\"tag\"\r\n", false),
            ("If-Range: Sun, 06 Nov 1994 08:49:37 GMT\r\n", true),
            ("If-Range: Sun, 06 Nov 1994 08:49:38 GMT\r\n", false),
            ("If-Range: \"tag\"\r\nIf-Range: \"tag\"\r\n", false),
        ] {
            assert_eq!(evaluated(field).1, applies, "{field}");
        }
    }
}
