//! Output as server-sent events: text, in lines, of which none can be taken for an event.

/// Bytes that come in pieces, as text: a character that is cut waits for its rest.
#[derive(Debug, Default)]
pub(super) struct Text {
    /// Fewer than four bytes.
    rest: Vec<u8>,
}

impl Text {
    /// What is whole now. Bytes that are not UTF-8 become U+FFFD.
    pub(super) fn push(&mut self, bytes: &[u8]) -> String {
        let mut all = std::mem::take(&mut self.rest);
        all.extend_from_slice(bytes);
        let mut text = String::with_capacity(all.len());
        let mut at = 0;
        loop {
            match std::str::from_utf8(&all[at..]) {
                Ok(valid) => {
                    text.push_str(valid);
                    return text;
                }
                Err(error) => {
                    let end = at + error.valid_up_to();
                    text.push_str(&String::from_utf8_lossy(&all[at..end]));
                    let Some(length) = error.error_len() else {
                        self.rest = all[end..].to_vec();
                        return text;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    at = end + length;
                }
            }
        }
    }

    /// What is left when no more comes.
    pub(super) fn end(&mut self) -> Option<String> {
        let rest = std::mem::take(&mut self.rest);
        (!rest.is_empty()).then(|| char::REPLACEMENT_CHARACTER.to_string())
    }
}

/// An event: `data:` without a blank behind it, one line for each line of `data`. A line ends wherever Python's `str.splitlines`
/// ends one, since the published client looks for lines so.
pub(super) fn event(name: &str, data: &str) -> String {
    const ENDS: [char; 10] =
        ['\n', '\r', '\x0b', '\x0c', '\x1c', '\x1d', '\x1e', '\u{85}', '\u{2028}', '\u{2029}'];
    let mut event = format!("event:{name}\n");
    for line in data.replace("\r\n", "\n").split(ENDS) {
        event.push_str("data:");
        event.push_str(line);
        event.push('\n');
    }
    event.push('\n');
    event
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn characters_in_pieces() {
        let mut text = Text::default();
        assert_eq!(text.push(b"a\xe2\x82"), "a");
        assert_eq!(text.push(b"\xac!\xff\xf0\x9f"), "€!\u{fffd}");
        assert_eq!(text.push(b"x"), "\u{fffd}x");
        assert_eq!(
            (text.push(b"\xe2"), text.end(), text.end()),
            (String::new(), Some("\u{fffd}".into()), None)
        );
    }

    #[test]
    fn lines() {
        assert_eq!(event("stdout", "a b"), "event:stdout\ndata:a b\n\n");
        assert_eq!(event("stdout", "a\n"), "event:stdout\ndata:a\ndata:\n\n");
        assert_eq!(event("stdout", "a\r\nb\u{2028}c"), "event:stdout\ndata:a\ndata:b\ndata:c\n\n");
        assert_eq!(event("stdout", ""), "event:stdout\ndata:\n\n");
    }

    /// The lines of a text as Python's `str.splitlines` finds them.
    fn splitlines(text: &str) -> Vec<String> {
        let text = text.replace("\r\n", "\n");
        let ends = |c: char| {
            matches!(c, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}')
        };
        let mut lines: Vec<String> = text.split(ends).map(str::to_owned).collect();
        if lines.last().is_some_and(String::is_empty) {
            lines.pop();
        }
        lines
    }

    proptest! {
        #[test]
        fn pieces_make_the_whole(bytes: Vec<u8>, cut in 0usize..64) {
            let mut text = Text::default();
            let (first, second) = bytes.split_at(cut.min(bytes.len()));
            let mut all = text.push(first) + &text.push(second);
            all.extend(text.end());
            prop_assert_eq!(all, String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn no_output_forges_an_event(
            data in r"(?s)(\PC|[\n\r\x0b\x0c\x1c\x1d\x1e\u{85}\u{2028}\u{2029}]|event:exit|data:|\n\n){0,30}",
        ) {
            let event = event("stdout", &data);
            let lines = splitlines(&event);
            prop_assert_eq!(&lines[0], "event:stdout");
            prop_assert_eq!(lines.last().map(String::as_str), Some(""));
            for line in &lines[1..lines.len() - 1] {
                prop_assert!(line.starts_with("data:"), "{:?}", line);
            }
        }
    }
}
