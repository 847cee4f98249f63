//! What to send of a file: preconditions, then ranges. Pure, and the same for both paths.

use super::conditions::{self, Unmet};
use super::range::{self, ByteRange, Selection};
use super::representation::Representation;
use super::request::{Method, Request};

/// What to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// 200 with everything.
    Whole,
    /// 304
    NotModified,
    /// 412
    PreconditionFailed,
    /// 206 with one range.
    Part(ByteRange),
    /// 206 with several, as `multipart/byteranges`.
    Parts(Vec<ByteRange>),
    /// 416
    Unsatisfiable,
}

/// Decides what of `file` answers a GET or HEAD request.
pub fn decide(request: &Request<'_, '_>, file: &Representation) -> Plan {
    if !request.conditional {
        return Plan::Whole;
    }
    match conditions::evaluate(request, file) {
        Some(Unmet::Failed) => return Plan::PreconditionFailed,
        Some(Unmet::NotModified) => return Plan::NotModified,
        None => {}
    }
    // RFC 9110 section 14.2: ranges are defined for GET only; two Range fields are none.
    if request.method != Method::Get || !conditions::range_applies(request, file) {
        return Plan::Whole;
    }
    let Some(field) = request.single("Range") else {
        return Plan::Whole;
    };
    match range::select(field, file.len) {
        Selection::Whole => Plan::Whole,
        Selection::Part(range) => Plan::Part(range),
        Selection::Parts(ranges) => Plan::Parts(ranges),
        Selection::Unsatisfiable => Plan::Unsatisfiable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::request::{header_storage, parse};

    fn decided(method: &str, fields: &str) -> Plan {
        let file = Representation::new("a", 100, "\"tag\"".into(), Some(784_111_777));
        let bytes = format!("{method} / HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
        let mut storage = header_storage();
        let request = parse(bytes.as_bytes(), &mut storage).unwrap().unwrap();
        decide(&request, &file)
    }

    #[test]
    fn conditions_come_before_ranges() {
        let part = || Plan::Part(ByteRange { start: 0, end: 10 });
        for (method, fields, plan) in [
            ("GET", "", Plan::Whole),
            ("GET", "Range: bytes=0-9\r\n", part()),
            ("HEAD", "Range: bytes=0-9\r\n", Plan::Whole),
            (
                "GET",
                "Range: bytes=0-9\r\nRange: bytes=0-9\r\n",
                Plan::Whole,
            ),
            (
                "GET",
                "Range: bytes=0-9\r\nIf-None-Match: \"tag\"\r\n",
                Plan::NotModified,
            ),
            (
                "GET",
                "Range: bytes=0-9\r\nIf-Match: \"x\"\r\n",
                Plan::PreconditionFailed,
            ),
            ("GET", "Range: bytes=0-9\r\nIf-Range: \"tag\"\r\n", part()),
            (
                "GET",
                "Range: bytes=0-9\r\nIf-Range: \"x\"\r\n",
                Plan::Whole,
            ),
            (
                "GET",
                "Range: bytes=500-\r\nIf-Range: \"x\"\r\n",
                Plan::Whole,
            ),
            ("GET", "Range: bytes=500-\r\n", Plan::Unsatisfiable),
            ("GET", "If-Range: \"x\"\r\n", Plan::Whole),
            ("HEAD", "if-none-match: *\r\n", Plan::NotModified),
        ] {
            assert_eq!(decided(method, fields), plan, "{method} {fields}");
        }
    }
}
