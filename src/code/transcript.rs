//! What code prints, and what is made of it.

use protocol::Exit;
use serde_json::value::RawValue;

use crate::sandbox::Event;

/// A line that is longer counts as far as this, in bytes.
const MAX_LINE: usize = 8 << 20;
/// JSON that is nested deeper is text: there are parsers that would overflow their stack, and our own stop at 127.
const MAX_DEPTH: usize = 100;

/// What code has printed so far.
#[derive(Debug)]
pub(crate) struct Transcript {
    pub(crate) stdout: Printed,
    pub(crate) stderr: Printed,
}

/// One output: its beginning, and its last line.
#[derive(Debug, Default)]
pub(crate) struct Printed {
    beginning: Vec<u8>,
    /// How long the beginning is at most, in bytes.
    limit: usize,
    /// Something is not in the beginning.
    pub(crate) truncated: bool,
    /// The line that is not at its end.
    line: Vec<u8>,
    /// The last one before that which is not blank.
    last: Vec<u8>,
}

impl Transcript {
    /// Of each output, the first `limit` bytes are kept.
    pub(crate) fn new(limit: usize) -> Self {
        let output = || Printed { limit, ..Printed::default() };
        Self { stdout: output(), stderr: output() }
    }

    /// Takes in what comes from the code.
    pub(crate) fn push(&mut self, event: &Event) {
        match event {
            Event::Stdout(bytes) => self.stdout.push(bytes),
            Event::Stderr(bytes) => self.stderr.push(bytes),
            Event::Exit(_) => {}
        }
    }

    /// The last line of standard output that is not blank: itself where it is JSON, else as a JSON string; null where there is none.
    pub(crate) fn results(&self) -> Box<RawValue> {
        let Some(line) = self.stdout.last_line() else { return RawValue::NULL.to_owned() };
        // As it is written: no number loses digits, and the members of an object stay in order.
        let json = serde_json::from_str::<Box<RawValue>>(&line).ok().filter(|_| is_shallow(&line));
        // A string is always JSON.
        json.unwrap_or_else(|| {
            serde_json::value::to_raw_value(&line).unwrap_or_else(|_| RawValue::NULL.to_owned())
        })
    }
}

impl Printed {
    fn push(&mut self, bytes: &[u8]) {
        let room = bytes.len().min(self.limit - self.beginning.len());
        self.beginning.extend_from_slice(&bytes[..room]);
        self.truncated |= room < bytes.len();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = piece.len().min(MAX_LINE - self.line.len());
            self.line.extend_from_slice(&piece[..room]);
            if piece.ends_with(b"\n") {
                if !self.line.trim_ascii().is_empty() {
                    std::mem::swap(&mut self.line, &mut self.last);
                }
                self.line.clear();
            }
        }
    }

    /// The beginning. Bytes that are not UTF-8 become U+FFFD.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.beginning).into_owned()
    }

    fn last_line(&self) -> Option<String> {
        let lines = [&self.line, &self.last].map(|line| line.trim_ascii());
        let line = lines.into_iter().find(|line| !line.is_empty());
        line.map(|line| String::from_utf8_lossy(line).into_owned())
    }
}

/// Why code was no success; nothing where it was one.
pub(crate) fn error(exit: &Exit, transcript: &Transcript) -> Option<String> {
    if exit.timed_out {
        return Some("the code was ended because its time was over: `timeout` gives it more".to_owned());
    }
    if exit.oom_killed && exit.exit_code != Some(0) {
        return Some(
            "the sandbox was short of memory and the kernel has killed a process of the code".to_owned(),
        );
    }
    match (exit.exit_code, exit.signal) {
        (Some(0), _) => None,
        (Some(code), _) => Some(match transcript.stderr.last_line() {
            Some(line) => format!("exit code {code}: {line}"),
            None => format!("exit code {code}"),
        }),
        (None, Some(signal)) => Some(format!("ended by signal {signal}")),
        (None, None) => Some("the guest has not said how the code has ended".to_owned()),
    }
}

/// Whether JSON that is valid is nested no deeper than [`MAX_DEPTH`].
fn is_shallow(json: &str) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    json.bytes().all(|byte| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = in_string,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => depth += 1,
            b']' | b'}' if !in_string => depth -= 1,
            _ => {}
        }
        depth <= MAX_DEPTH
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn printed(stdout: &[u8], stderr: &[u8]) -> Transcript {
        let mut transcript = Transcript::new(100);
        transcript.push(&Event::Stdout(stdout.to_vec()));
        transcript.push(&Event::Stderr(stderr.to_vec()));
        transcript
    }

    #[test]
    fn the_last_line_is_the_result() {
        for (stdout, results) in [
            (&b""[..], "null"),
            (b"\n  \n\t\n", "null"),
            (b"text", r#""text""#),
            (b"1\n2\n", "2"),
            (b"[1]\n\n  \r\n", "[1]"),
            (b"a\r\nb \"c\"\r\n", r#""b \"c\"""#),
            // As it was printed: order, digits, blanks.
            (
                br#"{"sum": 15, "avg": 3.0, "n": 12345678901234567890123}"#,
                r#"{"sum": 15, "avg": 3.0, "n": 12345678901234567890123}"#,
            ),
            (b"null", "null"),
            (b"\"s\"", "\"s\""),
            (b"1 2", r#""1 2""#),
            (b"{'a': 1}", r#""{'a': 1}""#),
            (b"NaN", r#""NaN""#),
            (b"\xff\n", "\"\u{fffd}\""),
            ("\u{e9}\n".as_bytes(), "\"\u{e9}\""),
        ] {
            assert_eq!(printed(stdout, b"").results().get(), results, "{stdout:?}");
        }
    }

    #[test]
    fn deep_json_is_text() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let results = |text: &str| printed(text.as_bytes(), b"").results().get().to_owned();
        assert_eq!(results(&nested(100)), nested(100));
        assert_eq!(results(&nested(101)), format!("\"{}\"", nested(101)));
        let braces = format!("[\"\\\"{}\"]", "[".repeat(500));
        assert_eq!(results(&braces), braces);
    }

    #[test]
    fn what_is_not_kept() {
        let mut transcript = printed(&[b'x'; 99], b"");
        assert!(!transcript.stdout.truncated);
        transcript.push(&Event::Stdout(b"\xe2\x82\xac\n{\"last\": 1}".to_vec()));
        assert!(transcript.stdout.truncated && !transcript.stderr.truncated);
        assert_eq!(transcript.stdout.text().len(), 99 + '\u{fffd}'.len_utf8());
        assert_eq!(transcript.results().get(), "{\"last\": 1}");
        let mut transcript = Transcript::new(0);
        transcript.push(&Event::Stdout(vec![b'x'; MAX_LINE - 1]));
        transcript.push(&Event::Stdout(b"yz\n".to_vec()));
        let results = transcript.results();
        assert!(results.get().len() == MAX_LINE + 2 && results.get().ends_with("xy\""));
    }

    #[test]
    fn why_it_was_no_success() {
        let transcript = printed(b"", b"Traceback:\nZeroDivisionError: division by zero\n\n");
        let why = |exit: Exit| error(&exit, &transcript);
        let exit = |code: i32| Exit { exit_code: Some(code), ..Exit::default() };
        assert_eq!(why(exit(0)), None);
        assert_eq!(why(exit(1)).unwrap(), "exit code 1: ZeroDivisionError: division by zero");
        assert_eq!(error(&exit(2), &printed(b"x", b"")).unwrap(), "exit code 2");
        assert_eq!(why(Exit { signal: Some(9), ..Exit::default() }).unwrap(), "ended by signal 9");
        let late = Exit { signal: Some(15), timed_out: true, ..Exit::default() };
        assert!(why(late).unwrap().contains("timeout"));
        let starved = Exit { signal: Some(9), oom_killed: true, ..Exit::default() };
        assert!(why(starved).unwrap().contains("memory"));
        assert!(why(Exit::default()).is_some());
    }

    proptest! {
        #[test]
        fn pieces_make_the_whole(bytes in proptest::collection::vec(proptest::sample::select(b"a \n1[]\xff".to_vec()), 0..50), cut in 0usize..50) {
            let whole = printed(&bytes, b"");
            let (first, second) = bytes.split_at(cut.min(bytes.len()));
            let mut pieces = printed(first, b"");
            pieces.push(&Event::Stdout(second.to_vec()));
            let results = whole.results();
            prop_assert_eq!(results.get(), &*pieces.results().to_string());
            prop_assert_eq!(whole.stdout.text(), pieces.stdout.text());
            serde_json::from_str::<serde_json::Value>(results.get()).unwrap();
        }
    }
}
