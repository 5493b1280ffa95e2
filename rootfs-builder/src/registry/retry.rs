//! When to try again, and after how long.

use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, RETRY_AFTER};

use super::error::{RegistryError, chain};
use crate::progress::{Event, Progress};

/// How patient a pull is.
#[derive(Clone, Debug)]
pub struct RetryPolicy {
    /// Attempts without progress before it gives up, the first one included.
    pub attempts: u32,
    /// The first wait; it doubles with each failure.
    pub base_delay: Duration,
    /// The longest wait of our own choice.
    pub max_delay: Duration,
    /// The longest wait that a server's `Retry-After` can ask for.
    pub max_retry_after: Duration,
    /// For a connection, TLS included.
    pub connect_timeout: Duration,
    /// The longest silence while an answer is due. There is no limit on the whole of a blob: bytes that arrive are progress.
    pub read_timeout: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 6,
            base_delay: Duration::from_millis(500),
            max_delay: Duration::from_secs(20),
            max_retry_after: Duration::from_mins(1),
            connect_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(30),
        }
    }
}

/// A failed attempt.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: RegistryError,
    pub(super) again: Again,
}

/// Whether another attempt may end better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// No: the same question gets the same answer.
    Never,
    /// Yes, after a while.
    Later,
    /// Yes, after as long as the server asks for.
    After(Duration),
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        Self { error, again: Again::Never }
    }
}

impl RegistryError {
    pub(super) fn later(self) -> Failure {
        Failure { error: self, again: Again::Later }
    }
}

/// The attempts at one thing, at one server.
pub(super) struct Attempts<'a> {
    policy: &'a RetryPolicy,
    limit: u32,
    what: String,
    progress: Progress<'a>,
    failures: u32,
}

impl<'a> Attempts<'a> {
    pub(super) fn new(policy: &'a RetryPolicy, limit: u32, what: String, progress: Progress<'a>) -> Self {
        Self { policy, limit, what, progress, failures: 0 }
    }

    /// Something came through: the patience starts anew.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Waits for the time of the next attempt, or gives the error back when there is none.
    pub(super) async fn again(&mut self, failure: Failure) -> Result<(), RegistryError> {
        self.failures += 1;
        if failure.again == Again::Never || self.failures >= self.limit {
            return Err(failure.error);
        }
        let delay = match failure.again {
            Again::After(wait) => wait.min(self.policy.max_retry_after),
            Again::Never | Again::Later => backoff(self.policy, self.failures, fastrand::f64()),
        };
        (self.progress)(Event::Retrying {
            what: self.what.clone(),
            reason: chain(&failure.error),
            delay_ms: delay.as_millis() as u64,
        });
        tokio::time::sleep(delay).await;
        Ok(())
    }
}

/// The wait after so many failures. The upper half of it is left to chance, `random` in 0..1: clients that were cut off
/// together do not come back together.
fn backoff(policy: &RetryPolicy, failures: u32, random: f64) -> Duration {
    let doubled = policy.base_delay.saturating_mul(1 << failures.saturating_sub(1).min(20));
    doubled.min(policy.max_delay).mul_f64(0.5 + random / 2.0)
}

/// The wait that a server asks for, in seconds or as a date (RFC 9110, section 10.2.3).
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    // A date in the past asks for nothing.
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_limit() {
        let policy = RetryPolicy::default();
        let waits: Vec<u128> =
            [1, 2, 3, 7, 4_000_000_000].iter().map(|&n| backoff(&policy, n, 1.0).as_millis()).collect();
        assert_eq!(waits, [500, 1000, 2000, 20_000, 20_000]);
        assert_eq!(backoff(&policy, 1, 0.0).as_millis(), 250);
    }

    #[test]
    fn retry_after_in_seconds_or_as_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        let of = |text: &str| {
            retry_after(&HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]), now)
                .map(|d| d.as_secs())
        };
        assert_eq!(of("7"), Some(7));
        assert_eq!(of(" 0 "), Some(0));
        assert_eq!(of("Sun, 06 Nov 1994 08:51:37 GMT"), Some(120));
        assert_eq!(of("Sun, 06 Nov 1994 08:00:00 GMT"), Some(0));
        for nonsense in ["", "-1", "1.5", "soon", "99999999999999999999999999", "Sun, 99 Nov 1994"] {
            assert_eq!(of(nonsense), None, "{nonsense}");
        }
    }
}
