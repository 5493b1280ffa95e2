//! The control socket of a machine: how whoever runs it asks for its state, pauses it and ends it.
//!
//! A Unix stream socket. At the connection the machine sends a [`Greeting`], and with it a pidfd of its process: the peer
//! learns of its death from that descriptor or from the end of the stream, and from nothing else. Then each line of the
//! client is a [`Request`], each line of the machine the [`Response`] to it, in order. Both are JSON. One descriptor may come
//! with a request (SCM_RIGHTS); those beyond are closed, and so is one that the request has no use for.

mod client;
mod server;

pub use client::{Client, Contact, ControlError};
pub(crate) use server::Server;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use net::engine::Limits;
use net::policy::Policy;
use serde::{Deserialize, Serialize};

use crate::devices::net::NumberedDenial;
use crate::jail::Layers;
use crate::spec::Target;

/// A longer line is refused, in bytes.
pub const MAX_LINE: usize = 64 << 10;

/// What the machine says first.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Greeting {
    /// [`crate::spec::VERSION`] of the machine's process.
    pub version: u32,
    /// The sandbox's id.
    pub id: String,
}

/// What a client asks for.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", tag = "request")]
pub enum Request {
    /// How the machine is: [`Response::Status`].
    Status,
    /// What it has cost: [`Response::Metrics`].
    Metrics,
    /// Halts the vCPUs and the devices. [`Response::Done`] when they stand still, also when they did already.
    Pause,
    /// Goes on after a pause. [`Response::Done`], also when it was not paused.
    Resume,
    /// Which ports of the host are published: [`Response::Ports`].
    Ports,
    /// Publishes one more: a TCP socket that listens, or a UDP socket that is bound, comes with the request. [`Response::Done`].
    AddPort(Target),
    /// Closes the listener at an address. [`Response::Done`], also where there is none. What is connected stays so.
    RemovePort {
        /// Where it listens.
        address: SocketAddr,
    },
    /// Closes the UDP socket at an address, and forgets its clients. [`Response::Done`], also where there is none.
    RemoveUdpPort {
        /// Where it is bound.
        address: SocketAddr,
    },
    /// Another network policy: it holds, and flows that it does not allow are ended, when [`Response::Done`] comes.
    SetNetwork {
        /// The policy. One of mode `none` takes no device away, and allows nothing.
        policy: Policy,
    },
    /// Other limits of the network, from now on. [`Response::Done`].
    SetLimits {
        /// All of them: one that is not there is none.
        limits: Limits,
    },
    /// The host has other name servers. [`Response::Done`].
    SetResolvers {
        /// All of them.
        resolvers: Vec<SocketAddr>,
    },
    /// What the network policy has denied: [`Response::Denials`].
    Denials {
        /// The number of the last one that the client knows, 0 at first.
        after: u64,
    },
    /// Writes the machine, which is paused, to a file that comes with the request, empty and open for reading and writing: see
    /// [`crate::snapshot`]. [`Response::Done`] when it is on the disk.
    Save,
    /// Writes which pages of its RAM are its own by now, not the snapshot's that it has gone on from, to an empty file that comes with
    /// the request: for [`touched`](crate::spec::SnapshotFds::touched) of another machine of that snapshot. [`Response::Done`] when they
    /// are written, [`Response::Error`] when it was booted, or when they are too many to be copied ahead.
    Touched,
    /// Ends the machine at once. [`Response::Done`], and then the end of the stream.
    Kill,
}

/// What the machine answers.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", tag = "response")]
pub enum Response {
    /// To [`Request::Status`].
    Status(Status),
    /// To [`Request::Metrics`].
    Metrics(Metrics),
    /// To [`Request::Ports`].
    Ports {
        /// Where its listeners of TCP listen.
        addresses: Vec<SocketAddr>,
        /// Where its sockets of UDP are bound.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        udp: Vec<SocketAddr>,
    },
    /// To [`Request::Denials`].
    Denials {
        /// The oldest first; not all of them where they are many.
        denials: Vec<NumberedDenial>,
    },
    /// What was asked for is done.
    Done,
    /// It is not.
    Error {
        /// What failed and why.
        message: String,
    },
}

/// How a machine is.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Whether its vCPUs are halted.
    pub paused: bool,
    /// Whether the agent has come up.
    pub ready: bool,
    /// Since the start of the process, in ms.
    pub uptime_ms: u64,
    /// For so many ms no client has had a stream to the guest.
    #[serde(default)]
    pub idle_ms: u64,
    /// What the process has given up.
    pub jail: Layers,
    /// What the network has done; none where the machine has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkMetrics>,
}

/// What a machine has cost since it was started.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Metrics {
    /// Returns of KVM_RUN to this process by reason, over all vCPUs.
    pub exits: BTreeMap<String, u64>,
    /// Notifications and interrupts by device.
    pub devices: BTreeMap<String, DeviceMetrics>,
    /// What the network has done; none where the machine has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkMetrics>,
    /// Steps of the start, in order: their names, and when they were done, in µs since the process began.
    pub start: Vec<(String, u64)>,
    /// The proportional set size of the process in KiB, guest RAM included.
    pub pss_kib: u64,
    /// Private memory of the process in KiB without guest RAM.
    pub own_kib: u64,
    /// Open descriptors.
    pub open_fds: u64,
}

/// What has gone between a device and its driver.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct DeviceMetrics {
    /// Queues were notified so often.
    pub notifications: u64,
    /// So many interrupts were raised.
    pub interrupts: u64,
}

/// What a machine's network has done.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NetworkMetrics {
    /// Bytes of IP packets from the guest.
    pub sent_bytes: u64,
    /// And to it.
    pub received_bytes: u64,
    /// TCP connections of the guest that were established.
    pub connections: u64,
    /// Flows and names that the policy has denied.
    pub denied: u64,
    /// Frames and packets that were dropped.
    pub dropped: u64,
}

impl NetworkMetrics {
    pub(crate) fn of(counters: &net::engine::Counters) -> Self {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Self {
            sent_bytes: read(&counters.sent_bytes),
            received_bytes: read(&counters.received_bytes),
            connections: read(&counters.connections),
            denied: read(&counters.denied),
            dropped: read(&counters.dropped),
        }
    }
}
