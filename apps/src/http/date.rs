//! HTTP dates (RFC 9110 section 5.6.7), and the Date line made once a second.

use std::fmt::{self, Write as _};
use std::time::{Duration, SystemTime};

use httpdate::HttpDate;
use interruptlet::Instant;

/// The last second of the year 9999: what the format can say, in seconds since 1970.
pub const LAST_SECOND: u64 = 253_402_300_799;

/// After so many microseconds of the loop's clock the wall clock is read again, to follow its
/// adjustments.
const WALL_READ_EVERY_MICROS: i64 = 10_000_000;

/// `Date: `, 29 characters, CRLF.
const LINE_BYTES: usize = 6 + 29 + 2;

/// A time in the format of HTTP, for `seconds` since 1970 up to [`LAST_SECOND`] (capped there).
pub fn http_date(seconds: u64) -> HttpDate {
    HttpDate::from(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.min(LAST_SECOND)))
}

/// The wall clock in seconds since 1970.
pub fn wall_seconds() -> u64 {
    micros_since_1970(SystemTime::now()) / 1_000_000
}

/// The Date line of a reply that is made now, on a thread that may read the clock.
pub fn date_line() -> String {
    format!("Date: {}\r\n", http_date(wall_seconds()))
}

fn micros_since_1970(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_micros() as u64)
}

/// The Date line for a handler, which is told the time of the loop with every request.
#[derive(Debug, Clone)]
pub struct DateLine {
    read_wall: fn() -> SystemTime,
    /// The loop's clock when the wall clock was last read.
    read_at_micros: Option<i64>,
    /// What to add to the loop's clock, both in microseconds.
    wall_offset_micros: i64,
    /// The second that `line` says.
    second: u64,
    line: [u8; LINE_BYTES],
}

impl Default for DateLine {
    fn default() -> Self {
        Self::new(SystemTime::now)
    }
}

impl DateLine {
    /// Made from a wall clock, which is read at the first request and then every ten seconds.
    pub fn new(read_wall: fn() -> SystemTime) -> Self {
        Self {
            read_wall,
            read_at_micros: None,
            wall_offset_micros: 0,
            second: u64::MAX,
            line: *b"Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n",
        }
    }

    /// The line for a reply at `now`.
    pub fn at(&mut self, now: Instant) -> &[u8] {
        let now = now.total_micros();
        let is_recent = |read_at| now.saturating_sub(read_at) < WALL_READ_EVERY_MICROS;
        if !self.read_at_micros.is_some_and(is_recent) {
            self.read_at_micros = Some(now);
            let wall = micros_since_1970((self.read_wall)()) as i64;
            self.wall_offset_micros = wall.saturating_sub(now);
        }
        let wall = now.saturating_add(self.wall_offset_micros).max(0) as u64;
        let second = wall / 1_000_000;
        if second != self.second {
            self.second = second;
            let mut text = FixedText {
                buffer: &mut self.line[6..LINE_BYTES - 2],
                len: 0,
            };
            // The format has a fixed length, so it fits.
            let _ = write!(text, "{}", http_date(second));
        }
        &self.line
    }
}

/// Text in a given buffer: formatting without an allocation.
struct FixedText<'a> {
    buffer: &'a mut [u8],
    len: usize,
}

impl fmt::Write for FixedText<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len + text.len();
        let room = self.buffer.get_mut(self.len..end).ok_or(fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_micros(784_111_777_900_000)
    }

    #[test]
    fn the_line_follows_the_loop() {
        let mut line = DateLine::new(example);
        assert_eq!(
            line.at(Instant::from_micros(5)),
            b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
        );
        let next = Instant::from_micros(5 + 100_000);
        assert_eq!(line.at(next), b"Date: Sun, 06 Nov 1994 08:49:38 GMT\r\n");
        let minute = Instant::from_micros(5 + 9_999_999);
        assert_eq!(line.at(minute), b"Date: Sun, 06 Nov 1994 08:49:47 GMT\r\n");
    }

    #[test]
    fn the_wall_clock_is_read_again() {
        let mut line = DateLine::new(example);
        line.at(Instant::from_micros(0));
        // The example stands still.
        let later = Instant::from_micros(WALL_READ_EVERY_MICROS);
        assert_eq!(line.at(later), b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n");
    }

    #[test]
    fn no_time_is_too_far() {
        assert_eq!(
            http_date(u64::MAX).to_string(),
            "Fri, 31 Dec 9999 23:59:59 GMT"
        );
    }
}
