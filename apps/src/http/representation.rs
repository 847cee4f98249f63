//! What is known of a file besides its content, with the header fields that say it ready to be sent.

use std::fmt::Write as _;

use super::date;

/// One state of a file, as a client sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Representation {
    /// Length in bytes.
    pub len: u64,
    /// Strong entity tag, in its quotes.
    pub etag: String,
    /// Last modification in seconds since 1970, unless that is in the future or before 1970.
    pub modified: Option<u64>,
    /// Content-Type line.
    content_type: String,
    /// Lines that go with every representation of the file: ETag, Last-Modified.
    validators: String,
    /// All lines of a 200 reply about the file, and the empty line.
    full: String,
}

impl Representation {
    /// `name` decides the media type. `modified` must not be later than the clock says now (RFC 9110
    /// section 8.8.2.1).
    pub fn new(name: &str, len: u64, etag: String, modified: Option<u64>) -> Self {
        let modified = modified.filter(|&seconds| seconds <= date::LAST_SECOND);
        let content_type = content_type_line(name);
        let mut validators = format!("ETag: {etag}\r\n");
        if let Some(modified) = modified {
            // Writing to a string cannot fail.
            let _ = write!(
                validators,
                "Last-Modified: {}\r\n",
                date::http_date(modified)
            );
        }
        let full = format!(
            "{content_type}Content-Length: {len}\r\nAccept-Ranges: bytes\r\n{validators}\r\n"
        );
        Self {
            len,
            etag,
            modified,
            content_type,
            validators,
            full,
        }
    }

    /// The Content-Type line.
    pub fn content_type(&self) -> &[u8] {
        self.content_type.as_bytes()
    }

    /// The ETag and Last-Modified lines.
    pub fn validators(&self) -> &[u8] {
        self.validators.as_bytes()
    }

    /// The end of the head of a 200 reply.
    pub fn full(&self) -> &[u8] {
        self.full.as_bytes()
    }

    /// Bytes of memory that the lines take.
    pub fn text_bytes(&self) -> usize {
        self.etag.len() + self.content_type.len() + self.validators.len() + self.full.len()
    }
}

fn content_type_line(name: &str) -> String {
    let guess = mime_guess::from_path(name).first_raw();
    let media_type = guess.unwrap_or("application/octet-stream");
    // Files are taken for UTF-8; without a charset clients would have to guess.
    let charset = if media_type.starts_with("text/") {
        "; charset=utf-8"
    } else {
        ""
    };
    format!("Content-Type: {media_type}{charset}\r\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_a_text() {
        let file = Representation::new("a/b.html", 12, "\"t\"".into(), Some(784_111_777));
        assert_eq!(
            std::str::from_utf8(file.full()).unwrap(),
            "Content-Type: text/html; charset=utf-8\r\nContent-Length: 12\r\nAccept-Ranges: bytes\r\n\
             ETag: \"t\"\r\nLast-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n"
        );
    }

    #[test]
    fn other_types() {
        let line = |name| content_type_line(name);
        assert_eq!(line("a.PNG"), "Content-Type: image/png\r\n");
        assert_eq!(line("a"), "Content-Type: application/octet-stream\r\n");
        assert_eq!(
            line("a.unheard-of"),
            "Content-Type: application/octet-stream\r\n"
        );
        assert_eq!(line("a.txt"), "Content-Type: text/plain; charset=utf-8\r\n");
    }

    #[test]
    fn a_date_that_cannot_be_written_is_left_out() {
        let file = Representation::new("a", 0, "\"t\"".into(), Some(u64::MAX));
        assert_eq!(file.modified, None);
        assert_eq!(file.validators(), b"ETag: \"t\"\r\n");
    }
}
