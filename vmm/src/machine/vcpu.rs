//! The threads that run the vCPUs.
//!
//! Each owns its vCPU. It runs until the guest has something for the VMM, or until it is kicked: then it looks at its
//! commands. A kick is the flag `immediate_exit` and a signal: the flag catches the thread before KVM_RUN, the signal in it.
//! A thread obeys only after KVM_RUN has returned EINTR: a port or register access of the guest is complete then.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;

use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{Killable as _, register_signal_handler};

use super::bus::Bus;
use super::ending::Ending;
use super::ports::{Ports, Power};
use crate::arch::x86_64::{ArchError, VcpuState, Vm};
use crate::exit::ExitReason;
use crate::jail::KICK_SIGNAL;
use crate::snapshot::SnapshotError;

/// KVM_SYSTEM_EVENT_SHUTDOWN and _RESET.
const SYSTEM_EVENT_SHUTDOWN: u32 = 1;
const SYSTEM_EVENT_RESET: u32 = 2;

/// The vCPU threads of a machine. They end when this is dropped.
#[derive(Debug)]
pub(crate) struct Vcpus {
    threads: Vec<Thread>,
    counters: Arc<Counters>,
}

#[derive(Debug)]
struct Thread {
    commands: Sender<Command>,
    /// In the `kvm_run` page of the vCPU, which is mapped until the thread has ended.
    immediate_exit: SharedFlag,
    handle: Option<JoinHandle<VcpuFd>>,
}

enum Command {
    Pause(Sender<()>),
    Resume,
    /// Of one that is halted.
    Save(Sender<Result<VcpuState, ArchError>>),
    Stop,
}

/// Returns of KVM_RUN by reason.
#[derive(Debug, Default)]
struct Counters {
    port_read: AtomicU64,
    port_write: AtomicU64,
    mmio_read: AtomicU64,
    mmio_write: AtomicU64,
    interrupted: AtomicU64,
    other: AtomicU64,
}

/// A byte that another thread and the kernel look at.
#[derive(Debug)]
struct SharedFlag(*mut u8);

// SAFETY: the byte is only reached as an atomic.
unsafe impl Send for SharedFlag {}

impl SharedFlag {
    fn set(&self, value: bool) {
        // SAFETY: the page is mapped until the thread that owns the vCPU is joined: it gives the vCPU back only then, and
        // cannot unwind (`AbortOnPanic`). Nobody else reads or writes the byte but the kernel.
        unsafe { AtomicU8::from_ptr(self.0) }.store(value.into(), Ordering::Release);
    }
}

/// A vCPU that has stopped halfway leaves a machine that no longer makes sense.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

impl Vcpus {
    /// Starts a paused thread for each vCPU. `prepare` runs first on each: it takes from it what it does not need.
    pub(crate) fn spawn(
        vm: &Arc<Vm>,
        vcpus: Vec<VcpuFd>,
        bus: &Arc<Bus>,
        ports: &Arc<Ports>,
        ending: &Ending,
        prepare: impl Fn() -> io::Result<()> + Clone + Send + 'static,
    ) -> io::Result<Self> {
        register_signal_handler(KICK_SIGNAL, on_kick).map_err(io::Error::from)?;
        let counters = Arc::<Counters>::default();
        // Threads that were started are ended, should a later one fail.
        let mut own = Self { threads: Vec::new(), counters: Arc::clone(&counters) };
        let (ready, prepared) = mpsc::sync_channel(vcpus.len());
        for (index, mut vcpu) in vcpus.into_iter().enumerate() {
            let (commands, received) = mpsc::channel();
            let immediate_exit = SharedFlag(&raw mut vcpu.get_kvm_run().immediate_exit);
            let runner = Runner {
                index: index as u32,
                vm: Arc::clone(vm),
                vcpu,
                bus: Arc::clone(bus),
                ports: Arc::clone(ports),
                ending: ending.clone(),
                commands: received,
                counters: Arc::clone(&counters),
            };
            let (ready, prepare) = (ready.clone(), prepare.clone());
            let handle = std::thread::Builder::new().name(format!("vcpu{index}")).spawn(move || {
                let _guard = AbortOnPanic;
                let _ = ready.send(prepare());
                // `spawn` waits for the end of all of these.
                drop(ready);
                runner.run()
            })?;
            own.threads.push(Thread { commands, immediate_exit, handle: Some(handle) });
        }
        drop(ready);
        for result in prepared {
            result?;
        }
        Ok(own)
    }

    /// Halts all vCPUs, and returns when none is in the guest.
    pub(crate) fn pause(&self) -> io::Result<()> {
        // All are asked before the first is waited for.
        let (done, halted) = mpsc::channel();
        for thread in &self.threads {
            thread.send(Command::Pause(done.clone()))?;
        }
        drop(done);
        match halted.iter().count() {
            count if count == self.threads.len() => Ok(()),
            _ => Err(gone()),
        }
    }

    /// The states of all vCPUs, which are halted.
    pub(crate) fn save(&self) -> Result<Vec<VcpuState>, SnapshotError> {
        let gone = |_| SnapshotError::File { what: "asking the vCPUs for", source: gone() };
        let saved = |thread: &Thread| {
            let (done, state) = mpsc::channel();
            // It waits for a command, so that it need not be kicked.
            thread.commands.send(Command::Save(done)).map_err(|_| gone(mpsc::RecvError))?;
            Ok(state.recv().map_err(gone)??)
        };
        self.threads.iter().map(saved).collect()
    }

    /// Goes on, also for the first time.
    pub(crate) fn resume(&self) -> io::Result<()> {
        for thread in &self.threads {
            thread.send(Command::Resume)?;
        }
        Ok(())
    }

    /// Returns of KVM_RUN by reason.
    pub(crate) fn exits(&self) -> BTreeMap<String, u64> {
        let counters = &self.counters;
        [
            ("portRead", &counters.port_read),
            ("portWrite", &counters.port_write),
            ("mmioRead", &counters.mmio_read),
            ("mmioWrite", &counters.mmio_write),
            ("interrupted", &counters.interrupted),
            ("other", &counters.other),
        ]
        .into_iter()
        .map(|(name, counter)| (name.to_owned(), counter.load(Ordering::Relaxed)))
        .collect()
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        for thread in &self.threads {
            let _ = thread.send(Command::Stop);
        }
        for thread in &mut self.threads {
            if let Some(handle) = thread.handle.take() {
                let _ = handle.join();
            }
        }
    }
}

impl Thread {
    fn send(&self, command: Command) -> io::Result<()> {
        self.commands.send(command).map_err(|_| gone())?;
        self.immediate_exit.set(true);
        match &self.handle {
            Some(handle) => handle.kill(KICK_SIGNAL).map_err(io::Error::from),
            None => Err(gone()),
        }
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "a vCPU's thread has ended")
}

/// What a vCPU's thread owns.
struct Runner {
    index: u32,
    vm: Arc<Vm>,
    vcpu: VcpuFd,
    bus: Arc<Bus>,
    ports: Arc<Ports>,
    ending: Ending,
    commands: Receiver<Command>,
    counters: Arc<Counters>,
}

enum Next {
    Run,
    /// The guest runs no more; the machine is about to end.
    Wait,
    Stop,
}

impl Runner {
    /// Gives the vCPU back, so that its page stays mapped until the thread is joined.
    fn run(mut self) -> VcpuFd {
        let mut next = Next::Wait;
        loop {
            next = match next {
                Next::Run => self.enter(),
                Next::Wait => self.obey(),
                Next::Stop => return self.vcpu,
            };
        }
    }

    /// Waits until it is told to go on.
    fn obey(&mut self) -> Next {
        loop {
            match self.commands.recv() {
                Ok(Command::Pause(done)) => {
                    let _ = done.send(());
                }
                Ok(Command::Save(done)) => {
                    let _ = done.send(VcpuState::save(&self.vm, &self.vcpu));
                }
                Ok(Command::Resume) => return self.kicked(),
                Ok(Command::Stop) | Err(mpsc::RecvError) => return Next::Stop,
            }
        }
    }

    /// Runs the guest until it needs the VMM or the VMM needs it.
    fn enter(&mut self) -> Next {
        let counters = &self.counters;
        let exit = self.vcpu.run();
        self.bus.catch_up();
        let reason = match exit {
            Ok(VcpuExit::IoIn(port, data)) => {
                count(&counters.port_read);
                self.ports.read(port, data);
                return Next::Run;
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                count(&counters.port_write);
                match self.ports.write(port, data) {
                    None => return Next::Run,
                    Some(Power::Off) => ExitReason::Shutdown,
                    Some(Power::Reset) => ExitReason::Reset,
                }
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                count(&counters.mmio_read);
                self.bus.read(address, data);
                return Next::Run;
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                count(&counters.mmio_write);
                self.bus.write(address, data);
                return Next::Run;
            }
            Ok(VcpuExit::Intr) => {
                count(&counters.interrupted);
                return self.kicked();
            }
            Err(error) if error.errno() == libc::EINTR => {
                count(&counters.interrupted);
                return self.kicked();
            }
            // KVM asks to be called again, for example while an application processor waits for its start.
            Err(error) if error.errno() == libc::EAGAIN => {
                count(&counters.other);
                return Next::Run;
            }
            other => {
                count(&counters.other);
                unusual(self.index, other)
            }
        };
        self.ending.because(reason);
        Next::Wait
    }

    /// Another thread wants something, or a signal came from elsewhere.
    fn kicked(&mut self) -> Next {
        // Taken back before the commands are looked at: of one that comes later, the kick is not lost.
        self.vcpu.set_kvm_immediate_exit(0);
        loop {
            match self.commands.try_recv() {
                Ok(Command::Pause(done)) => {
                    let _ = done.send(());
                    return Next::Wait;
                }
                // It runs, and is not asked for its state.
                Ok(Command::Resume | Command::Save(_)) => {}
                Err(mpsc::TryRecvError::Empty) => return Next::Run,
                Ok(Command::Stop) | Err(mpsc::TryRecvError::Disconnected) => return Next::Stop,
            }
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// What ends the machine.
fn unusual(vcpu: u32, exit: Result<VcpuExit<'_>, kvm_ioctls::Error>) -> ExitReason {
    match exit {
        Ok(VcpuExit::Shutdown) => ExitReason::TripleFault { vcpu },
        Ok(VcpuExit::SystemEvent(SYSTEM_EVENT_SHUTDOWN, _)) => ExitReason::Shutdown,
        Ok(VcpuExit::SystemEvent(SYSTEM_EVENT_RESET, _)) => ExitReason::Reset,
        Ok(VcpuExit::FailEntry(reason, _)) => ExitReason::Failed {
            message: format!("the CPU refuses to run vCPU {vcpu}: hardware reason {reason:#x}"),
        },
        Ok(VcpuExit::InternalError) => ExitReason::Failed {
            message: format!("KVM cannot run vCPU {vcpu}: the guest has done what KVM does not emulate"),
        },
        Ok(other) => ExitReason::Failed { message: format!("vCPU {vcpu} has stopped: {other:?}") },
        Err(error) => ExitReason::Failed { message: format!("KVM_RUN of vCPU {vcpu} failed: {error}") },
    }
}
