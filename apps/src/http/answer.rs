//! Status codes, and the answers that need no file.

use super::request::{Method, Request, Version};
use super::target::{self, Target};

/// The status codes that this server sends (RFC 9110 section 15, RFC 6585).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// 200
    Ok,
    /// 204
    NoContent,
    /// 206
    PartialContent,
    /// 301
    MovedPermanently,
    /// 304
    NotModified,
    /// 400
    BadRequest,
    /// 403
    Forbidden,
    /// 404
    NotFound,
    /// 405
    MethodNotAllowed,
    /// 408
    RequestTimeout,
    /// 412
    PreconditionFailed,
    /// 413
    ContentTooLarge,
    /// 414
    UriTooLong,
    /// 416
    RangeNotSatisfiable,
    /// 417
    ExpectationFailed,
    /// 431
    HeaderFieldsTooLarge,
    /// 500
    InternalServerError,
    /// 501
    NotImplemented,
    /// 503
    ServiceUnavailable,
    /// 505
    VersionNotSupported,
}

impl Status {
    /// Code and reason phrase.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "200 OK",
            Self::NoContent => "204 No Content",
            Self::PartialContent => "206 Partial Content",
            Self::MovedPermanently => "301 Moved Permanently",
            Self::NotModified => "304 Not Modified",
            Self::BadRequest => "400 Bad Request",
            Self::Forbidden => "403 Forbidden",
            Self::NotFound => "404 Not Found",
            Self::MethodNotAllowed => "405 Method Not Allowed",
            Self::RequestTimeout => "408 Request Timeout",
            Self::PreconditionFailed => "412 Precondition Failed",
            Self::ContentTooLarge => "413 Content Too Large",
            Self::UriTooLong => "414 URI Too Long",
            Self::RangeNotSatisfiable => "416 Range Not Satisfiable",
            Self::ExpectationFailed => "417 Expectation Failed",
            Self::HeaderFieldsTooLarge => "431 Request Header Fields Too Large",
            Self::InternalServerError => "500 Internal Server Error",
            Self::NotImplemented => "501 Not Implemented",
            Self::ServiceUnavailable => "503 Service Unavailable",
            Self::VersionNotSupported => "505 HTTP Version Not Supported",
        }
    }
}

/// What every reply to a request depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exchange {
    /// The head only (RFC 9110 section 9.3.2).
    pub head_only: bool,
    /// Decides whether persistence must be said.
    pub version: Version,
    /// Whether the connection goes on after the reply.
    pub keep_alive: bool,
}

impl Exchange {
    /// For a request that was read.
    pub fn of(request: &Request<'_, '_>) -> Self {
        Self {
            head_only: request.method == Method::Head,
            version: request.version,
            keep_alive: request.keep_alive,
        }
    }

    /// For bytes that could not be read: the last reply of the connection.
    pub fn last(head_only: bool) -> Self {
        Self {
            head_only,
            version: Version::Http11,
            keep_alive: false,
        }
    }
}

/// What a well-framed request asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked<'b> {
    /// A file.
    File(Target<'b>),
    /// Nothing that needs the disk.
    Answer(Status),
}

/// Sorts requests into those for a file and those that are answered at once.
pub fn sort<'b>(request: &Request<'_, 'b>) -> Asked<'b> {
    match request.method {
        Method::Unknown => Asked::Answer(Status::NotImplemented),
        Method::NotAllowed => Asked::Answer(Status::MethodNotAllowed),
        _ if request.expects => Asked::Answer(Status::ExpectationFailed),
        // RFC 9110 section 9.3.7; the same for `*` and any file.
        Method::Options => Asked::Answer(Status::NoContent),
        Method::Get | Method::Head => match target::split(request.target) {
            Ok(target) => Asked::File(target),
            Err(status) => Asked::Answer(status),
        },
    }
}
