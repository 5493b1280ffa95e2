//! Byte counts as people write them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use vmm::spec::MemoryMib;

/// A number of bytes: `10GiB`, `512MiB`, `4096`. Units are powers of 1024 with an `i` and as single letters (`512m`, as
/// docker has them), of 1000 otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Text", into = "u64")]
pub(crate) struct Size(pub(crate) u64);

/// An amount of guest memory, given as any [`Size`] and rounded up to whole MiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Size", into = "Size")]
pub(crate) struct Memory(MemoryMib);

/// A size that no guest's memory can have.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum InvalidMemory {
    #[error(transparent)]
    Size(#[from] InvalidSize),
    #[error("{0} of memory: expected {min} to {max}, as in 512MiB or 2g", min = mib(MemoryMib::MIN), max = mib(MemoryMib::MAX))]
    Range(Size),
}

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

const UNITS: [(&str, u64); 13] = [
    ("b", 1),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("k", 1 << 10),
    ("m", 1 << 20),
    ("g", 1 << 30),
    ("t", 1 << 40),
];

fn mib(mib: u32) -> Size {
    Size(u64::from(mib) << 20)
}

impl Memory {
    /// For the machine.
    pub(crate) fn mib(self) -> MemoryMib {
        self.0
    }
}

impl TryFrom<Size> for Memory {
    type Error = InvalidMemory;

    fn try_from(size: Size) -> Result<Self, InvalidMemory> {
        let mib = u32::try_from(size.0.div_ceil(1 << 20)).ok();
        let valid = mib.and_then(|mib| MemoryMib::try_from(mib).ok());
        valid.map(Self).ok_or(InvalidMemory::Range(size))
    }
}

impl FromStr for Memory {
    type Err = InvalidMemory;

    fn from_str(text: &str) -> Result<Self, InvalidMemory> {
        text.parse::<Size>()?.try_into()
    }
}

impl From<Memory> for Size {
    fn from(memory: Memory) -> Self {
        Self(memory.0.bytes())
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Size::from(*self).fmt(f)
    }
}

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
            ("512m", 512 << 20, "512MiB"),
            ("2G", 2 << 30, "2GiB"),
        ] {
            let size: Size = text.parse().unwrap();
            assert_eq!((size.0, size.to_string().as_str()), (bytes, shown), "{text}");
        }
    }

    #[test]
    fn memory() {
        for (text, mib) in [("128MiB", 128), ("1g", 1024), ("1GB", 954), ("4TiB", 4 << 20)] {
            assert_eq!(text.parse::<Memory>().unwrap().mib().bytes(), mib << 20, "{text}");
        }
        for text in ["127MiB", "1024", "0", "5TiB", "99999999TiB"] {
            assert!(text.parse::<Memory>().is_err(), "{text}");
        }
        let message = "1024".parse::<Memory>().unwrap_err().to_string();
        assert_eq!(message, "1KiB of memory: expected 128MiB to 4TiB, as in 512MiB or 2g");
    }

    #[test]
    fn refused() {
        for text in ["", "GiB", "-1", "1.5GiB", "10XiB", "99999999999GiB", "1 0"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
