//! Flags that several verbs have.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use rootfs_builder::store::Image;
use vmm::spec::Cpus;

use super::environment::{self, Variable};
use super::error::CliError;
use super::image;
use super::images::pull::file_system_size;
use super::inherit::Inherited;
use super::session::{wants_terminal, window_size};
use super::{Context, tell, values};
use crate::api::types::{Create, Env, Exec, Network, NetworkLimits, NetworkMode, Sandbox};
use crate::daemon::{Start, StartedFrom};
use crate::images::PullPolicy;
use crate::size::{Memory, Size};

/// What a sandbox is made with.
#[derive(Debug, clap::Args)]
pub(super) struct Machine {
    /// CPUs of the sandbox, 1 to 32 [default: run.cpus, 1]
    #[arg(long, value_parser = values::cpus)]
    cpus: Option<Cpus>,
    /// Memory of the sandbox, as 512m or 2GiB [default: run.memory, 1GiB]
    #[arg(short, long, value_name = "SIZE")]
    memory: Option<Memory>,
    /// Size of its disk, as 20GiB [default: the image's]. Another size than the image has now makes the image anew
    #[arg(long, value_name = "SIZE", value_parser = file_system_size)]
    disk: Option<Size>,
    /// Whether to get the image before
    #[arg(long, value_enum, default_value_t)]
    pull: PullPolicy,
    /// Go on from this snapshot: it decides on image, CPUs, memory and disk
    #[arg(long, value_name = "NAME", conflicts_with_all = ["cpus", "memory", "disk", "pull", "cold"])]
    pub(super) from_snapshot: Option<String>,
    /// Boot it, and do not go on from where an earlier sandbox of this image and size had booted [default: run.warm]
    #[arg(long)]
    cold: bool,
    /// Tell on standard error how it has started, and in what time
    #[arg(long)]
    verbose: bool,
    #[command(flatten)]
    networking: Networking,
    #[command(flatten)]
    hosts: Hosts,
    #[command(flatten)]
    inherited: Inherited,
}

/// Names of a new sandbox.
#[derive(Debug, Default, clap::Args)]
pub(super) struct Hosts {
    /// A name and its address, which the sandbox's name server answers by itself
    #[arg(long, value_name = "NAME:ADDRESS", value_parser = host)]
    add_host: Vec<(String, String)>,
}

impl Hosts {
    /// By name, if there are any.
    pub(super) fn wanted(&self) -> Option<BTreeMap<String, String>> {
        (!self.add_host.is_empty()).then(|| self.add_host.iter().cloned().collect())
    }
}

fn host(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once([':', '=']).filter(|(name, _)| !name.is_empty());
    let (name, address) = pair.ok_or("expected NAME:ADDRESS")?;
    // As docker takes them.
    let address = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    match address.parse::<std::net::IpAddr>() {
        Ok(_) => Ok((name.to_owned(), address.to_owned())),
        Err(_) => Err(format!("{address:?} is no IP address")),
    }
}

impl Machine {
    /// The image, pulled before if need be: here, where the user's credentials and the progress bars are. None with a snapshot.
    pub(super) fn image(&self, context: &Context, text: &str) -> Result<Option<Image>, CliError> {
        self.inherited.check(self.networking.wanted().as_ref(), context)?;
        if self.from_snapshot.is_some() {
            return Ok(None);
        }
        image::get(context, &context.store()?, text, self.disk, self.pull).map(Some)
    }

    /// `create` with this image, or the snapshot.
    pub(super) fn create(
        &self,
        context: &Context,
        image: Option<&Image>,
        create: Create,
    ) -> Result<Create, CliError> {
        let cpus = self.cpus.unwrap_or(context.config.cpus.value);
        let memory = self.memory.unwrap_or(context.config.memory.value);
        let create = Create {
            image: image.map(|image| image.reference.name.to_string()),
            from_snapshot: self.from_snapshot.clone(),
            warm: self.cold.then_some(false),
            cpu: image.map(|_| cpus.get().into()),
            mem: image.map(|_| memory.mib().bytes() >> 20),
            network: self.networking.wanted(),
            hosts: self.hosts.wanted(),
            ..create
        };
        self.inherited.add_to(create, context)
    }

    /// Tells how a sandbox has started, where the user wants to know.
    pub(super) fn tell_start(&self, Sandbox { name, start, .. }: &Sandbox) {
        let Some(Start { from, ms, fallback }) = start.as_ref().filter(|_| self.verbose) else { return };
        let how = match from {
            StartedFrom::Kernel => "has booted",
            StartedFrom::Warm => "has gone on from where one of its kind had booted",
            StartedFrom::Snapshot => "has gone on from its snapshot",
            StartedFrom::Sleep => "has woken",
        };
        let why = fallback.as_ref().map(|why| format!("; it could not go on from there: {why}"));
        tell(&format!("{name} {how}, in {ms} ms{}", why.unwrap_or_default()));
    }
}

/// What a sandbox reaches.
#[derive(Debug, Default, clap::Args)]
pub(super) struct Networking {
    /// What it reaches [default: run.network, public; allow where there is an --allow]
    #[arg(long, value_enum, value_name = "MODE", visible_alias = "net")]
    network: Option<NetworkMode>,
    /// Let it reach this alone, or with --network public this address besides: a domain, *.DOMAIN, an address or a CIDR, with :PORT or :FROM-TO behind and tcp: or udp: before it
    #[arg(long, value_name = "RULE")]
    allow: Vec<String>,
    /// Do not let it reach this, whatever else is allowed
    #[arg(long, value_name = "RULE")]
    deny: Vec<String>,
    /// Let it reach this TCP port of this machine's loopback, as host.voidrun.internal:PORT
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    allow_host: Vec<u16>,
    /// So many bytes a second it may send, and as many it may get, as 500KB or 10MiB; 0 for as many as it can
    #[arg(long, value_name = "SIZE")]
    net_rate: Option<Size>,
    /// So many TCP connections a second it may begin; 0 for as many as it can
    #[arg(long, value_name = "N")]
    net_connections: Option<u32>,
}

impl Networking {
    /// What is said of it, if anything is. What is not there stays as it is.
    pub(super) fn wanted(&self) -> Option<Network> {
        let list = |rules: &[String]| (!rules.is_empty()).then(|| rules.to_vec());
        let limits = NetworkLimits {
            bytes_per_second: self.net_rate.map(|rate| rate.0),
            connections_per_second: self.net_connections,
        };
        let network = Network {
            mode: self.network,
            allow: list(&self.allow),
            deny: list(&self.deny),
            host_ports: (!self.allow_host.is_empty()).then(|| self.allow_host.clone()),
            limits: (limits != NetworkLimits::default()).then_some(limits),
        };
        (network != Network::default()).then_some(network)
    }
}

/// The variables that commands get.
#[derive(Debug, clap::Args)]
pub(super) struct Environment {
    /// A variable of the environment; without a value this environment's
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<Variable>,
    /// A file of such variables, one a line
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
}

impl Environment {
    fn values(&self) -> Result<Env, CliError> {
        let given = environment::given(&self.env_file, &self.env)?;
        environment::values(&given, |name| std::env::var_os(name))
    }

    /// For all commands of a sandbox.
    pub(super) fn of_sandbox(&self) -> Result<BTreeMap<String, String>, CliError> {
        Ok(self.values()?.into_iter().filter_map(|(name, value)| Some((name, value?))).collect())
    }
}

/// What a command starts with.
#[derive(Debug, clap::Args)]
pub(super) struct Process {
    #[command(flatten)]
    pub(super) environment: Environment,
    /// The directory that it starts in [default: the image's]
    #[arg(short, long, value_name = "DIR", value_parser = values::absolute)]
    workdir: Option<String>,
    /// Who it runs as, as name, uid, name:group or uid:gid [default: the image's, else root]
    #[arg(short, long)]
    user: Option<String>,
    /// End it after this time, as 30s or 5m [default: never]
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    pub(super) timeout: Option<Duration>,
}

impl Process {
    /// The request for a command.
    pub(super) fn exec(&self, words: Vec<String>) -> Result<Exec, CliError> {
        let exec = Exec {
            cwd: self.workdir.clone(),
            env: Some(self.environment.values()?),
            user: self.user.clone(),
            timeout: self.timeout.map(|timeout| timeout.as_secs_f64()),
            ..Exec::default()
        };
        Ok(exec.with(words))
    }
}

/// How a command is connected to who has started it.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct Streams {
    /// Pass standard input to the command
    #[arg(short, long)]
    pub(super) interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub(super) tty: bool,
}

impl Streams {
    /// `exec` with standard input and a terminal, as they are asked for.
    pub(super) fn connect(self, exec: Exec) -> Result<Exec, CliError> {
        let tty = wants_terminal(self.interactive, self.tty)?;
        Ok(Exec { tty: tty.then(window_size), stdin: Some(self.interactive), ..exec })
    }
}
