//! What is counted.
//!
//! A request counts as answered if its answer was complete and right inside the measured interval. Its
//! latency counts if it was *due* inside the interval, also when the answer comes later: so what a server
//! owes at the end does not hide. A request that is given up counts with the time that was waited for it.
//! Errors count from the first connection on.

use hdrhistogram::Histogram;

/// Latencies beyond count as this: an hour, in nanoseconds.
const LATENCY_MAX: u64 = 3_600_000_000_000;
/// Digits of a latency that are kept.
const DIGITS: u8 = 3;

/// What can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// A connection was refused.
    Refused,
    /// A connection was reset.
    Reset,
    /// A connection was closed by the server, which had not said that it would, or before its answers
    /// were complete.
    ClosedEarly,
    /// A handshake was not completed in time.
    ConnectTimeout,
    /// A request was not answered in time.
    Timeout,
    /// What was echoed differs from what was sent.
    Corrupt,
    /// Something came that nobody asked for, or again.
    Unexpected,
    /// An HTTP status other than 200.
    BadStatus,
    /// Not an HTTP response, or one whose length is not said.
    BadResponse,
    /// A body of another length than the others or the file.
    BadLength,
    /// A body with other bytes than the others or the file.
    BadBody,
    /// A connection was not closed after an answer that said so.
    NotClosed,
    /// Further requests on a connection that failed, whose failure is counted once by its kind.
    Lost,
}

impl ErrorKind {
    /// All kinds, in the order of the report.
    pub const ALL: [Self; 13] = [
        Self::Refused,
        Self::Reset,
        Self::ClosedEarly,
        Self::ConnectTimeout,
        Self::Timeout,
        Self::Corrupt,
        Self::Unexpected,
        Self::BadStatus,
        Self::BadResponse,
        Self::BadLength,
        Self::BadBody,
        Self::NotClosed,
        Self::Lost,
    ];

    /// Its name in the result.
    pub fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::ClosedEarly => "closed_early",
            Self::ConnectTimeout => "connect_timeout",
            Self::Timeout => "timeout",
            Self::Corrupt => "corrupt",
            Self::Unexpected => "unexpected",
            Self::BadStatus => "bad_status",
            Self::BadResponse => "bad_response",
            Self::BadLength => "bad_length",
            Self::BadBody => "bad_body",
            Self::NotClosed => "not_closed",
            Self::Lost => "lost",
        }
    }
}

/// Errors by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Errors([u64; ErrorKind::ALL.len()]);

impl Errors {
    /// Counts `count` of a kind.
    pub fn add(&mut self, kind: ErrorKind, count: u64) {
        self.0[kind as usize] += count;
    }

    /// How many of a kind there were.
    pub fn of(&self, kind: ErrorKind) -> u64 {
        self.0[kind as usize]
    }

    /// How many there were.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The kinds that there were, with their counts, as in `2 reset, 1 timeout`.
    pub fn listed(&self) -> String {
        let kinds = ErrorKind::ALL
            .iter()
            .filter(|kind| self.of(**kind) > 0)
            .map(|kind| format!("{} {}", self.of(*kind), kind.name()));
        kinds.collect::<Vec<String>>().join(", ")
    }
}

/// The counts of a run. Times are nanoseconds of the loop's clock.
#[derive(Debug, Clone)]
pub struct Record {
    /// Of the whole run.
    pub errors: Errors,
    /// Connections that were begun.
    pub opened: u64,
    /// Handshakes that were completed.
    pub established: u64,
    /// Requests answered in the whole run.
    pub answered: u64,
    /// Requests answered in the interval.
    pub requests: u64,
    /// Bytes of streams, or payload of datagrams, that arrived in the interval.
    pub bytes_received: u64,
    /// Bytes of uploads that the stack took to be sent in the interval.
    pub bytes_sent: u64,
    /// Requests that were still being answered at the end, as large bodies may be.
    pub unfinished: u64,
    /// In nanoseconds.
    pub latencies: Histogram<u64>,
    begin: u64,
    end: u64,
}

impl Record {
    /// Nothing counted, the interval not begun. `None` if the library does not take our bounds.
    pub fn new() -> Option<Self> {
        Some(Self {
            errors: Errors::default(),
            opened: 0,
            established: 0,
            answered: 0,
            requests: 0,
            bytes_received: 0,
            bytes_sent: 0,
            unfinished: 0,
            latencies: Histogram::new_with_bounds(1, LATENCY_MAX, DIGITS).ok()?,
            begin: u64::MAX,
            end: u64::MAX,
        })
    }

    /// The interval is from `begin` on, until before `end`.
    pub fn measure(&mut self, begin: u64, end: u64) {
        (self.begin, self.end) = (begin, end);
    }

    /// The interval is over at `end`, maybe earlier than was planned.
    pub fn end(&mut self, end: u64) {
        self.end = end;
    }

    /// Seconds of the interval.
    pub fn seconds(&self) -> f64 {
        self.end.saturating_sub(self.begin) as f64 / 1e9
    }

    /// A request that was due at `due` is answered at `now`.
    #[inline]
    pub fn answer(&mut self, due: u64, now: u64) {
        self.answered += 1;
        self.requests += u64::from(self.is_measured(now));
        self.waited(due, now);
    }

    /// `now - due` was waited for an answer, or for none.
    #[inline]
    pub fn waited(&mut self, due: u64, now: u64) {
        if self.is_measured(due) {
            self.latencies.saturating_record(now.saturating_sub(due));
        }
    }

    /// Bytes arrived at `now`.
    #[inline]
    pub fn bytes(&mut self, count: usize, now: u64) {
        if self.is_measured(now) {
            self.bytes_received += count as u64;
        }
    }

    /// Bytes of an upload went to the stack at `now`.
    #[inline]
    pub fn uploaded(&mut self, count: usize, now: u64) {
        if self.is_measured(now) {
            self.bytes_sent += count as u64;
        }
    }

    fn is_measured(&self, time: u64) -> bool {
        self.begin <= time && time < self.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_count_when_they_come_and_latencies_when_they_were_due() {
        let mut record = Record::new().unwrap();
        record.answer(0, 10);
        record.bytes(1, 10);
        record.measure(100, 200);
        // Due before, inside, and inside but answered after.
        record.answer(90, 110);
        record.answer(120, 150);
        record.answer(150, 7_000);
        record.answer(200, 210);
        record.bytes(5, 199);
        record.bytes(7, 200);
        record.uploaded(2, 99);
        record.uploaded(3, 100);
        assert_eq!((record.answered, record.requests), (5, 2));
        assert_eq!((record.latencies.len(), record.latencies.min()), (2, 30));
        assert!((6_800..7_000).contains(&record.latencies.max()));
        assert_eq!((record.bytes_received, record.bytes_sent), (5, 3));
        // Given up: no answer, but a time.
        record.waited(160, LATENCY_MAX * 2);
        assert_eq!((record.requests, record.latencies.len()), (2, 3));
    }

    #[test]
    fn errors_have_distinct_names_and_places() {
        let mut errors = Errors::default();
        for (index, kind) in ErrorKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index);
            errors.add(kind, index as u64);
            assert_eq!(errors.of(kind), index as u64);
        }
        assert_eq!(errors.total(), (0..13).sum::<u64>());
        let mut errors = Errors::default();
        assert_eq!(errors.listed(), "");
        errors.add(ErrorKind::Timeout, 1);
        errors.add(ErrorKind::Reset, 2);
        assert_eq!(errors.listed(), "2 reset, 1 timeout");
    }
}
