//! A machine from its specification to its end.
//!
//! ```text
//!   main thread     control socket, deadlines, the end          (this module)
//!   vcpu0..n        KVM_RUN, ports and registers                (vcpu)
//!   disk, io, net   the devices, each on the thread it lives on (crate::devices::Worker)
//! ```
//!
//! One more copies pages of a snapshot while the machine is built, and has ended before the vCPUs run (crate::snapshot).
//!
//! The main thread waits for the others, and they never for it: what they have to say is in [`Ending`].

mod build;
mod bus;
mod ending;
mod ports;
mod published;
mod ring;
mod vcpu;

pub(crate) use build::{Begin, BuildError, Disk, Parts};

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};

use crate::GuestMemory;
use crate::arch::x86_64::{Vm, VmState};
use crate::control::{DeviceMetrics, Metrics, NetworkMetrics, Request, Response, Server, Status};
use crate::devices::net::Denials;
use crate::devices::vsock::Counters;
use crate::devices::{Console, Setting, Worker, borrow};
use crate::exit::{Exit, ExitReason};
use crate::jail::{Layers, SelfReport};
use crate::snapshot::{self, MachineState, Origin, SnapshotError, Touched, TouchedError};
use crate::spec::{Cpus, MachineSpec, MemoryMib, Transport};
use crate::virtio::{DeviceError, Interrupt};
use bus::Bus;
use ending::Ending;
use published::PublishedPorts;
use vcpu::Vcpus;

const ENDED: u64 = 0;
const CONTROL: u64 = 1;
const OWNER: u64 = 2;
const FIRST_CLIENT: u64 = 3;

/// So much of the console is told when the machine ends, in bytes.
const TAIL: usize = 8 << 10;

/// A machine that runs.
#[derive(Debug)]
pub(crate) struct Machine {
    // Dropped in this order: the vCPUs use the bus, whose transports use the workers.
    vcpus: Vcpus,
    bus: Arc<Bus>,
    workers: Vec<Arc<Worker>>,
    network: Option<Network>,
    /// Of each device, by its name. Its transport is not asked: a vCPU may hold that for as long as the device takes to reset,
    /// and at once again.
    interrupts: Vec<(&'static str, Interrupt)>,
    /// Holds what KVM keeps of the machine together: memory slots, interrupt controllers, eventfds.
    vm: Arc<Vm>,
    memory: GuestMemory,
    /// What its RAM was when it went on from a snapshot; none if it was booted.
    origin: Option<Origin>,
    shape: (Cpus, MemoryMib),
    console: Console,
    ending: Ending,
    /// The agent is the first to open one.
    connections: Arc<Counters>,
    published: PublishedPorts,
    paused: bool,
    steps: Steps,
    report: SelfReport,
    /// Where guest RAM is in this process.
    ram: Vec<Range<u64>>,
    layers: Layers,
    /// Closed by its owner's death.
    owner: Option<UnixStream>,
    /// The sandbox's lock, held to the end of the process.
    _lock: Option<File>,
}

/// The network of a machine that has one.
#[derive(Debug)]
struct Network {
    /// Its device is the first, and only, one there.
    worker: Arc<Worker>,
    counters: Arc<net::engine::Counters>,
    denials: Denials,
}

/// How long a machine may do what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Until the agent has come up.
    boot: Duration,
    /// In all.
    ttl: Option<Duration>,
    /// Without anybody who has a stream to the guest.
    idle: Option<Duration>,
}

impl Limits {
    pub(crate) fn of(spec: &MachineSpec) -> Self {
        Self { boot: spec.boot_timeout(), ttl: spec.ttl(), idle: spec.idle() }
    }
}

/// When the steps of the start were done.
#[derive(Debug)]
pub(crate) struct Steps {
    began: Instant,
    done: Vec<(String, u64)>,
}

impl Steps {
    pub(crate) fn new() -> Self {
        Self { began: Instant::now(), done: Vec::new() }
    }

    pub(crate) fn done(&mut self, step: &str) {
        self.done.push((step.to_owned(), self.began.elapsed().as_micros() as u64));
    }
}

impl Machine {
    /// Starts the vCPUs and serves `control` until the machine ends; tells why it did.
    pub(crate) fn run(mut self, control: Server, limits: Limits) -> Exit {
        let reason = match self.serve(control, limits) {
            Ok(reason) => reason,
            Err(error) => ExitReason::Failed { message: format!("the machine's main loop failed: {error}") },
        };
        self.exit(reason)
    }

    /// A reset is a panic where the console says so: the kernel resets the machine after one (`panic=-1`).
    fn exit(self, reason: ExitReason) -> Exit {
        let Self { vcpus, bus, workers, network, console, .. } = self;
        drop(vcpus);
        drop(bus);
        drop(workers);
        let network = network.map(|network| NetworkMetrics::of(&network.counters));
        let reason = match (reason, console.panic()) {
            (ExitReason::Reset, Some(message)) => ExitReason::KernelPanic { message },
            (reason, _) => reason,
        };
        Exit { reason, console: console.tail(TAIL), network }
    }

    fn serve(&mut self, mut control: Server, limits: Limits) -> io::Result<ExitReason> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, borrow(self.ending.event()), EventData::new_u64(ENDED), EventFlags::IN)?;
        epoll::add(&epoll, control.listener(), EventData::new_u64(CONTROL), EventFlags::IN)?;
        if let Some(owner) = &self.owner {
            epoll::add(&epoll, owner, EventData::new_u64(OWNER), EventFlags::RDHUP)?;
        }
        if self.paused {
            self.resume().map_err(io::Error::other)?;
        } else {
            self.vcpus.resume()?;
        }
        self.steps.done("started");
        let mut events = Vec::with_capacity(16);
        loop {
            let wait = match self.deadline(limits) {
                Ok(deadline) => deadline.map(|left| Timespec {
                    tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                    tv_nsec: left.subsec_nanos().into(),
                }),
                Err(reason) => return Ok(reason),
            };
            events.clear();
            match epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), wait.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                match event.data.u64() {
                    ENDED => {}
                    CONTROL => control.accept(&epoll, FIRST_CLIENT),
                    OWNER => self.ending.because(ExitReason::Killed),
                    client => control.serve(client, |request, descriptor| self.answer(request, descriptor)),
                }
            }
            if let Some(reason) = self.ending.reason() {
                return Ok(reason.clone());
            }
        }
    }

    /// How long the machine may go on as it is; none where there is no limit.
    fn deadline(&self, Limits { boot, ttl, idle }: Limits) -> Result<Option<Duration>, ExitReason> {
        let age = self.steps.began.elapsed();
        let boot = (!self.is_ready()).then_some(boot);
        // One that stands still waits to go on.
        let idle = idle.filter(|_| self.is_ready() && !self.paused);
        let idle_left = idle.map(|idle| idle.saturating_sub(self.connections.activity.idle()));
        let left = |limit: Duration| limit.checked_sub(age).filter(|left| !left.is_zero());
        match (boot, ttl) {
            (Some(boot), _) if left(boot).is_none() => {
                Err(ExitReason::BootTimeout { seconds: boot.as_secs() })
            }
            (_, Some(ttl)) if left(ttl).is_none() => Err(ExitReason::Ttl { seconds: ttl.as_secs() }),
            _ if idle_left.is_some_and(|left| left.is_zero()) => {
                Err(ExitReason::Idle { seconds: idle.unwrap_or_default().as_secs() })
            }
            (boot, ttl) => {
                let lefts = [boot, ttl].into_iter().flatten().filter_map(left);
                Ok(lefts.chain(idle_left).min())
            }
        }
    }

    fn is_ready(&self) -> bool {
        self.connections.opened.load(Ordering::Relaxed) > 0
    }

    fn answer(&mut self, request: Request, descriptor: Option<OwnedFd>) -> Response {
        let result = match request {
            Request::Status => return Response::Status(self.status()),
            Request::Metrics => match self.metrics() {
                Ok(metrics) => return Response::Metrics(metrics),
                Err(source) => Err(DeviceError::Host { what: "reading the process's own report", source }),
            },
            Request::Ports => {
                let of = |transport| self.published.addresses(transport);
                return Response::Ports { addresses: of(Transport::Tcp), udp: of(Transport::Udp) };
            }
            Request::AddPort(target) => self.published.add(descriptor, &target),
            Request::RemovePort { address } => self.published.remove(Transport::Tcp, address),
            Request::RemoveUdpPort { address } => self.published.remove(Transport::Udp, address),
            Request::SetNetwork { policy } => self.configure(Setting::Policy(policy)),
            Request::SetLimits { limits } => self.configure(Setting::Limits(limits)),
            Request::SetResolvers { resolvers } => self.configure(Setting::Resolvers(resolvers)),
            Request::Denials { after } => {
                let denials = self.network.as_ref().map(|network| network.denials.after(after));
                return Response::Denials { denials: denials.unwrap_or_default() };
            }
            Request::Pause => self.pause(),
            Request::Resume => self.resume(),
            Request::Save => {
                return match self.save(descriptor) {
                    Ok(()) => Response::Done,
                    Err(error) => Response::Error { message: chain(&error) },
                };
            }
            Request::Touched => {
                return match self.touched(descriptor) {
                    Ok(()) => Response::Done,
                    Err(error) => Response::Error { message: chain(&error) },
                };
            }
            Request::Kill => {
                self.ending.because(ExitReason::Killed);
                Ok(())
            }
        };
        match result {
            Ok(()) => Response::Done,
            Err(error) => Response::Error { message: chain(&error) },
        }
    }

    /// vCPUs first: a driver that waits for its device to be reset must find the worker at work.
    fn pause(&mut self) -> Result<(), DeviceError> {
        if !self.paused {
            self.vcpus.pause().map_err(|source| DeviceError::Host { what: "pausing the vCPUs", source })?;
            self.paused = true;
            self.workers.iter().try_for_each(|worker| worker.pause())?;
        }
        Ok(())
    }

    fn configure(&self, setting: Setting) -> Result<(), DeviceError> {
        match &self.network {
            Some(network) => network.worker.configure(0, setting),
            None => Err(DeviceError::Host {
                what: "the machine has no network",
                source: io::ErrorKind::Unsupported.into(),
            }),
        }
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        if self.paused {
            self.workers.iter().try_for_each(|worker| worker.resume())?;
            self.vcpus.resume().map_err(|source| DeviceError::Host { what: "resuming the vCPUs", source })?;
            self.paused = false;
            self.connections.activity.touch();
        }
        Ok(())
    }

    /// Writes the paused machine to `file`.
    fn save(&self, file: Option<OwnedFd>) -> Result<(), SnapshotError> {
        let wrong = |what| SnapshotError::File { what, source: io::ErrorKind::InvalidInput.into() };
        let file = file.map(File::from).ok_or_else(|| wrong("no descriptor came for"))?;
        if !self.paused {
            return Err(wrong("the machine is not paused, for"));
        }
        let (cpus, memory) = self.shape;
        // The interrupt controllers last: to save a vCPU may change them.
        let (vcpus, devices) = (self.vcpus.save()?, self.bus.save()?);
        let state = MachineState { cpus, memory, vm: VmState::save(&self.vm)?, vcpus, devices };
        snapshot::write(&file, &self.memory, self.report.pagemap(), self.origin.as_ref(), &state)
    }

    /// Writes which pages of the RAM are the machine's own to `file`.
    fn touched(&self, file: Option<OwnedFd>) -> Result<(), TouchedError> {
        let missing = || TouchedError::Write(io::Error::new(io::ErrorKind::InvalidInput, "none came"));
        let file = file.map(File::from).ok_or_else(missing)?;
        Touched::of(&self.memory, self.report.pagemap(), self.origin.as_ref())?.write(&file)
    }

    fn status(&self) -> Status {
        Status {
            paused: self.paused,
            ready: self.is_ready(),
            uptime_ms: self.steps.began.elapsed().as_millis() as u64,
            idle_ms: self.connections.activity.idle().as_millis() as u64,
            jail: self.layers.clone(),
            network: self.network_metrics(),
        }
    }

    fn network_metrics(&self) -> Option<NetworkMetrics> {
        self.network.as_ref().map(|network| NetworkMetrics::of(&network.counters))
    }

    fn metrics(&self) -> Result<Metrics, io::Error> {
        let devices = self.interrupts.iter().map(|(device, interrupt)| {
            let counters = interrupt.counters();
            let metrics = DeviceMetrics {
                notifications: counters.notifications.load(Ordering::Relaxed),
                interrupts: counters.interrupts.load(Ordering::Relaxed),
            };
            ((*device).to_owned(), metrics)
        });
        Ok(Metrics {
            exits: self.vcpus.exits(),
            devices: devices.collect(),
            network: self.network_metrics(),
            start: self.steps.done.clone(),
            pss_kib: self.report.pss_kib()?,
            own_kib: self.report.own_kib(&self.ram)?,
            open_fds: self.report.open_fds()? as u64,
        })
    }
}

/// An error with its sources, as one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}
