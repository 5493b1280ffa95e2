//! Sandboxes: as they are made, changed and shown.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use vmm::spec::Transport;

use super::{End, Exec, is_false, time};
use crate::daemon::{PortView, Start, State, View};
use crate::images::PullPolicy;
use crate::sandbox;

/// Variables; one that is null is taken away.
pub(crate) type Env = BTreeMap<String, Option<String>>;

/// A sandbox that is to be made.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Create {
    /// What it is to be called; a name is made up where none is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    /// An image of the store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) image: Option<String>,
    /// A snapshot to go on from: then it decides on image, CPUs, memory and disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) from_snapshot: Option<String>,
    /// Whether it may go on from where an earlier sandbox of its image, size and kernel had booted, before anything was run in that.
    /// Where nothing is said, the configuration (`run.warm`) says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) warm: Option<bool>,
    /// vCPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 32)]
    pub(crate) cpu: Option<u64>,
    /// Memory in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 128)]
    pub(crate) mem: Option<u64>,
    /// The size of the disk in MiB. Of another one than the image has now the image is made anew.
    #[serde(rename = "diskMB", skip_serializing_if = "Option::is_none")]
    pub(crate) disk_mb: Option<u64>,
    /// Variables of all commands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) env_vars: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) labels: Option<BTreeMap<String, String>>,
    /// The machine ends so many seconds after each start; 0: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ttl: Option<u64>,
    /// The machine ends, or with `autoSleep` is put to sleep, when nothing is done in it for so many seconds: no exec, no stream, no file
    /// transfer; 0: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) idle_timeout: Option<u64>,
    /// The answer is the sandbox and a line feed, and goes on for as long as there is the sandbox, which is removed when the client
    /// has closed the connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ephemeral: Option<bool>,
    /// The guest's kernel, a file of the daemon's machine: of ephemeral sandboxes, and over the Unix socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub(crate) kernel: Option<PathBuf>,
    /// More for that kernel's command line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kernel_args: Option<String>,
    /// What the sandbox is there for: it starts with the machine, which is stopped when it has ended. What it writes is kept, see
    /// `logs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) job: Option<Exec>,
    /// Whether it is removed when its job has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) auto_remove: Option<bool>,
    /// `never`: the image has to be there. `missing`, which is meant where nothing is said: it is pulled if it is not. `always`: it
    /// is pulled before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pull: Option<PullPolicy>,
    /// What it may reach.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) network: Option<Network>,
    /// Names and their addresses, which the sandbox's name server answers by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hosts: Option<BTreeMap<String, String>>,
    /// Certificates of authorities, in PEM, that its programs trust beside the image's, at most 1 MiB. Keys and other sections are refused,
    /// and text between the certificates is left out. Programs are told of the file by variables, SSL_CERT_FILE and its like.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ca_certificates: Option<String>,
    /// Ports of the sandbox that this machine is to reach; at most 64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ports: Option<Vec<Port>>,
    /// Whether it is put to sleep after its `idleTimeout` instead of ended, and wakes when something is asked of it that needs its machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) auto_sleep: Option<bool>,
    /// Not there yet.
    #[serde(skip_serializing)]
    pub(crate) mounts: Option<Vec<serde_json::Value>>,
    /// Of the published clients, as the next three: without a meaning here.
    #[serde(skip_serializing)]
    pub(crate) sync: Option<bool>,
    #[serde(skip_serializing)]
    pub(crate) org_id: Option<String>,
    #[serde(skip_serializing)]
    pub(crate) user_id: Option<String>,
    #[serde(skip_serializing)]
    pub(crate) region: Option<String>,
}

/// A port of a sandbox that this machine reaches.
#[allow(clippy::struct_field_names, reason = "the names of the wire")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Port {
    /// `tcp` where it is absent.
    #[serde(default)]
    pub(crate) protocol: PortProtocol,
    /// In the sandbox, at its loopback.
    #[schema(minimum = 1)]
    pub(crate) port: u16,
    /// An address of this machine; 127.0.0.1 where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub(crate) host_address: Option<IpAddr>,
    /// A port of this machine; one that is free is picked where it is absent or 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) host_port: Option<u16>,
    /// Where it is reached, while the sandbox runs. Told alone: what a client says of it is ignored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) url: Option<String>,
}

/// What is spoken at a port; all but `udp` are TCP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PortProtocol {
    Http,
    #[default]
    Tcp,
    Udp,
}

impl Port {
    /// The address and the port of this machine, where they are known.
    pub(crate) fn host(&self) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.host_address?, self.host_port?))
    }
}

impl From<PortView> for Port {
    fn from(PortView { port, published }: PortView) -> Self {
        Self {
            protocol: match port.protocol {
                sandbox::PortProtocol::Http => PortProtocol::Http,
                sandbox::PortProtocol::Tcp => PortProtocol::Tcp,
                sandbox::PortProtocol::Udp => PortProtocol::Udp,
            },
            port: port.guest,
            host_address: Some(port.host.ip()),
            host_port: Some(port.host.port()),
            url: published.then(|| url(port.transport(), port.host)),
        }
    }
}

/// Where a client of this machine reaches a listener.
fn url(transport: Transport, mut host: SocketAddr) -> String {
    match host.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => host.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => host.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    match transport {
        Transport::Tcp => format!("http://{host}"),
        Transport::Udp => format!("udp://{host}"),
    }
}

/// What a sandbox can reach.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Network {
    /// `none`: nothing, and a sandbox that is made so has no network device. `public`, which is meant where nothing is said: what
    /// everybody on the Internet reaches, and nothing private. `allow`: what a rule allows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mode: Option<NetworkMode>,
    /// What is reached, as `[tcp:|udp:]PLACE[:PORT[-PORT]]`, where PLACE is `*`, a domain, as `example.org` or `*.example.org`, an
    /// address or a CIDR. Of the mode `allow`, which is meant where there are such rules and nothing else is said; in the mode
    /// `public` addresses and CIDRs that are reached as well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) allow: Option<Vec<String>>,
    /// What is not, in any mode; looked at before `allow`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) deny: Option<Vec<String>>,
    /// TCP ports of this machine's loopback that the sandbox reaches, at its gateway: `host.voidrun.internal`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) host_ports: Option<Vec<u16>>,
    /// How much of it the sandbox may use; absent, for a sandbox that is shown: as much as there is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) limits: Option<NetworkLimits>,
}

/// How much of its network a sandbox may use. What is absent stays as it was, and 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct NetworkLimits {
    /// Bytes of IP packets a second that it may send, and as many that it may get. Streams go slower; datagrams above that are lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) bytes_per_second: Option<u64>,
    /// TCP connections a second that it may begin. Those above that are begun later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) connections_per_second: Option<u32>,
}

/// What a sandbox can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NetworkMode {
    /// Nothing
    None,
    /// What everybody on the Internet reaches, and nothing private
    Public,
    /// What --allow says
    Allow,
}

/// What is to be another way; what is absent stays.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Change {
    pub(crate) name: Option<String>,
    /// All of them: those that are not here go.
    pub(crate) labels: Option<BTreeMap<String, String>>,
    /// What it may reach from now on; a list that is here replaces the one before. What the sandbox has open and may no longer is cut off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) network: Option<Network>,
}

/// How a sandbox is stopped.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub(crate) struct Stop {
    /// Seconds between SIGTERM and SIGKILL to its processes.
    pub(crate) timeout: Option<u64>,
}

/// `GET /sandboxes/{id}/network/denials`.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub(crate) struct DenialParameters {
    /// The number of the last one that is known.
    pub(crate) after: Option<u64>,
}

/// Something that a sandbox was denied.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Denial {
    /// They are counted since the machine was started, from 1. The last 512 are kept.
    pub(crate) number: u64,
    /// RFC 3339.
    pub(crate) time: String,
    /// `tcp`, `udp`, `icmp` or `dns`.
    pub(crate) protocol: String,
    /// Address and port, or the name that was asked for.
    pub(crate) destination: String,
    /// The name that led there, where one is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    /// Which rule it was.
    pub(crate) rule: String,
}

/// `GET /sandboxes`.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListParameters {
    /// Counted from 1, which it is where it is absent.
    #[param(minimum = 1)]
    pub(crate) page: Option<usize>,
    /// So many on a page; 50 where it is absent.
    #[param(minimum = 1, maximum = 1000)]
    pub(crate) limit: Option<usize>,
    /// Those that have all of these: `k=v,k2=v2`
    pub(crate) labels: Option<String>,
}

/// A sandbox, as all answers show it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Sandbox {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) image: String,
    /// vCPUs.
    pub(crate) cpu: u8,
    /// MiB.
    pub(crate) mem: u32,
    /// MiB.
    #[serde(rename = "diskMB")]
    pub(crate) disk_mb: u64,
    /// One of the five that the published clients know.
    pub(crate) status: String,
    /// Exactly.
    pub(crate) state: State,
    /// Why there is no machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) exit_reason: Option<String>,
    /// Its state is `failed`, and its machine runs on: it cannot be talked to.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) lost: bool,
    /// How its machine has started, where this daemon has started it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) start: Option<Start>,
    /// The snapshot that it was made from, which need not be there any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) from_snapshot: Option<String>,
    /// What it is there for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) job: Option<Job>,
    /// RFC 3339.
    pub(crate) created_at: String,
    pub(crate) created_by: String,
    pub(crate) org_id: String,
    pub(crate) env_vars: BTreeMap<String, String>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) auto_sleep: bool,
    pub(crate) ports: Vec<Port>,
    #[serde(default)]
    pub(crate) network: Network,
    /// Seconds from each start to its end; none where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ttl: Option<u64>,
    /// Seconds in which nothing is done to its end; none where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) idle_timeout: Option<u64>,
}

/// The command that a sandbox is there for.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Job {
    /// The line, or the program and its arguments.
    pub(crate) command: String,
    /// In the guest, since the machine was started last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pid: Option<u32>,
    /// Whether it has a terminal.
    pub(crate) terminal: bool,
    /// How it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) end: Option<End>,
}

impl From<sandbox::Job> for Job {
    fn from(sandbox::Job { exec, pid, exit, .. }: sandbox::Job) -> Self {
        let command = match exec.command {
            protocol::Command::Shell(line) => line,
            protocol::Command::Argv(words) => words.join(" "),
        };
        Self { command, pid, terminal: exec.tty.is_some(), end: exit.map(End::from) }
    }
}

impl From<View> for Sandbox {
    fn from(View { id, record, state, reason, lost, start }: View) -> Self {
        let status = match state {
            State::Creating | State::Running => "running",
            State::Paused | State::Sleeping | State::Stopped => "snapshotted",
            State::Failed => "error",
        };
        // What the machine itself says, `GET .../ports` tells.
        let published = state.is_up() && !lost;
        let port = |port| Port::from(PortView { port, published });
        let network = crate::api::network::shown(record.access());
        Self {
            id,
            name: record.name,
            image: record.image_name,
            cpu: record.cpus.get(),
            mem: record.memory_mib.into(),
            disk_mb: record.disk_bytes >> 20,
            status: status.to_owned(),
            state,
            exit_reason: reason,
            lost,
            start,
            from_snapshot: record.snapshot,
            job: record.job.map(Job::from),
            created_at: time(record.created_at_ms),
            created_by: "local".to_owned(),
            org_id: "local".to_owned(),
            env_vars: record.env,
            labels: record.labels,
            auto_sleep: record.auto_sleep,
            ports: record.ports.into_iter().map(port).collect(),
            network,
            ttl: record.ttl_ms.map(|ms| ms.div_ceil(1000)),
            idle_timeout: record.idle_ms.map(|ms| ms.div_ceil(1000)),
        }
    }
}

impl Sandbox {
    /// Whether a machine of it runs.
    pub(crate) fn is_up(&self) -> bool {
        self.state.is_up() || self.lost
    }
}
