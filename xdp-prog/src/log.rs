//! What libbpf has to say, kept for the error instead of printed.

use std::sync::{Mutex, MutexGuard, PoisonError};

use libbpf_rs::{PrintLevel, set_print};

/// Lines of the verifier that go into an error: the last ones say what it did not accept.
const VERIFIER_LINES: usize = 2;

/// One capture at a time: libbpf has one callback per process.
static CAPTURE: Mutex<()> = Mutex::new(());
static TEXT: Mutex<String> = Mutex::new(String::new());

/// Call `f` and return, with its result, what libbpf warned of meanwhile (in any thread).
pub(crate) fn capture<R>(f: impl FnOnce() -> R) -> (R, String) {
    let _one_at_a_time = lock(&CAPTURE);
    lock(&TEXT).clear();
    let before = set_print(Some((PrintLevel::Warn, |_, text| {
        lock(&TEXT).push_str(&text);
    })));
    let result = f();
    set_print(before);
    (result, std::mem::take(&mut *lock(&TEXT)))
}

/// A panic elsewhere cannot leave a string or nothing half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The part of the text that says why a program did not load, as one line: the end of the verifier's log
/// if there is one, else the first warning. None if nothing was said.
pub(crate) fn reason(text: &str) -> Option<String> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    if !has_verifier_log(text) {
        return lines
            .next()
            .map(|line| line.trim_start_matches("libbpf: ").to_owned());
    }
    let log: Vec<&str> = lines
        .skip_while(|line| !line.contains("BEGIN PROG LOAD LOG"))
        .skip(1)
        .take_while(|line| !line.contains("END PROG LOAD LOG"))
        .filter(|line| !line.starts_with("processed "))
        .collect();
    let last = &log[log.len().saturating_sub(VERIFIER_LINES)..];
    (!last.is_empty()).then(|| last.join("; "))
}

/// Whether the kernel got as far as verifying the program.
pub(crate) fn has_verifier_log(text: &str) -> bool {
    text.contains("BEGIN PROG LOAD LOG")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_verifiers_log_is_the_reason() {
        let text = "libbpf: prog 'ilet': BPF program load failed: Permission denied\n\
            libbpf: prog 'ilet': -- BEGIN PROG LOAD LOG --\n\
            0: R1=ctx()\n\
            81: (0f) r1 += r4\n\
            R1 pointer arithmetic prohibited\n\
            processed 82 insns (limit 1000000)\n\
            -- END PROG LOAD LOG --\n\
            libbpf: failed to load object 'ilet_bpf'\n";
        assert!(has_verifier_log(text));
        assert_eq!(
            reason(text).unwrap(),
            "81: (0f) r1 += r4; R1 pointer arithmetic prohibited"
        );
    }

    #[test]
    fn without_a_log_the_first_warning_is_the_reason() {
        let text =
            "libbpf: Error in bpf_object__probe_loading(): Operation not permitted\nlibbpf: x\n";
        assert!(!has_verifier_log(text));
        assert_eq!(
            reason(text).unwrap(),
            "Error in bpf_object__probe_loading(): Operation not permitted"
        );
        assert_eq!(reason(""), None);
        assert_eq!(reason("-- BEGIN PROG LOAD LOG --\n"), None);
    }
}
