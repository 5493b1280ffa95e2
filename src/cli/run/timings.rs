//! `--timings`: where the time of a run goes.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use hyper::Method;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use crate::cli::tell;
use crate::client::Remote;

/// The steps of a run.
pub(super) struct Timings {
    start: Instant,
    steps: RefCell<Vec<(&'static str, Duration)>>,
}

impl Timings {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), steps: RefCell::default() }
    }

    /// `step` is done. Only the first time counts.
    pub(super) fn mark(&self, step: &'static str) {
        let mut steps = self.steps.borrow_mut();
        if steps.iter().all(|(known, _)| *known != step) {
            steps.push((step, self.start.elapsed()));
        }
    }

    /// One line of JSON on standard error: when the run began, in ms of CLOCK_MONOTONIC; when each step was done, in ms since
    /// then; what the agent says of its own start, and what the machine has cost.
    pub(super) async fn print(&self, remote: &Remote) {
        let steps: serde_json::Map<_, _> = {
            let steps = self.steps.borrow();
            let steps = steps.iter();
            steps.map(|(step, time)| ((*step).to_owned(), json!(time.as_secs_f64() * 1000.0))).collect()
        };
        let now = clock_gettime(ClockId::Monotonic);
        let began = Duration::new(now.tv_sec as u64, now.tv_nsec as u32).saturating_sub(self.start.elapsed());
        let path = format!("/sandboxes/{}/stats", remote.sandbox);
        let stats: Result<Value, _> = remote.client.ask(Method::GET, &path, &()).await;
        let stats = stats.unwrap_or_else(|error| json!({ "error": error.to_string() }));
        let report = json!({
            "monotonicMs": began.as_secs_f64() * 1000.0,
            "stepsMs": steps,
            "stats": stats,
        });
        tell(&report.to_string());
    }
}
