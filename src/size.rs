//! Byte counts as people write them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A number of bytes: `10GiB`, `512MiB`, `4096`. Units are powers of 1024 with an `i`, of 1000 without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Text", into = "u64")]
pub(crate) struct Size(pub(crate) u64);

/// A text that is no size.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a size: expected bytes or a unit, as in 4096, 512MiB or 10GiB")]
pub(crate) struct InvalidSize(String);

/// In a configuration file a size is a text or a number.
#[derive(Deserialize)]
#[serde(untagged)]
enum Text {
    Bytes(u64),
    Human(String),
}

const UNITS: [(&str, u64); 9] = [
    ("b", 1),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
];

impl FromStr for Size {
    type Err = InvalidSize;

    fn from_str(text: &str) -> Result<Self, InvalidSize> {
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim_start().to_ascii_lowercase();
        let factor = match unit.as_str() {
            "" => Some(1),
            unit => UNITS.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor),
        };
        let bytes =
            number.parse::<u64>().ok().zip(factor).and_then(|(number, factor)| number.checked_mul(factor));
        bytes.map(Self).ok_or_else(|| InvalidSize(text.chars().take(50).collect()))
    }
}

impl TryFrom<Text> for Size {
    type Error = InvalidSize;

    fn try_from(text: Text) -> Result<Self, InvalidSize> {
        match text {
            Text::Bytes(bytes) => Ok(Self(bytes)),
            Text::Human(text) => text.parse(),
        }
    }
}

impl From<Size> for u64 {
    fn from(size: Size) -> u64 {
        size.0
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact =
            UNITS[1..5].iter().rev().find(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor));
        match exact {
            Some((unit, factor)) => {
                write!(f, "{}{}iB", self.0 / factor, unit[..1].to_ascii_uppercase())
            }
            None => indicatif::BinaryBytes(self.0).fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        for (text, bytes, shown) in [
            ("10GiB", 10 << 30, "10GiB"),
            ("512 mib", 512 << 20, "512MiB"),
            ("4096", 4096, "4KiB"),
            ("1kb", 1000, "1000 B"),
            ("0", 0, "0 B"),
        ] {
            let size: Size = text.parse().unwrap();
            assert_eq!((size.0, size.to_string().as_str()), (bytes, shown), "{text}");
        }
    }

    #[test]
    fn refused() {
        for text in ["", "GiB", "-1", "1.5GiB", "10XiB", "99999999999GiB", "1 0"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
