//! Owns the counters that a server prints: parsing them, and checking that frames are conserved.

use std::collections::BTreeMap;

/// One block of counters, as a server prints it when it ends (and with `--stats-interval`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    counters: BTreeMap<String, u64>,
    xdp: BTreeMap<String, u64>,
    frames: Vec<Frames>,
    conserved: bool,
}

/// Where the frames of one worker's arena were.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Frames {
    total: u64,
    by_owner: BTreeMap<String, u64>,
}

impl Report {
    /// Parses the last complete block in a server's output; `None` if there is none.
    ///
    /// # Panics
    ///
    /// If a line of counters is not of the promised form.
    pub fn last_in<'a>(lines: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let mut last = None;
        let mut current = Self::default();
        for line in lines {
            let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
            match kind {
                "counter" => insert(&mut current.counters, line, rest.split_once(' ')),
                "xdp" => insert(&mut current.xdp, line, rest.split_once(' ')),
                "frames" => current.frames.push(Frames::parse(line, rest)),
                "conserved" => {
                    let mut block = std::mem::take(&mut current);
                    block.conserved = rest == "yes";
                    last = Some(block);
                }
                _ => {}
            }
        }
        last
    }

    /// A counter of the workers, summed over them. Counters that are zero are not printed.
    pub fn counter(&self, name: &str) -> u64 {
        self.counters.get(name).copied().unwrap_or(0)
    }

    /// A counter of the XDP program.
    pub fn xdp(&self, name: &str) -> u64 {
        self.xdp.get(name).copied().unwrap_or(0)
    }

    /// Frames that the XDP program did not give to the stack: the sum of its counters that are named
    /// after passing or dropping.
    pub fn xdp_refused(&self) -> u64 {
        let refused = |name: &str| name.contains("pass") || name.contains("drop");
        self.xdp
            .iter()
            .filter(|(name, _)| refused(name))
            .map(|(_, value)| value)
            .sum()
    }

    /// All counters whose name starts with `prefix`, summed.
    pub fn sum_of(&self, prefix: &str) -> u64 {
        let matching = self
            .counters
            .iter()
            .filter(|(name, _)| name.starts_with(prefix));
        matching.map(|(_, value)| value).sum()
    }

    /// How many workers reported their frames.
    pub fn workers(&self) -> usize {
        self.frames.len()
    }

    /// Panics unless the server says that frames are conserved and its own figures agree.
    pub fn assert_conserved(&self) {
        assert!(
            self.conserved,
            "the server says frames are not conserved: {self:#?}"
        );
        assert!(
            !self.frames.is_empty(),
            "no worker reported its frames: {self:#?}"
        );
        for frames in &self.frames {
            let sum: u64 = frames.by_owner.values().sum();
            assert!(frames.total > 0, "an arena without frames: {frames:?}");
            assert_eq!(
                sum, frames.total,
                "the owners' frames do not add up: {frames:?}"
            );
            // The slow path is over by then: nothing may still be on loan.
            let on_loan = frames.by_owner.get("loan").copied().unwrap_or(0);
            assert_eq!(on_loan, 0, "frames still on loan at the end: {frames:?}");
        }
    }
}

impl Frames {
    fn parse(line: &str, rest: &str) -> Self {
        let mut frames = Self::default();
        for word in rest.split_whitespace() {
            match word.split_once('=') {
                Some(("queue", _)) => {}
                Some(("total", value)) => frames.total = number(line, value),
                pair => insert(&mut frames.by_owner, line, pair),
            }
        }
        frames
    }
}

fn insert(map: &mut BTreeMap<String, u64>, line: &str, pair: Option<(&str, &str)>) {
    let (name, value) = pair.unwrap_or_else(|| panic!("not a name and a value: {line:?}"));
    map.insert(name.to_owned(), number(line, value));
}

fn number(line: &str, value: &str) -> u64 {
    value
        .parse()
        .unwrap_or_else(|_| panic!("not a number in {line:?}"))
}

#[cfg(test)]
mod tests {
    use super::Report;

    const OUTPUT: &str = "ready: srv0 queue 0\n\
        counter rx_frames 1\n\
        frames queue=0 total=8 free=8\n\
        conserved no\n\
        counter rx_frames 20\n\
        counter drop_truncated 2\n\
        counter drop_ip_land 1\n\
        xdp redirect 20\n\
        frames queue=0 total=8 free=4 fill=2 rx=1 tx=1 flow=0 loan=0\n\
        frames queue=1 total=8 free=8\n\
        conserved yes\n\
        counter rx_frames 21";

    #[test]
    fn the_last_complete_block_counts() {
        let report = Report::last_in(OUTPUT.lines()).expect("a block");
        assert_eq!(report.counter("rx_frames"), 20);
        assert_eq!(report.counter("tx_frames"), 0);
        assert_eq!(report.sum_of("drop_"), 3);
        assert_eq!(report.xdp("redirect"), 20);
        assert_eq!(report.workers(), 2);
        report.assert_conserved();
    }

    #[test]
    fn no_block_is_no_report() {
        assert_eq!(Report::last_in(["ready: x", "counter rx_frames 1"]), None);
    }

    #[test]
    #[should_panic(expected = "do not add up")]
    fn a_missing_frame_is_noticed_even_if_the_server_does_not() {
        let lines = ["frames queue=0 total=8 free=7", "conserved yes"];
        Report::last_in(lines).expect("a block").assert_conserved();
    }
}
