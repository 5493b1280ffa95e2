//! From an image to a machine whose agent has come up.

use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use protocol::{Config, Hello, Request, Sender};
use rustix::fs::{MemfdFlags, memfd_create};
use tokio::net::UnixStream;
use vmm::spec::{DiskFds, Fds, MachineSpec, PortFds, SnapshotFds, VERSION};

use super::directory::{Directory, DirectoryError};
use super::exec::ExecError;
use super::frames::{FrameReader, StreamError};
use super::handle::{CONTROL, EXIT, Ending, Handle, LOG, VSOCK};
use super::identity;
use super::kernel::Kernel;
use super::network;
use super::port::Listener;
use super::process::{Descriptors, Process, spawn};
use super::record::Record;
use super::traffic::Traffic;
use crate::agent;

/// What the kernel is told, beside the machine's devices, which ACPI describes.
const CMDLINE: &[&str] = &[
    // Each message is an exit of the guest: only what a user has to see.
    "quiet",
    "loglevel=1",
    // The last words of a kernel that panics; there is no other console. `keep`: also after the start.
    "earlyprintk=serial,0x3f8,nocfg,keep",
    // Resets by the i8042, which the machine takes for the end, and at once after a panic.
    "reboot=k",
    "panic=-1",
    // KVM's clock source is the time-stamp counter of the host, which its kernel has checked already.
    "tsc=reliable",
    // The timer of the in-kernel irqchip works; finding that out costs the guest time.
    "no_timer_check",
    // There is no PCI bus to look for.
    "pci=off",
    // The guest has no other source of entropy so early, and trusts the host's CPU anyway.
    "random.trust_cpu=on",
];

/// A guest that boots at all is up in a second; one on an emulated CPU that many share takes far longer.
const BOOT_TIMEOUT: Duration = Duration::from_mins(1);
/// The machine keeps the deadline itself; this much later we no longer trust it to.
const SLACK: Duration = Duration::from_secs(10);
/// Before a guest is asked again that has taken no connection.
const AGAIN: Duration = Duration::from_millis(100);
/// Of the host, for the guest's random numbers, in bytes.
const ENTROPY: usize = 64;

/// What a machine is made of.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    /// What the sandbox is.
    pub(crate) record: &'a Record,
    /// Its root file system; nothing is written to it.
    pub(crate) rootfs: &'a File,
    pub(crate) begin: Begin,
    /// What the kernel is told beside what it always is, behind that.
    pub(crate) cmdline: &'a str,
    /// The listeners of its ports.
    pub(crate) ports: Vec<Listener>,
}

/// What a machine begins with.
#[derive(Debug)]
pub(crate) enum Begin {
    /// A kernel, which boots.
    Kernel(Kernel),
    /// A machine as it was saved: the sandbox's own, when it fell asleep, or one of the store's snapshots.
    Snapshot {
        file: File,
        /// What that is over, if it is over another.
        base: Option<File>,
        /// Which of its pages others that went on from it have written to first, where that is known.
        touched: Option<File>,
        /// Whether it has a network device.
        network: bool,
        /// Whether it is a snapshot of the store: others go on from it as well, and the guest becomes this sandbox.
        shared: bool,
    },
}

/// A machine that has not come up. Nothing of it runs.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    /// The machine has no KVM, or does not show it.
    #[error(
        "this machine has no /dev/kvm: virtualisation may be switched off in the firmware, or not be passed on to this \
         virtual machine or container; `voidrun doctor` tells more"
    )]
    NoKvm,
    /// This user may not use it.
    #[error(
        "this user may not open /dev/kvm: `sudo usermod -aG kvm $USER` puts it into the group kvm, from the next login on; \
         `voidrun doctor` tells more"
    )]
    KvmDenied(#[source] io::Error),
    /// It is there and does not work.
    #[error("cannot open /dev/kvm: `voidrun doctor` tells more")]
    Kvm(#[source] io::Error),
    /// The sandbox's files.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// Something else that the host does for a machine.
    #[error("cannot {action}")]
    Host { action: &'static str, source: io::Error },
    /// The machine has ended, or was never there.
    #[error(transparent)]
    Ended(Ending),
    /// Neither has the agent come up nor the machine ended.
    #[error("the machine has neither come up nor ended within {0} s")]
    Silent(u64),
    /// What came up is not our agent.
    #[error("the guest has come up and cannot be talked to")]
    Agent(#[source] StreamError),
    /// It has gone on from where it was saved, and has not become what it is to be.
    #[error("the guest has not taken its identity")]
    Identity(#[source] ExecError),
    /// The snapshot was taken of a machine that an earlier release had started.
    #[error(
        "the guest's agent is of an earlier release, and cannot become another sandbox's: take the snapshot anew, of a sandbox that this release has started"
    )]
    Old,
    /// It is one of another time.
    #[error("the guest's agent speaks version {0} of the protocol, this voidrun {ours}", ours = protocol::VERSION)]
    Version(u32),
}

fn host(action: &'static str) -> impl FnOnce(io::Error) -> LaunchError {
    move |source| LaunchError::Host { action, source }
}

/// Starts the machine of a sandbox, on the disk that an earlier one has left if there was one, and waits until its agent has
/// come up. `lock` is the sandbox's.
pub(crate) async fn boot(
    directory: &Arc<Directory>,
    lock: OwnedFd,
    launch: Launch<'_>,
) -> Result<Handle, LaunchError> {
    let Started { process, owner, ready, guest } = start(directory, lock, open_kvm()?, launch)?;
    let directory = Arc::clone(directory);
    let (traffic, network) = (Traffic::default(), Mutex::default());
    let mut handle = Handle { directory, process, traffic, network, _owner: owner, agent: None };
    let up = async {
        match guest {
            Guest::Boots => come_up(&handle, ready).await,
            Guest::GoesOn(config) => {
                // At once: its agent listens already, while it finds that its own first stream has gone.
                let becomes_another = config.is_some();
                let (agent, reseeded) = tokio::join!(come_up(&handle, ready), handle.reseed(config));
                // Where the machine has ended, this tells why.
                let agent = agent?;
                reseeded?;
                if becomes_another && !agent.1.becomes_another {
                    return Err(LaunchError::Old);
                }
                Ok(agent)
            }
        }
    };
    match up.await {
        Ok(agent) => {
            handle.agent = Some(agent);
            Ok(handle)
        }
        Err(error) => {
            // It blocks until its memory is given back.
            let ended = tokio::task::spawn_blocking(move || handle.end()).await;
            ended.map_err(io::Error::from).flatten().map_err(host("end the machine"))?;
            Err(error)
        }
    }
}

impl Handle {
    /// After a restore: the guest gets the time of day and random numbers of its own, and where it becomes another sandbox, what it is
    /// from now on. Then its commands go on.
    async fn reseed(&self, config: Option<Box<Config>>) -> Result<(), LaunchError> {
        // It has still to come up.
        let limit = BOOT_TIMEOUT + SLACK;
        let asked = async {
            loop {
                let request = reseed(config.clone()).map_err(host("get random numbers"))?;
                match self.ask(&request).await {
                    // The machine's device gives up sooner on a guest that is short of CPU; nothing of the request has reached it.
                    Err(error @ ExecError::Connect(_)) => tokio::select! {
                        _ = self.ended() => return Err(LaunchError::Identity(error)),
                        () = tokio::time::sleep(AGAIN) => {}
                    },
                    done => return done.map_err(LaunchError::Identity),
                }
            }
        };
        tokio::time::timeout(limit, asked).await.unwrap_or(Err(LaunchError::Silent(limit.as_secs())))
    }
}

/// What a guest is told that has gone on from where it was saved; `config`: of another sandbox.
pub(crate) fn reseed(config: Option<Box<Config>>) -> io::Result<Request> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut entropy = vec![0; ENTROPY];
    rustix::rand::getrandom(&mut entropy, rustix::rand::GetRandomFlags::empty())?;
    Ok(Request::Reseed { wall_time_ns: now.as_nanos() as u64, entropy, config })
}

/// A process with our ends of what connects us.
struct Started {
    process: Process,
    owner: Option<StdUnixStream>,
    ready: UnixStream,
    guest: Guest,
}

/// How the guest comes up.
enum Guest {
    Boots,
    /// From where it was saved. Where that was another sandbox: with what it is from now on.
    GoesOn(Option<Box<Config>>),
}

fn start(
    directory: &Directory,
    lock: OwnedFd,
    kvm: File,
    launch: Launch<'_>,
) -> Result<Started, LaunchError> {
    let record = launch.record;
    let base = launch.rootfs.try_clone().map_err(host("open the image again"))?;
    let mut config = Config {
        hostname: directory.id().to_string(),
        machine_id: Some(identity::machine_id(directory.id())),
        ca_certificates: record.ca_certificates.as_deref().map(str::to_owned),
        ..Config::default()
    };
    let mut inherits = Descriptors::default();
    let device = match &launch.begin {
        Begin::Kernel(_) => None,
        Begin::Snapshot { network, .. } => Some(*network),
    };
    let network = network::of(record.access(), &record.hosts, &mut config, device);
    if let Some(network) = &mut config.network {
        network.mac = Some(identity::mac(directory.id()));
    }
    let (kernel, initramfs, snapshot, guest) = match launch.begin {
        Begin::Kernel(kernel) => {
            directory.clear_snapshots()?;
            directory.clear_base()?;
            let initramfs = in_memory("initramfs", &agent::initramfs(&config))?;
            (Some(inherits.add(kernel.file)), Some(inherits.add(initramfs)), None, Guest::Boots)
        }
        Begin::Snapshot { file, base, touched, shared, .. } => {
            let [base, touched] = [base, touched].map(|file| file.map(|file| inherits.add(file)));
            let snapshot = SnapshotFds { file: inherits.add(file), base, touched, shared };
            let guest = Guest::GoesOn(shared.then(|| Box::new(config)));
            (None, None, Some(snapshot), guest)
        }
    };
    // A sandbox that is kept outlives us.
    let owner = if record.ephemeral { Some(StdUnixStream::pair()) } else { None };
    let (owner, its_owner) = owner.transpose().map_err(host("make a pair of sockets"))?.unzip();
    let (ready, theirs) = StdUnixStream::pair().map_err(host("make a pair of sockets"))?;
    ready.set_nonblocking(true).map_err(host("prepare a socket"))?;
    let ready = UnixStream::from_std(ready).map_err(host("prepare a socket"))?;

    for name in [CONTROL, VSOCK, EXIT, LOG] {
        directory.clear(name)?;
    }
    let fds = Fds {
        kvm: inherits.add(kvm),
        kernel,
        snapshot,
        initramfs,
        disk: Some(DiskFds {
            base: inherits.add(base),
            lower: directory.lower_disk()?.map(|lower| inherits.add(lower)),
            diff: inherits.add(directory.disk()?),
        }),
        lock: Some(inherits.add(lock)),
        control: inherits.add(directory.listen(CONTROL)?),
        vsock: inherits.add(directory.listen(VSOCK)?),
        ready: inherits.add(theirs),
        exit: Some(inherits.add(directory.create_exit_file(EXIT)?)),
        owner: its_owner.map(|owner| inherits.add(owner)),
        ports: launch.ports.into_iter().map(|port| publish(&mut inherits, port)).collect(),
    };
    let spec = MachineSpec {
        version: VERSION,
        id: directory.id().to_string(),
        cpus: record.cpus,
        memory: record.memory_mib,
        cmdline: [&CMDLINE.join(" "), launch.cmdline].join(" ").trim_end().to_owned(),
        fds,
        network,
        boot_timeout_ms: BOOT_TIMEOUT.as_millis() as u64,
        ttl_ms: record.ttl_ms,
        // The daemon puts those to sleep.
        idle_ms: record.idle_ms.filter(|_| !record.auto_sleep),
    };
    let spec = serde_json::to_vec(&spec).map_err(|e| host("write the machine's specification")(e.into()))?;
    let spec = in_memory("spec", &spec)?;
    let log = directory.create_file(LOG)?;
    let process = spawn(spec.into(), inherits, log).map_err(host("start the machine's process"))?;
    Ok(Started { process, owner, ready, guest })
}

fn publish(inherits: &mut Descriptors, port: Listener) -> PortFds {
    PortFds { listener: inherits.add(port.socket), target: port.target }
}

fn open_kvm() -> Result<File, LaunchError> {
    File::options().read(true).write(true).open("/dev/kvm").map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => LaunchError::NoKvm,
        io::ErrorKind::PermissionDenied => LaunchError::KvmDenied(error),
        _ => LaunchError::Kvm(error),
    })
}

/// A file without a name, read from its beginning.
fn in_memory(name: &'static str, content: &[u8]) -> Result<File, LaunchError> {
    let write = || {
        let mut file = File::from(memfd_create(name, MemfdFlags::CLOEXEC)?);
        file.write_all(content)?;
        file.rewind()?;
        Ok(file)
    };
    write().map_err(host("make a file in memory"))
}

/// Waits for the agent's first words, or for the end of the machine.
async fn come_up(handle: &Handle, ready: UnixStream) -> Result<(UnixStream, Hello), LaunchError> {
    let limit = BOOT_TIMEOUT + SLACK;
    let mut reader = FrameReader::new(ready, Sender::Agent);
    let first = tokio::select! {
        biased;
        first = reader.next() => first,
        ended = handle.ended() => return Err(ended.map_or_else(host("wait for the machine"), LaunchError::Ended)),
        () = tokio::time::sleep(limit) => return Err(LaunchError::Silent(limit.as_secs())),
    };
    let hello = match first.and_then(|frame| Ok(frame.message::<Hello>()?)) {
        Ok(hello) => hello,
        // The stream ends a little before the process does.
        Err(error @ (StreamError::End | StreamError::Io(_))) => {
            return Err(match tokio::time::timeout(SLACK, handle.ended()).await {
                Ok(ended) => ended.map_or_else(host("wait for the machine"), LaunchError::Ended),
                Err(_) => LaunchError::Agent(error),
            });
        }
        Err(error) => return Err(LaunchError::Agent(error)),
    };
    if hello.version != protocol::VERSION {
        return Err(LaunchError::Version(hello.version));
    }
    Ok((reader.into_inner(), hello))
}
