//! Output that nobody may take in time: printing must not stop the server.

use std::io::{self, Write};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

/// Texts that may wait for a reader who is slow.
const WAITING_TEXTS: usize = 8;
/// How long the end waits for what is left to be taken.
const LAST_WAIT: Duration = Duration::from_secs(2);

/// Prints from a thread of its own, which alone waits for the reader.
#[derive(Debug)]
pub struct Printer {
    texts: Sender<String>,
    /// Nothing is sent: it is closed when the thread ends.
    ended: Receiver<()>,
}

impl Printer {
    /// Starts the thread. Every text is flushed.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn start(mut output: impl Write + Send + 'static) -> io::Result<Self> {
        let (texts, to_print) = bounded::<String>(WAITING_TEXTS);
        let (ending, ended) = bounded(0);
        thread::Builder::new()
            .name("printer".into())
            .spawn(move || {
                let _ending: Sender<()> = ending;
                for text in to_print {
                    // If nobody listens any more, so be it.
                    let _ = output
                        .write_all(text.as_bytes())
                        .and_then(|()| output.flush());
                }
            })?;
        Ok(Self { texts, ended })
    }

    /// Prints `text` soon, or not at all if too much is waiting already.
    pub fn print(&self, text: String) {
        let _ = self.texts.try_send(text);
    }

    /// Prints the last text and waits for it, but not for ever: a reader who does not read does not get it.
    pub fn finish(self, text: String) {
        self.finish_until(text, Instant::now() + LAST_WAIT);
    }

    fn finish_until(self, text: String, until: Instant) {
        let Self { texts, ended } = self;
        let _ = texts.send_deadline(text, until);
        // The thread ends when it has printed all.
        drop(texts);
        let _ = ended.recv_deadline(until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    /// More than a pipe takes.
    const LONG: usize = 1 << 20;

    #[test]
    fn everything_arrives_in_order_before_the_end() {
        let (mut reader, writer) = io::pipe().unwrap();
        let printer = Printer::start(writer).unwrap();
        printer.print("one\n".into());
        printer.print("two\n".into());
        let reading = thread::spawn(move || {
            let mut all = String::new();
            reader.read_to_string(&mut all).unwrap();
            all
        });
        printer.finish("x".repeat(LONG));
        assert_eq!(
            reading.join().unwrap(),
            format!("one\ntwo\n{}", "x".repeat(LONG))
        );
    }

    #[test]
    fn a_reader_who_does_not_read_stops_nobody() {
        let (reader, writer) = io::pipe().unwrap();
        let printer = Printer::start(writer).unwrap();
        let start = Instant::now();
        for _ in 0..3 * WAITING_TEXTS {
            printer.print("x".repeat(LONG));
        }
        assert!(start.elapsed() < LAST_WAIT);
        let wait = Duration::from_millis(50);
        printer.finish_until("last".into(), Instant::now() + wait);
        assert!((wait..LAST_WAIT).contains(&start.elapsed()));
        drop(reader);
    }

    #[test]
    fn a_reader_who_went_away_is_not_waited_for() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let printer = Printer::start(writer).unwrap();
        let start = Instant::now();
        printer.print("x".into());
        printer.finish("last".into());
        assert!(start.elapsed() < LAST_WAIT);
    }
}
