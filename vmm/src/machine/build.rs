//! How a machine is put together, step after step.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use ::net::engine::Engine;
use kvm_ioctls::{IoEventAddress, VcpuFd, VmFd};
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY;

use super::bus::Bus;
use super::ending::Ending;
use super::ports::Ports;
use super::published::PublishedPorts;
use super::ring::Ring;
use super::vcpu::Vcpus;
use super::{Machine, Network, Steps};
use crate::GuestMemory;
use crate::arch::x86_64::{
    self as arch, ArchError, Kernel, KernelError, MmioSlot, Vm,
    boot::{self, BootError},
};
use crate::devices::block::{Block, DiskError};
use crate::devices::net::Denials;
use crate::devices::vsock::{Counters, Published};
use crate::devices::{Balloon, Console, Net, Rng, SerialPort, Vsock, Worker};
use crate::jail::{self, JailError, Layers, SelfReport, Thread};
use crate::memory::{self, Mapped, MemoryError};
use crate::snapshot::{self, Copying, Origin, Saved, SnapshotError};
use crate::spec::MachineSpec;
use crate::virtio::{Device, DeviceError, Face, Place, Transport};

/// The guest's address in vsock. There is one guest, so that all have the same.
const GUEST_CID: u64 = 3;

/// The open files that a machine is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) kvm: File,
    pub(crate) begin: Begin,
    pub(crate) disk: Option<Disk>,
    pub(crate) vsock: UnixListener,
    pub(crate) ready: UnixStream,
    pub(crate) owner: Option<UnixStream>,
    pub(crate) lock: Option<File>,
    pub(crate) ports: Vec<Published>,
}

/// What the vCPUs begin with.
#[derive(Debug)]
pub(crate) enum Begin {
    /// A kernel.
    Boot { kernel: File, initramfs: Option<File> },
    /// What was saved in this file over what is in `base`; other machines go on from it as well where it is shared.
    /// `touched` tells which pages such machines write to at first.
    Restore { file: File, base: Option<File>, shared: bool, touched: Option<File> },
}

/// What is in the RAM.
enum Content {
    Kernel(Kernel, Option<File>),
    Saved { saved: Box<Saved>, origin: Origin, file: File, shared: bool, copying: Option<Copying> },
}

impl Content {
    /// Which pages of the RAM are those of files.
    fn mapped(&self) -> Option<Arc<Mapped>> {
        match self {
            Self::Kernel(..) => None,
            Self::Saved { origin, .. } => Some(Arc::clone(&origin.mapped)),
        }
    }
}

/// The files of the root disk.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) base: File,
    pub(crate) lower: Option<File>,
    pub(crate) diff: File,
}

/// What cannot be had for a machine.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BuildError {
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error("the kernel cannot be loaded")]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Arch(#[from] ArchError),
    #[error("the guest cannot be started")]
    Boot(#[from] BootError),
    #[error("the root disk cannot be used")]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error("the machine cannot go on from where it was saved")]
    Snapshot(#[from] SnapshotError),
    #[error("the process cannot be locked in")]
    Jail(#[from] JailError),
    #[error("{what}")]
    Host { what: &'static str, source: io::Error },
}

/// For `map_err`: `what` failed.
fn host<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> BuildError {
    move |source| BuildError::Host { what, source: source.into() }
}

impl Machine {
    /// A machine whose vCPUs have not begun.
    pub(crate) fn build(
        spec: &MachineSpec,
        parts: Parts,
        layers: Layers,
        report: SelfReport,
        mut steps: Steps,
    ) -> Result<Self, BuildError> {
        let (memory, mut content) = match parts.begin {
            Begin::Boot { kernel, initramfs } => {
                let memory = memory::allocate(spec.memory)?;
                let kernel = Kernel::load(&memory, &kernel)?;
                (memory, Content::Kernel(kernel, initramfs))
            }
            Begin::Restore { file, base, shared, touched } => {
                let (saved, origin, memory) = Saved::open(&file, base.as_ref(), shared, spec)?;
                let copying = touched.map(|touched| Copying::start(touched, &memory)).transpose();
                let copying = copying.map_err(host("starting a thread that copies pages"))?;
                (memory, Content::Saved { saved: Box::new(saved), origin, file, shared, copying })
            }
        };
        let ram =
            memory::slots(&memory).map(|slot| slot.userspace_addr..slot.userspace_addr + slot.memory_size);
        let ram = ram.collect();
        steps.done("kernel");

        // With the memory slots before the irqchip: the other way round costs 6 ms (measured on Linux 6.18).
        let kvm = arch::kvm(parts.kvm.into())?;
        let vm = Vm::new(&kvm, &memory)?;
        steps.done("vm");

        let Devices { mut transports, workers, network, connections, published } =
            Devices::new(spec, parts.vsock, parts.ready, parts.ports, parts.disk, &memory, content.mapped())?;
        let mut slots = Vec::new();
        for (number, transport) in transports.iter().enumerate() {
            let slot =
                MmioSlot::nth(number).ok_or(ArchError::Lacks("interrupt lines for so many devices"))?;
            connect(vm.fd(), slot, transport)?;
            slots.push(slot);
        }
        steps.done("devices");

        let cpus = spec.cpus;
        let mut ring = None;
        let vcpus = match &mut content {
            Content::Kernel(kernel, initramfs) => {
                let vcpus: Vec<_> =
                    (0..cpus.get()).map(|id| vm.create_vcpu(id, cpus)).collect::<Result<_, _>>()?;
                boot::prepare(&memory, &vcpus[0], kernel, &spec.cmdline, initramfs.as_ref(), &slots, cpus)?;
                // The drivers of one that was saved have set their devices up.
                ring = Ring::new(vm.fd(), &vcpus[0], &slots)?;
                vcpus
            }
            Content::Saved { saved, copying, .. } => {
                let vcpus = saved.vcpus(&vm)?;
                saved.devices(&mut transports)?;
                // To the guest it is another machine: its random numbers must not be those of before.
                boot::renew_generation_id(&memory)?;
                vm.announce_generation_id()?;
                if let Some(copying) = copying.take() {
                    steps.done("state");
                    copied_ahead(copying, &memory, &vcpus[0]);
                    steps.done("copied");
                }
                vcpus
            }
        };
        let console = Console::default();
        let io_ports = Arc::new(Ports::new(SerialPort::new(console.clone())));
        let interrupts = transports
            .iter()
            .map(|transport| (transport.info().name, transport.interrupt().clone()))
            .collect();
        let bus = Arc::new(Bus::new(transports, ring));
        let ending = Ending::new().map_err(host("creating an eventfd"))?;
        let prepare = || jail::enter_thread(Thread::Vcpu).map_err(io::Error::other);
        let vm = Arc::new(vm);
        let vcpus = Vcpus::spawn(&vm, vcpus, &bus, &io_ports, &ending, prepare)
            .map_err(host("starting the vCPUs' threads"))?;
        jail::enter_thread(Thread::Main)?;
        let origin = match content {
            Content::Kernel(..) => None,
            Content::Saved { origin, file, shared, .. } => {
                if !shared {
                    snapshot::mark_used(&file).map_err(host("marking the snapshot"))?;
                }
                Some(origin)
            }
        };
        steps.done("vcpus");

        Ok(Self {
            vcpus,
            bus,
            workers,
            network,
            interrupts,
            vm,
            memory,
            shape: (spec.cpus, spec.memory),
            console,
            ending,
            connections,
            published,
            // The restored devices are.
            paused: origin.is_some(),
            origin,
            steps,
            report,
            ram,
            layers,
            owner: parts.owner,
            _lock: parts.lock,
        })
    }
}

/// Waits for the pages that such machines write to at first, and gives them to the guest. Without them it starts all the same.
fn copied_ahead(copying: Copying, memory: &GuestMemory, vcpu: &VcpuFd) {
    match copying.finish() {
        Ok(touched) => touched.pre_fault(memory, vcpu),
        Err(error) => {
            let message = super::chain(&error);
            let _ = writeln!(io::stderr(), "voidrun vmm: pages are not copied ahead: {message}");
        }
    }
}

/// The devices of a machine, each on its thread, with what the machine wants to know of them.
struct Devices {
    /// In the order of their addresses.
    transports: Vec<Transport>,
    workers: Vec<Arc<Worker>>,
    network: Option<Network>,
    connections: Arc<Counters>,
    published: PublishedPorts,
}

impl Devices {
    fn new(
        spec: &MachineSpec,
        vsock: UnixListener,
        ready: UnixStream,
        ports: Vec<Published>,
        disk: Option<Disk>,
        memory: &GuestMemory,
        mapped: Option<Arc<Mapped>>,
    ) -> Result<Self, BuildError> {
        let mut vsock = Vsock::new(GUEST_CID, vsock, ready).map_err(host("preparing vsock"))?;
        let connections = vsock.counters();
        let published = ports.iter().map(Published::place).collect();
        for port in ports {
            vsock.publish(port, None).map_err(host("publishing a port"))?;
        }
        let mut block: Vec<Box<dyn Device>> = Vec::new();
        if let Some(files) = disk {
            block.push(Box::new(Block::new(files.base, files.lower, files.diff)?));
        }
        let io: Vec<Box<dyn Device>> =
            vec![Box::new(vsock), Box::new(Rng::new()), Box::new(Balloon::of(mapped))];
        let mut kinds = vec![("disk", Thread::Disk, block), ("io", Thread::Io, io)];
        let denials = Denials::default();
        let mut counters = None;
        if let Some(config) = &spec.network {
            let engine =
                Engine::new(config.clone(), denials.journal()).map_err(host("preparing the network"))?;
            counters = Some(engine.counters());
            kinds.push(("net", Thread::Net, vec![Box::new(Net::new(engine))]));
        }
        let mut transports = Vec::new();
        let mut workers = Vec::new();
        let mut vsock_place = None;
        for (name, thread, devices) in kinds {
            let faces: Vec<Face> = devices.iter().map(|device| Face::of(&**device)).collect();
            let worker =
                Worker::spawn(name, devices, move || jail::enter_thread(thread).map_err(io::Error::other));
            let worker = Arc::new(worker.map_err(host("starting a thread for devices"))?);
            for (index, face) in faces.into_iter().enumerate() {
                let place = Place { worker: Arc::clone(&worker), index };
                if face.id() == VIRTIO_ID_VSOCK {
                    vsock_place = Some(place.clone());
                }
                transports.push(Transport::new(face, place, memory.clone())?);
            }
            workers.push(worker);
        }
        // The last worker is the network's, where there is one.
        let network = counters.zip(workers.last()).map(|(counters, worker)| Network {
            worker: Arc::clone(worker),
            counters,
            denials,
        });
        let published = PublishedPorts::new(vsock_place, published);
        Ok(Self { transports, workers, network, connections, published })
    }
}

/// Joins the device's notifications and interrupts to KVM.
fn connect(vm: &VmFd, slot: MmioSlot, transport: &Transport) -> Result<(), ArchError> {
    let address = IoEventAddress::Mmio(slot.base + u64::from(VIRTIO_MMIO_QUEUE_NOTIFY));
    for (queue, notifier) in transport.notifiers().iter().enumerate() {
        vm.register_ioevent(notifier, &address, queue as u32)
            .map_err(ArchError::kvm("register an ioeventfd"))?;
    }
    vm.register_irqfd(transport.interrupt().irqfd(), slot.gsi).map_err(ArchError::kvm("register an irqfd"))
}
