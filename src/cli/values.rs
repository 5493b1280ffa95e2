//! Values of flags, as they are written.

use std::time::Duration;

use vmm::spec::Cpus;

pub(super) fn cpus(text: &str) -> Result<Cpus, String> {
    let count: u8 = text.parse().map_err(|_| format!("expected a number from 1 to {}", Cpus::MAX))?;
    count.try_into().map_err(|e: vmm::spec::SpecError| e.to_string())
}

pub(super) fn absolute(text: &str) -> Result<String, String> {
    if text.starts_with('/') { Ok(text.to_owned()) } else { Err("expected a path that begins with /".into()) }
}

/// A bare number is seconds, as for timeout(1).
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse() {
        return Duration::try_from_secs_f64(seconds).map_err(|e| e.to_string());
    }
    humantime::parse_duration(text).map_err(|e| format!("expected a time, as 30, 30s or 5m: {e}"))
}
