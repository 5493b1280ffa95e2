//! Numbers and lists for people.

#[cfg(feature = "pull")]
use std::fmt;

/// The most names of a list, and characters of a name, that an error shows.
const MAX_NAMES: usize = 20;
const MAX_NAME: usize = 128;

/// Bytes, rounded up to whole MiB.
#[cfg(feature = "pull")]
pub(crate) struct Human(pub(crate) u64);

#[cfg(feature = "pull")]
impl fmt::Display for Human {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes > 0 && bytes.is_multiple_of(1 << 30) => write!(f, "{} GiB", bytes >> 30),
            bytes => write!(f, "{} MiB", bytes.div_ceil(1 << 20)),
        }
    }
}

/// The first names of a list that somebody else has made.
pub(crate) fn listed(names: &[String]) -> String {
    let shown: Vec<String> =
        names.iter().take(MAX_NAMES).map(|name| name.chars().take(MAX_NAME).collect()).collect();
    let more = match names.len() - shown.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    shown.join(", ") + &more
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn for_people() {
        assert_eq!([1, 1 << 20, (1 << 20) + 1].map(|n| Human(n).to_string()), ["1 MiB", "1 MiB", "2 MiB"]);
        assert_eq!(Human(40 << 30).to_string(), "40 GiB");
        let names: Vec<String> = (0..25).map(|i| format!("v{i}")).collect();
        assert_eq!(listed(&names[..2]), "v0, v1");
        assert!(listed(&names).ends_with("v18, v19 and 5 more"));
        assert_eq!(listed(&["x".repeat(1000)]).len(), 128);
    }
}
