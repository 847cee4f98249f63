//! Range requests (RFC 9110 section 14): from a Range field to byte ranges of a representation.

use super::request::{list, trim};

/// More ranges in one request are ignored, as RFC 9110 section 14.2 allows: they cost more than the whole.
pub const MAX_RANGES: usize = 16;

/// Bytes `start..end` of a representation; never empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ByteRange {
    /// The first byte.
    pub start: u64,
    /// Behind the last byte.
    pub end: u64,
}

impl ByteRange {
    /// Its length in bytes.
    pub fn len(self) -> u64 {
        self.end - self.start
    }

    /// Never true for a range that was selected.
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }
}

/// What a Range field selects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// Everything: the field is invalid, of another unit, or asks for too much.
    Whole,
    /// One range.
    Part(ByteRange),
    /// Several ranges, in the order asked for. The only selection that allocates.
    Parts(Vec<ByteRange>),
    /// Nothing of it is there.
    Unsatisfiable,
}

/// Selects from a representation of `len` bytes.
pub fn select(field: &[u8], len: u64) -> Selection {
    let Some(specs) = byte_specs(field) else {
        return Selection::Whole;
    };
    let mut first = None;
    let mut more = Vec::new();
    let mut total = 0_u64;
    let mut seen = 0;
    for spec in list(specs) {
        let Some(spec) = Spec::parse(spec) else {
            return Selection::Whole;
        };
        seen += 1;
        if seen > MAX_RANGES {
            return Selection::Whole;
        }
        if len == 0 && matches!(spec, Spec::Last(1..)) {
            // Satisfiable by definition (section 14.1.2), but no Content-Range can say so.
            return Selection::Whole;
        }
        if let Some(range) = spec.resolve(len) {
            total = total.saturating_add(range.len());
            match first {
                None => first = Some(range),
                Some(_) => more.push(range),
            }
        }
    }
    match first {
        None if seen == 0 => Selection::Whole,
        None => Selection::Unsatisfiable,
        Some(range) if more.is_empty() => Selection::Part(range),
        // They overlap: somebody wants more than there is.
        Some(_) if total > len => Selection::Whole,
        Some(range) => {
            more.insert(0, range);
            Selection::Parts(more)
        }
    }
}

/// What follows `bytes=`; the unit is case-insensitive.
fn byte_specs(field: &[u8]) -> Option<&[u8]> {
    let (unit, specs) = field.split_at_checked(b"bytes=".len())?;
    unit.eq_ignore_ascii_case(b"bytes=").then_some(specs)
}

/// RFC 9110 section 14.1.2.
#[derive(Debug, Clone, Copy)]
enum Spec {
    /// `first-` and `first-last`, the last included.
    From { first: u64, last: u64 },
    /// `-length`
    Last(u64),
}

impl Spec {
    fn parse(spec: &[u8]) -> Option<Self> {
        let dash = memchr::memchr(b'-', spec)?;
        match (&spec[..dash], &spec[dash + 1..]) {
            (b"", length) => Some(Self::Last(number(length)?)),
            (first, b"") => Some(Self::From {
                first: number(first)?,
                last: u64::MAX,
            }),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Self::From { first, last })
            }
        }
    }

    /// `None` if it selects nothing.
    fn resolve(self, len: u64) -> Option<ByteRange> {
        let range = match self {
            Self::From { first, last } => ByteRange {
                start: first.min(len),
                end: last.saturating_add(1).min(len),
            },
            Self::Last(length) => ByteRange {
                start: len - length.min(len),
                end: len,
            },
        };
        (!range.is_empty()).then_some(range)
    }
}

/// 1*DIGIT; what does not fit is beyond any file anyway.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits != trim(digits) {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, byte| {
        byte.is_ascii_digit().then(|| {
            number
                .saturating_mul(10)
                .saturating_add(u64::from(byte - b'0'))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn part(start: u64, end: u64) -> Selection {
        Selection::Part(ByteRange { start, end })
    }

    #[test]
    fn single_ranges() {
        for (field, selection) in [
            ("bytes=0-0", part(0, 1)),
            ("bytes=0-", part(0, 100)),
            ("bytes=10-19", part(10, 20)),
            ("BYTES=10-19", part(10, 20)),
            ("bytes=90-200", part(90, 100)),
            ("bytes=-10", part(90, 100)),
            ("bytes=-1000", part(0, 100)),
            ("bytes=99-", part(99, 100)),
            ("bytes=,, 5-6 ,", part(5, 7)),
            ("bytes=0-99999999999999999999999999", part(0, 100)),
            ("bytes=200-300, 5-6", part(5, 7)),
            ("bytes=100-", Selection::Unsatisfiable),
            (
                "bytes=99999999999999999999999999-",
                Selection::Unsatisfiable,
            ),
            ("bytes=-0", Selection::Unsatisfiable),
        ] {
            assert_eq!(select(field.as_bytes(), 100), selection, "{field}");
        }
    }

    #[test]
    fn what_is_no_range_is_ignored() {
        for field in [
            "",
            "bytes",
            "bytes=",
            "bytes=,",
            "bytes=-",
            "bytes=a-b",
            "bytes=1",
            "bytes=5-4",
            "bytes=1-2-3",
            "bytes=+1-2",
            "bytes=1- 2",
            "bytes 1-2",
            "lines=1-2",
            "bytes=1-2,x",
            "bytes=0x1-2",
            "bytes =1-2",
        ] {
            assert_eq!(select(field.as_bytes(), 100), Selection::Whole, "{field}");
        }
    }

    #[test]
    fn several_ranges() {
        let Selection::Parts(ranges) = select(b"bytes=50-59,0-9,-1", 100) else {
            panic!("no parts");
        };
        let ranges: Vec<_> = ranges.iter().map(|r| (r.start, r.end)).collect();
        assert_eq!(ranges, [(50, 60), (0, 10), (99, 100)]);
    }

    #[test]
    fn greedy_ranges_get_the_whole() {
        assert_eq!(select(b"bytes=0-,0-,0-", 100), Selection::Whole);
        let many = format!("bytes={}", "0-0,".repeat(MAX_RANGES + 1));
        assert_eq!(select(many.as_bytes(), 100), Selection::Whole);
    }

    #[test]
    fn an_empty_file_has_no_ranges() {
        assert_eq!(select(b"bytes=0-", 0), Selection::Unsatisfiable);
        assert_eq!(select(b"bytes=-0", 0), Selection::Unsatisfiable);
        assert_eq!(select(b"bytes=-5", 0), Selection::Whole);
    }

    proptest! {
        #[test]
        fn selected_ranges_are_within_the_file(
            field in "bytes=([0-9]{0,3}-[0-9]{0,3},?){0,20}", len in 0_u64..500,
        ) {
            let whole = |range: &ByteRange| range.start < range.end && range.end <= len;
            match select(field.as_bytes(), len) {
                Selection::Part(range) => prop_assert!(whole(&range)),
                Selection::Parts(ranges) => {
                    prop_assert!(ranges.len() > 1);
                    prop_assert!(ranges.iter().all(whole));
                    prop_assert!(ranges.iter().map(|r| r.len()).sum::<u64>() <= len);
                }
                Selection::Whole | Selection::Unsatisfiable => {}
            }
        }

        #[test]
        fn one_range_is_what_a_slice_would_be(first in 0_u64..200, last in 0_u64..200, len in 0_u64..200) {
            let all: Vec<u64> = (0..len).collect();
            let wanted: Vec<u64> = all.iter().copied().filter(|i| (first..=last).contains(i)).collect();
            match select(format!("bytes={first}-{last}").as_bytes(), len) {
                Selection::Part(r) => prop_assert_eq!(&all[r.start as usize..r.end as usize], &wanted[..]),
                Selection::Unsatisfiable => prop_assert!(wanted.is_empty() && first <= last),
                Selection::Whole => prop_assert!(first > last),
                Selection::Parts(_) => prop_assert!(false),
            }
        }

        #[test]
        fn any_field_is_survived(field in proptest::collection::vec(any::<u8>(), 0..64), len: u64) {
            let _ = select(&field, len);
        }
    }
}
