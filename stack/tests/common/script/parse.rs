//! Reads scripts. The statements are listed where [`super`] begins.

use std::collections::VecDeque;
use std::str::FromStr;

use interruptlet::Duration;

use super::{Act, Data, Described, How, Isn, Limit, Mode, Script, Settings, Step, Told, Wrong};
use crate::common::packets::{ACK, FIN, PSH, RST, SYN};
use crate::common::{Version, pattern};

/// Flag bits that only scripts know (RFC 9293 section 3.1).
const URG: u8 = 0x20;
const ECE: u8 = 0x40;
const CWR: u8 = 0x80;

/// Names of flags, in the order in which they are written.
pub(super) const FLAGS: [(&str, u8); 8] = [
    ("SYN", SYN),
    ("FIN", FIN),
    ("RST", RST),
    ("PSH", PSH),
    ("URG", URG),
    ("ECE", ECE),
    ("CWR", CWR),
    ("ACK", ACK),
];

/// Reads a whole script.
///
/// # Errors
///
/// The first line that is no statement, or is a setting behind a step.
pub fn parse(text: &str) -> Result<Script, Wrong> {
    let mut settings = Settings::default();
    let mut steps = Vec::new();
    for (number, text) in text.lines().enumerate() {
        let line = number + 1;
        let wrong = |what| Wrong { line, what };
        let mut words = Words::split(text).map_err(wrong)?;
        if words.0.is_empty() {
            continue;
        }
        if setting(&mut settings, &mut words).map_err(wrong)? {
            if !steps.is_empty() {
                return Err(wrong("a setting behind a step".into()));
            }
        } else {
            let (only, act) = step(&mut words).map_err(wrong)?;
            steps.push(Step { line, only, act });
        }
        words.end().map_err(wrong)?;
    }
    if steps.is_empty() {
        let what = "a script without steps".into();
        return Err(Wrong { line: 1, what });
    }
    Ok(Script { settings, steps })
}

/// Takes the statement if it is a setting; says whether it was one.
fn setting(settings: &mut Settings, words: &mut Words) -> Result<bool, String> {
    let Some(Word::Plain(name)) = words.0.front().cloned() else {
        return Ok(false);
    };
    let mut rest = Words(words.0.iter().skip(1).cloned().collect());
    match name.as_str() {
        "ip" => {
            settings.version = match rest.plain()?.as_str() {
                "4" => Version::V4,
                "6" => Version::V6,
                other => return Err(format!("no IP version: {other}")),
            };
        }
        "side" => settings.client = rest.choice("server", "client")?,
        "service" => settings.echo = rest.choice("lines", "echo")?,
        "port" => settings.port = rest.number()?,
        "mtu" => settings.mtu = rest.number()?,
        "seed" => settings.seed = rest.number()?,
        "idle-timeout" => settings.idle_timeout = Some(duration(&rest.plain()?)?),
        "request-timeout" => settings.request_timeout = duration(&rest.plain()?)?,
        "keep-alive" => settings.keep_alive = Some(duration(&rest.plain()?)?),
        "limit" => {
            let limit = match rest.plain()?.as_str() {
                "flows" => Limit::Flows,
                "time-wait" => Limit::TimeWait,
                "engines" => Limit::Engines,
                "held-frames" => Limit::HeldFrames,
                "held-per-flow" => Limit::HeldPerFlow,
                other => return Err(format!("no limit: {other}")),
            };
            settings.limits.push((limit, rest.number()?));
        }
        "takes" => settings.takes = Some(rest.number()?),
        "stays-open" => settings.stays_open = true,
        "only" => {
            let engine = rest.choice("direct", "engine")?;
            settings.only = Some(if engine { Mode::Engine } else { Mode::Direct });
        }
        _ => return Ok(false),
    }
    *words = rest;
    Ok(true)
}

fn step(words: &mut Words) -> Result<(Option<Mode>, Act), String> {
    let mut first = words.plain()?;
    let only = match first.as_str() {
        "direct:" => Some(Mode::Direct),
        "engine:" => Some(Mode::Engine),
        _ => None,
    };
    if only.is_some() {
        first = words.plain()?;
    }
    let act = match first.as_str() {
        ">" | ">&" => Act::Inject {
            segment: injected(words)?,
            batched: first == ">&",
        },
        "<" => expect(words, How::Next)?,
        "?<" => expect(words, How::Optional)?,
        "<+" => expect(words, How::Several)?,
        "within" => {
            let (from, to) = range(&words.plain()?, duration)?;
            words.must_be("<")?;
            expect(words, How::Within(from, to))?
        }
        "times" => {
            let (from, to) = range(&words.plain()?, number)?;
            words.must_be("<")?;
            expect(words, How::Times(from, to))?
        }
        "too-big" => Act::TooBig {
            mtu: words.named("mtu")?,
            seq: words.named::<i64>("seq")? as u32,
            len: words.named("len")?,
        },
        "nothing" => Act::Nothing,
        "wait" => Act::Wait(duration(&words.plain()?)?),
        "at" => Act::At(duration(&words.plain()?)?),
        "jobs" => Act::Jobs,
        "drain" => Act::Drain,
        "engine-only" => Act::EngineOnly(words.choice("off", "on")?),
        "peer-isn" => {
            let text = words.plain()?;
            Act::PeerIsn(match text.strip_prefix('+') {
                Some(beyond) => Isn::Beyond(number(beyond)?),
                None => Isn::Is(number(&text)?),
            })
        }
        "peer-port" => Act::PeerPort(words.number()?),
        "flows" => Act::Flows(words.number()?),
        "engines" => Act::Engines(words.number()?),
        "time-wait" => Act::TimeWait(words.number()?),
        "counter" => Act::Counter(words.plain()?, words.number()?),
        "open" => Act::Open,
        "send" => Act::Send(words.data()?),
        "close" => Act::Close,
        "abort" => Act::Abort,
        "event" => Act::Event(match words.plain()?.as_str() {
            "connected" => Told::Connected,
            "received" => Told::Received(words.data()?),
            "ended" => Told::Ended,
            "closed" => Told::Closed(words.plain()?),
            other => return Err(format!("no event: {other}")),
        }),
        "no" => {
            words.must_be("event")?;
            Act::NoEvent
        }
        other => return Err(format!("no statement: {other}")),
    };
    Ok((only, act))
}

fn injected(words: &mut Words) -> Result<Described, String> {
    match segment(words)? {
        Described {
            data: Data::Any(..),
            ..
        }
        | Described { ack_span: 1.., .. } => {
            Err("which one? `len=` and ranges are for what we sent".into())
        }
        segment => Ok(segment),
    }
}

fn expect(words: &mut Words, how: How) -> Result<Act, String> {
    let segment = segment(words)?;
    if how == How::Several && segment.data.size() == 0 {
        return Err("`<+` is about data".into());
    }
    Ok(Act::Expect { segment, how })
}

/// Flags, numbers, options and data, up to the end of the line.
fn segment(words: &mut Words) -> Result<Described, String> {
    let mut segment = Described {
        flags: flags(&words.plain()?)?,
        ..Described::default()
    };
    let (mut seq, mut ack) = (None, None);
    let mut data: Option<Vec<u8>> = None;
    let mut len = None;
    while let Some(word) = words.0.pop_front() {
        let text = match word {
            Word::Quoted(bytes) => {
                data.get_or_insert_default().extend(bytes);
                continue;
            }
            Word::Plain(text) => text,
        };
        if let Some(bytes) = piece(&text)? {
            data.get_or_insert_default().extend(bytes);
            continue;
        }
        let (name, value) = text.split_once('=').unwrap_or((&text, ""));
        match name {
            "sack" if value.is_empty() => segment.options.sack_permitted = true,
            "..." if value.is_empty() => segment.loose = true,
            "seq" => seq = Some(relative(value)?),
            "ack" => {
                let (from, to) = value.split_once("..").unwrap_or((value, value));
                let (from, to) = (relative(from)?, relative(to)?);
                ack = Some(from);
                segment.ack_span = to.wrapping_sub(from);
            }
            "win" => segment.window = Some(number(value)?),
            "urgent" => segment.urgent = number(value)?,
            "len" if value.contains("..") => len = Some(range(value, number)?),
            "len" => len = Some((number(value)?, number(value)?)),
            "mss" => segment.options.mss = Some(number(value)?),
            "wscale" => segment.options.window_scale = Some(number(value)?),
            "option" => segment.options.raw.extend(hexadecimal(value)?),
            "blocks" => {
                for block in value.split(',') {
                    let (from, to) = block
                        .split_once('-')
                        .ok_or_else(|| format!("no block: {block}"))?;
                    let block = (relative(from)?, relative(to)?);
                    segment.options.blocks.push(block);
                }
            }
            _ => return Err(format!("no part of a segment: {text}")),
        }
    }
    segment.seq = seq.ok_or("a segment without `seq=`")?;
    if ack.is_some() != (segment.flags & ACK != 0) {
        return Err("`ack=` belongs to the ACK flag".into());
    }
    segment.ack = ack.unwrap_or(0);
    segment.data = match (data, len) {
        (Some(_), Some(_)) => return Err("data and `len=`".into()),
        (None, Some((least, most))) => Data::Any(least, most),
        (data, None) => Data::Bytes(data.unwrap_or_default()),
    };
    Ok(segment)
}

fn flags(text: &str) -> Result<u8, String> {
    if text == "none" {
        return Ok(0);
    }
    let mut all = 0;
    for name in text.split('|') {
        let flag = FLAGS.iter().find(|(known, _)| *known == name);
        all |= flag.ok_or_else(|| format!("no flag: {name}"))?.1;
    }
    Ok(all)
}

/// Data that is written without quotes.
fn piece(text: &str) -> Result<Option<Vec<u8>>, String> {
    if let Some(count) = text.strip_prefix("x*") {
        return Ok(Some(vec![b'x'; number(count)?]));
    }
    if let Some(part) = text.strip_prefix("content=") {
        let (from, to): (usize, usize) = range(part, number)?;
        return Ok(Some(pattern(to)[from..].to_vec()));
    }
    Ok(None)
}

fn range<T: PartialOrd>(
    text: &str,
    read: impl Fn(&str) -> Result<T, String>,
) -> Result<(T, T), String> {
    let (from, to) = text
        .split_once("..")
        .ok_or_else(|| format!("no range: {text}"))?;
    let (from, to) = (read(from)?, read(to)?);
    if from > to {
        return Err(format!("a range that ends before it begins: {text}"));
    }
    Ok((from, to))
}

/// A sequence number relative to an initial one, of which it may be behind.
fn relative(text: &str) -> Result<u32, String> {
    let number: i64 = number(text)?;
    // Sequence numbers wrap.
    Ok(number as u32)
}

fn number<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("no number: {text}"))
}

fn duration(text: &str) -> Result<Duration, String> {
    let units = [("ms", 1e3), ("us", 1.0), ("s", 1e6)];
    let unit = units
        .iter()
        .find_map(|(unit, micros)| Some((text.strip_suffix(unit)?, micros)));
    let (text, micros) = unit.ok_or_else(|| format!("a time without a unit: {text}"))?;
    let count: f64 = number(text)?;
    if !(0.0..1e9).contains(&count) {
        return Err(format!("no time: {text}"));
    }
    Ok(Duration::from_micros((count * micros).round() as u64))
}

fn hexadecimal(text: &str) -> Result<Vec<u8>, String> {
    let wrong = || format!("no hexadecimal bytes: {text}");
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return Err(wrong());
    }
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| wrong()))
        .collect()
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Word {
    Plain(String),
    Quoted(Vec<u8>),
}

/// What is left of a line.
struct Words(VecDeque<Word>);

impl Words {
    /// Splits a line at its blanks; what is quoted stays together, and a comment is no part of it.
    fn split(line: &str) -> Result<Self, String> {
        let mut words = VecDeque::new();
        let mut letters = line.chars().peekable();
        while let Some(letter) = letters.next() {
            match letter {
                '#' => break,
                '"' => {
                    let mut bytes = Vec::new();
                    loop {
                        match letters.next().ok_or("a quote without its end")? {
                            '"' => break,
                            '\\' => bytes.push(match letters.next() {
                                Some('n') => b'\n',
                                Some('\\') => b'\\',
                                Some('"') => b'"',
                                other => return Err(format!("no escape: {other:?}")),
                            }),
                            other => bytes.extend(other.encode_utf8(&mut [0; 4]).bytes()),
                        }
                    }
                    words.push_back(Word::Quoted(bytes));
                }
                blank if blank.is_whitespace() => {}
                other => {
                    let mut word = String::from(other);
                    while let Some(more) = letters.next_if(|letter| !letter.is_whitespace()) {
                        word.push(more);
                    }
                    words.push_back(Word::Plain(word));
                }
            }
        }
        Ok(Self(words))
    }

    fn plain(&mut self) -> Result<String, String> {
        match self.0.pop_front() {
            Some(Word::Plain(text)) => Ok(text),
            Some(Word::Quoted(_)) => Err("data where there is none".into()),
            None => Err("the statement is not whole".into()),
        }
    }

    fn number<T: FromStr>(&mut self) -> Result<T, String> {
        number(&self.plain()?)
    }

    fn must_be(&mut self, wanted: &str) -> Result<(), String> {
        let word = self.plain()?;
        if word != wanted {
            return Err(format!("{word} in place of {wanted}"));
        }
        Ok(())
    }

    /// The number behind `name=` in the next word.
    fn named<T: FromStr>(&mut self, name: &str) -> Result<T, String> {
        let word = self.plain()?;
        let value = word
            .strip_prefix(name)
            .and_then(|rest| rest.strip_prefix('='));
        number(value.ok_or_else(|| format!("no {name}=: {word}"))?)
    }

    /// Whether the next word is the second of two.
    fn choice(&mut self, no: &str, yes: &str) -> Result<bool, String> {
        let word = self.plain()?;
        if word != no && word != yes {
            return Err(format!("neither {no} nor {yes}: {word}"));
        }
        Ok(word == yes)
    }

    /// All pieces of data that come next.
    fn data(&mut self) -> Result<Vec<u8>, String> {
        let mut data = Vec::new();
        while let Some(word) = self.0.pop_front() {
            match word {
                Word::Quoted(bytes) => data.extend(bytes),
                Word::Plain(text) => {
                    data.extend(piece(&text)?.ok_or_else(|| format!("no data: {text}"))?);
                }
            }
        }
        Ok(data)
    }

    fn end(&self) -> Result<(), String> {
        match self.0.front() {
            Some(word) => Err(format!("more than the statement: {word:?}")),
            None => Ok(()),
        }
    }
}
