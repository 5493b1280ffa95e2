//! What the daemon counts since it began, for Prometheus. Every label is one of a few words of ours: nothing that a client, an
//! image or a guest says becomes one.

use std::sync::PoisonError;
use std::time::Duration;

use axum::http::StatusCode;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use tokio::task::JoinSet;
use vmm::control::NetworkMetrics;
use vmm::exit::ExitReason;

use super::network::UP;
use super::{Daemon, State};
use crate::sandbox::{Ending, Handle, Traffic, Way};

/// One label, or more, of a metric.
type Labels<const N: usize = 1> = [(&'static str, &'static str); N];

const RESULTS: [&str; 2] = ["ok", "failed"];
const DIRECTIONS: [&str; 2] = ["to_guest", "from_guest"];
const LOST: &str = "lost";
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// Everything that is counted.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    sandboxes: Family<Labels, Gauge>,
    boots: Family<Labels, Counter>,
    boot_seconds: Histogram,
    restores: Family<Labels, Counter>,
    restore_seconds: Histogram,
    execs: Family<Labels, Counter>,
    exec_start_seconds: Histogram,
    exits: Family<Labels, Counter>,
    images: Counter,
    requests: Family<Labels, Counter>,
    traffic: Traffic,
    network: Network,
}

/// What the networks of all machines have done.
#[derive(Debug, Default)]
struct Network {
    bytes: Family<Labels, Counter>,
    connections: Counter,
    denied: Counter,
    dropped: Counter,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let bytes = Family::<Labels<2>, Counter>::default();
        let way = |stream| {
            let [sent, received] =
                DIRECTIONS.map(|way| bytes.get_or_create_owned(&[("stream", stream), ("direction", way)]));
            Way { sent, received }
        };
        let traffic = Traffic { exec: way("exec"), files: way("files") };
        let mut metrics = Self {
            registry: Registry::with_prefix("voidrun"),
            sandboxes: Family::default(),
            boots: counters("result", &RESULTS),
            // 50 ms to 51 s.
            boot_seconds: Histogram::new(exponential_buckets(0.05, 2.0, 11)),
            restores: counters("result", &RESULTS),
            // 1 ms to 16 s.
            restore_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            execs: counters("result", &RESULTS),
            // 0.5 ms to 33 s.
            exec_start_seconds: Histogram::new(exponential_buckets(0.0005, 2.0, 17)),
            exits: Family::default(),
            images: Counter::default(),
            requests: counters("status", &CLASSES),
            traffic,
            network: Network { bytes: counters("direction", &DIRECTIONS), ..Network::default() },
        };
        metrics.register(bytes);
        metrics
    }

    /// The names, to which the format adds the unit and, for a counter, `_total`.
    fn register(&mut self, bytes: Family<Labels<2>, Counter>) {
        let all = &mut self.registry;
        all.register("sandboxes", "Sandboxes by state", self.sandboxes.clone());
        all.register("boots", "Machines that were started, by result", self.boots.clone());
        let help = "From the start of a machine's process until commands can be run in it";
        all.register_with_unit("boot_duration", help, Unit::Seconds, self.boot_seconds.clone());
        let help = "Machines that were to go on from where they, or others, were saved, by result";
        all.register("restores", help, self.restores.clone());
        let help = "From the start of such a machine's process until commands can be run in it";
        all.register_with_unit("restore_duration", help, Unit::Seconds, self.restore_seconds.clone());
        let help = "Commands, code and terminals that were started, by result";
        all.register("execs", help, self.execs.clone());
        let help = "From the request to the guest until the command runs";
        all.register_with_unit("exec_start_duration", help, Unit::Seconds, self.exec_start_seconds.clone());
        let help = "Machines that have ended, by reason; stopped: by a user";
        all.register("machine_exits", help, self.exits.clone());
        let help = "To and from guests, frames included, by stream and direction";
        all.register_with_unit("guest_traffic", help, Unit::Bytes, bytes);
        all.register("images_pulled", "Images that the daemon has pulled or imported", self.images.clone());
        all.register("http_requests", "Requests by status class", self.requests.clone());
        let help = "IP packets that sandboxes' networks have carried, by direction";
        all.register_with_unit("network", help, Unit::Bytes, self.network.bytes.clone());
        let help = "TCP connections that sandboxes have made";
        all.register("network_connections", help, self.network.connections.clone());
        let help = "Connections, datagrams and names that network policies have denied";
        all.register("network_denials", help, self.network.denied.clone());
        let help = "Frames and packets that were dropped: malformed, without room, or above a limit";
        all.register("network_dropped_packets", help, self.network.dropped.clone());
    }

    /// What counts the bytes of a machine's streams.
    pub(super) fn traffic(&self) -> Traffic {
        self.traffic.clone()
    }

    /// A machine has come up, or has not; `restores`: from where one was saved.
    pub(super) fn start(&self, restores: bool, took: Duration, ok: bool) {
        if restores {
            count(&self.restores, ok, took, &self.restore_seconds);
        } else {
            count(&self.boots, ok, took, &self.boot_seconds);
        }
    }

    /// A command was started, or was not.
    pub(super) fn exec(&self, took: Duration, ok: bool) {
        count(&self.execs, ok, took, &self.exec_start_seconds);
    }

    /// A machine has ended; `stopping`: by a user.
    pub(super) fn exit(&self, ending: &Ending, stopping: bool) {
        let reason = if stopping { "stopped" } else { reason(ending) };
        self.exits.get_or_create(&[("reason", reason)]).inc();
    }

    /// The network of a machine has done so much since its start, of which a part may be counted already.
    pub(super) fn network(&self, handle: &Handle, now: NetworkMetrics) {
        let mut counted = handle.network.lock().unwrap_or_else(PoisonError::into_inner);
        // Of two answers the later one may come first.
        let more = |counted: &mut u64, now: u64| {
            let more = now.saturating_sub(*counted);
            *counted += more;
            more
        };
        let Network { bytes, connections, denied, dropped } = &self.network;
        let [to_guest, from_guest] = DIRECTIONS.map(|way| bytes.get_or_create_owned(&[("direction", way)]));
        to_guest.inc_by(more(&mut counted.received_bytes, now.received_bytes));
        from_guest.inc_by(more(&mut counted.sent_bytes, now.sent_bytes));
        connections.inc_by(more(&mut counted.connections, now.connections));
        denied.inc_by(more(&mut counted.denied, now.denied));
        dropped.inc_by(more(&mut counted.dropped, now.dropped));
    }

    pub(super) fn image(&self) {
        self.images.inc();
    }

    /// A request was answered with this.
    pub(crate) fn request(&self, status: StatusCode) {
        if let Some(class) = CLASSES.get(usize::from(status.as_u16() / 100).wrapping_sub(1)) {
            self.requests.get_or_create(&[("status", class)]).inc();
        }
    }
}

impl Daemon {
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// All metrics as they are now, in the text format of OpenMetrics 1.0, which Prometheus reads.
    pub(crate) async fn scrape(&self) -> String {
        let mut machines = JoinSet::new();
        for sandbox in self.table().all() {
            if let Ok(handle) = sandbox.machine("measure", &UP) {
                machines.spawn(async move { sandbox.count_network(&handle).await });
            }
        }
        machines.join_all().await;
        let states: Vec<&str> = self
            .table()
            .all()
            .iter()
            .map(|sandbox| {
                let status = sandbox.status();
                if status.lost { LOST } else { status.state.as_str() }
            })
            .collect();
        for state in State::ALL.map(State::as_str).into_iter().chain([LOST]) {
            let count = states.iter().filter(|found| **found == state).count();
            self.metrics.sandboxes.get_or_create(&[("state", state)]).set(count as i64);
        }
        let mut text = String::new();
        // To a string it cannot fail.
        let _ = encode(&mut text, &self.metrics.registry);
        text
    }
}

/// Counters that are there from the beginning, so that the first event is an increase.
fn counters(label: &'static str, values: &[&'static str]) -> Family<Labels, Counter> {
    let family = Family::default();
    for value in values {
        let _: Counter = family.get_or_create_owned(&[(label, *value)]);
    }
    family
}

fn count(results: &Family<Labels, Counter>, ok: bool, took: Duration, seconds: &Histogram) {
    results.get_or_create(&[("result", RESULTS[usize::from(!ok)])]).inc();
    if ok {
        seconds.observe(took.as_secs_f64());
    }
}

fn reason(ending: &Ending) -> &'static str {
    match ending.reason {
        Some(ExitReason::Shutdown) => "shutdown",
        Some(ExitReason::Reset) => "reset",
        Some(ExitReason::TripleFault { .. }) => "triple_fault",
        Some(ExitReason::KernelPanic { .. }) => "kernel_panic",
        Some(ExitReason::BootTimeout { .. }) => "boot_timeout",
        Some(ExitReason::Killed) => "killed",
        Some(ExitReason::Ttl { .. }) => "ttl",
        Some(ExitReason::Idle { .. }) => "idle",
        Some(ExitReason::Failed { .. }) => "failed",
        None => "process_died",
    }
}
