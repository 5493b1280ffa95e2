//! What users call sandboxes.

/// The longest name: that of a host (RFC 1123).
const LONGEST: usize = 63;

const ADJECTIVES: [&str; 32] = [
    "able", "bold", "brave", "brisk", "calm", "clever", "cool", "deft", "eager", "early", "fair", "fast",
    "fine", "fresh", "glad", "keen", "kind", "light", "lucky", "merry", "mild", "neat", "nimble", "proud",
    "quick", "quiet", "sharp", "sunny", "swift", "tidy", "warm", "wise",
];
const NOUNS: [&str; 32] = [
    "ant", "badger", "bat", "bear", "bee", "bison", "cat", "crane", "crow", "deer", "dove", "duck", "eagle",
    "finch", "fox", "frog", "hare", "hawk", "heron", "lark", "lynx", "mole", "moth", "newt", "otter", "owl",
    "robin", "seal", "stork", "swan", "toad", "wren",
];

/// A text that is no name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "name: {0:?} is no name of a sandbox or a snapshot: expected 1 to {LONGEST} of a-z, 0-9 and '-', with a letter or a digit at both ends"
)]
pub(crate) struct InvalidName(String);

/// Fails unless `name` is one, so that it can be a host's name and a word on any command line.
pub(crate) fn check(name: &str) -> Result<(), InvalidName> {
    let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = name.bytes().next().is_some_and(word) && name.bytes().next_back().is_some_and(word);
    if ends && name.len() <= LONGEST && name.bytes().all(|byte| word(byte) || byte == b'-') {
        Ok(())
    } else {
        Err(InvalidName(name.chars().take(LONGEST + 1).collect()))
    }
}

/// A name made of an id, which is random. Another one for each `attempt`: few words soon have all been used.
pub(crate) fn generate(id: &str, attempt: usize) -> String {
    let number = usize::from_str_radix(id, 16).unwrap_or_default();
    let name = format!("{}-{}", ADJECTIVES[number % 32], NOUNS[number / 32 % 32]);
    if attempt == 0 { name } else { format!("{name}-{}", id.get(..4 + attempt).unwrap_or(id)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for name in ["a", "0", "sandbox-id", "a--b", &"x".repeat(63)] {
            assert_eq!(check(name), Ok(()), "{name}");
        }
        for name in ["", "-a", "a-", "A", "a_b", "a.b", "a/b", "ä", "a\n", &"x".repeat(64)] {
            assert!(check(name).is_err(), "{name}");
        }
    }

    #[test]
    fn what_is_generated_is_a_name() {
        for id in ["000000000000", "ffffffffffff", "0123456789ab"] {
            let names: std::collections::BTreeSet<String> =
                (0..4).map(|attempt| generate(id, attempt)).collect();
            assert_eq!(names.len(), 4);
            assert!(names.iter().all(|name| check(name).is_ok()), "{names:?}");
        }
    }
}
