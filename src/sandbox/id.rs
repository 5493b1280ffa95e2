//! What a sandbox is called.

use std::fmt;
use std::str::FromStr;

const LENGTH: usize = 12;

/// Twelve hexadecimal digits, drawn at random: the name of the sandbox's directory and the guest's host name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SandboxId(String);

/// A text that is no id.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no sandbox id: expected {LENGTH} hexadecimal digits")]
pub(crate) struct InvalidId(String);

impl SandboxId {
    /// A new one. That nobody has it already is for the caller to see.
    pub(crate) fn random() -> std::io::Result<Self> {
        let mut bytes = [0; size_of::<u64>()];
        // So few bytes come whole or not at all (getrandom(2)).
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
        let digits = format!("{:016x}", u64::from_ne_bytes(bytes));
        Ok(Self(digits[..LENGTH].to_owned()))
    }

    /// The digits.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SandboxId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() == LENGTH && text.bytes().all(digit) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidId(text.chars().take(50).collect()))
        }
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_drawn_is_an_id() {
        let ids: std::collections::BTreeSet<SandboxId> =
            (0..100).map(|_| SandboxId::random().unwrap()).collect();
        assert_eq!(ids.len(), 100);
        for id in ids {
            assert_eq!(id.to_string().parse(), Ok(id));
        }
    }

    #[test]
    fn what_could_be_a_path_is_none() {
        for text in ["", ".", "..", "0123456789ab/", "0123456789abc", "0123456789AB", "01234567/9ab"] {
            assert!(text.parse::<SandboxId>().is_err(), "{text}");
        }
    }
}
