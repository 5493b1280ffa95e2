//! A command that is typed at a shell's terminal, and what it prints of all that the terminal shows.
//!
//! The line that is typed prints a mark before and behind the command, made of a control character and a number that nobody
//! knows: by them the output is told from the echo and the prompts. It works with every shell that knows `eval` and `printf`.

use std::fmt::Write as _;

use super::problem::Problem;

/// ASCII's record separator, in `printf` \036. The echo of the line has no such character in it.
const MARK: u8 = 0x1e;
/// A terminal takes 4095 bytes of a line where no editor does (N_TTY_BUF_SIZE); the marks are about 100.
const MAX_LINE: usize = 3000;

/// One that was typed.
#[derive(Debug)]
pub(super) struct Typed {
    /// What both marks begin with.
    mark: Vec<u8>,
    /// What may be the beginning of a mark.
    held: Vec<u8>,
    begun: bool,
}

impl Typed {
    pub(super) fn new(nonce: u64) -> Self {
        let mark = [&[MARK], format!("{nonce:016x}").as_bytes()].concat();
        Self { mark, held: Vec::new(), begun: false }
    }

    /// The keys.
    pub(super) fn keys(&self, command: &str) -> Result<String, Problem> {
        if command.contains('\0') {
            return Err(Problem::field("command", "has a NUL byte in it, which no command line can have"));
        }
        // Neither the terminal, nor an editor of lines, nor a history of them makes anything else of such characters.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b" _./=,:".contains(&byte);
        let mut escaped = String::with_capacity(4 * command.len());
        let mut line = 0;
        for byte in command.bytes() {
            if line > MAX_LINE {
                escaped.push_str("'\\\n'");
                line = 0;
            }
            if plain(byte) {
                escaped.push(char::from(byte));
                line += 1;
            } else {
                // To a string it cannot fail.
                let _ = write!(escaped, "\\{byte:03o}");
                line += 4;
            }
        }
        let mark = String::from_utf8_lossy(&self.mark[1..]);
        Ok(format!(
            " printf '\\036{mark}\\036'; eval \"$(printf '{escaped}')\"; printf '\\036{mark} %d\\036' \"$?\"\n"
        ))
    }

    /// What the command has printed of this, and its exit code where it has ended.
    pub(super) fn push(&mut self, shown: &[u8]) -> (Vec<u8>, Option<u8>) {
        let mut all = std::mem::take(&mut self.held);
        all.extend_from_slice(shown);
        let (mut printed, mut rest) = (Vec::new(), &all[..]);
        while let Some(at) = rest.iter().position(|byte| *byte == MARK) {
            let (before, from) = rest.split_at(at);
            if self.begun {
                printed.extend_from_slice(before);
            }
            let common = from.len().min(self.mark.len());
            if from[..common] != self.mark[..common] {
                // One of the command's own.
                if self.begun {
                    printed.push(MARK);
                }
                rest = &from[1..];
                continue;
            }
            let Some(end) = from.iter().skip(1).position(|byte| *byte == MARK).map(|end| end + 1) else {
                // It may be whole with what comes next, unless it is longer than any.
                if from.len() <= self.mark.len() + 5 {
                    self.held = from.to_vec();
                    return (printed, None);
                }
                rest = &from[1..];
                continue;
            };
            let inside = &from[self.mark.len().min(end)..end];
            match inside.strip_prefix(b" ").map(|code| std::str::from_utf8(code).ok()?.parse().ok()) {
                Some(Some(code)) => return (printed, Some(code)),
                _ if inside.is_empty() => self.begun = true,
                _ => {}
            }
            rest = &from[end + 1..];
        }
        if self.begun {
            printed.extend_from_slice(rest);
        }
        (printed, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BEGIN: &str = "\x1e000000000000002a\x1e";
    const END: &str = "\x1e000000000000002a 3\x1e";

    /// In pieces of this size.
    fn printed(shown: &str, size: usize) -> (String, Option<u8>) {
        let mut typed = Typed::new(42);
        let mut all = Vec::new();
        for piece in shown.as_bytes().chunks(size) {
            let (printed, code) = typed.push(piece);
            all.extend(printed);
            if code.is_some() {
                return (String::from_utf8(all).unwrap(), code);
            }
        }
        (String::from_utf8(all).unwrap(), None)
    }

    #[test]
    fn the_keys() {
        let keys = Typed::new(42).keys("echo 'a'\n\tü!%").unwrap();
        assert_eq!(
            keys,
            " printf '\\036000000000000002a\\036'; eval \"$(printf 'echo \\047a\\047\\012\\011\\303\\274\\041\\045')\"; \
             printf '\\036000000000000002a %d\\036' \"$?\"\n"
        );
        assert!(Typed::new(42).keys("a\0b").is_err());
    }

    /// As the shell itself takes them: also what is longer than a line of the terminal.
    #[test]
    fn the_keys_in_a_shell() {
        let text: String = (1..=126u8).filter(|byte| *byte != b'\'').map(char::from).collect();
        let text = format!("{text}ü").repeat(60);
        let typed = Typed::new(42);
        let keys = typed.keys(&format!("printf %s '{text}'; (exit 7)")).unwrap();
        assert!(keys.lines().all(|line| line.len() < 4000) && keys.lines().count() > 1);
        let output = std::process::Command::new("sh").args(["-c", &keys]).output().unwrap();
        let mut typed = typed;
        assert_eq!(typed.push(&output.stdout), (text.into_bytes(), Some(7)));
    }

    proptest! {
        #[test]
        fn what_it_prints_and_nothing_else(
            before in r"(?s)(\PC|\n|\x1e|\\036000000000000002a\\036){0,20}",
            output in r"(?s)(\PC|\n|\x1e|0){0,40}",
            size in 1usize..50,
        ) {
            let shown = format!("{before}\n{BEGIN}{output}{END}# ");
            prop_assert_eq!(printed(&shown, size), (output.clone(), Some(3)));
            // Without the end everything but what could be its beginning is there.
            let (some, code) = printed(&format!("{before}\n{BEGIN}{output}x"), size);
            prop_assert_eq!(code, None);
            prop_assert_eq!(some, output + "x");
        }

        #[test]
        fn nothing_breaks_it(pieces: Vec<Vec<u8>>) {
            let mut typed = Typed::new(42);
            for piece in pieces {
                typed.push(&piece);
                prop_assert!(typed.held.len() < 30);
            }
        }
    }
}
