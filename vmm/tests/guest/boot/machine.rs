//! A machine with RAM, vCPUs, a serial console and the ports to end it; no devices.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use vmm::GuestMemory;
use vmm::arch::x86_64::{Kernel, MmioSlot, VcpuState, Vm, VmState, boot, kvm, layout};
use vmm::memory;
use vmm::spec::{Cpus, MemoryMib};
use vmm_sys_util::signal::{Killable as _, SIGRTMIN, register_signal_handler};

/// A guest that is emulated as a guest of an emulated machine takes a second or two.
const DEADLINE: Duration = Duration::from_mins(2);

/// What ends a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Reset,
    PowerOff,
    TripleFault,
    /// The console holds what [`Machine::run_until`] waits for.
    Said,
}

/// What a guest has done until it ended.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    pub(crate) console: String,
    /// How often KVM_RUN has returned, by reason.
    pub(crate) returns: BTreeMap<String, u64>,
}

pub(crate) struct Machine {
    kvm: Kvm,
    memory: GuestMemory,
    vm: Vm,
    vcpus: Vec<VcpuFd>,
    trace: Arc<Mutex<Trace>>,
}

/// What to boot.
pub(crate) struct Guest<'a> {
    pub(crate) kernel: &'a File,
    pub(crate) pvh: bool,
    pub(crate) cmdline: &'a str,
    pub(crate) initramfs: Option<&'a File>,
    pub(crate) mib: u32,
    pub(crate) cpus: u8,
    pub(crate) devices: usize,
}

impl Machine {
    /// A machine that is ready to run, and how long each step has taken.
    pub(crate) fn new(guest: &Guest<'_>) -> (Self, String) {
        let mut steps = Steps { last: Instant::now(), text: String::new() };
        let file = OpenOptions::new().read(true).write(true).open("/dev/kvm").expect("opening /dev/kvm");
        let kvm = kvm(OwnedFd::from(file)).unwrap();
        let cpus = Cpus::try_from(guest.cpus).unwrap();
        steps.done("kvm");
        let memory = memory::allocate(MemoryMib::try_from(guest.mib).unwrap()).unwrap();
        steps.done("RAM");
        let mut kernel = Kernel::load(&memory, guest.kernel).unwrap();
        assert!(kernel.pvh.is_some() || !guest.pvh, "the kernel has no PVH entry");
        kernel.pvh = kernel.pvh.filter(|_| guest.pvh);
        steps.done("kernel");
        let vm = Vm::new(&kvm, &memory).unwrap();
        steps.done("VM");
        let vcpus: Vec<_> = (0..guest.cpus).map(|id| vm.create_vcpu(id, cpus).unwrap()).collect();
        steps.done("vCPUs");
        let devices: Vec<_> = (0..guest.devices).filter_map(MmioSlot::nth).collect();
        boot::prepare(&memory, &vcpus[0], &kernel, guest.cmdline, guest.initramfs, &devices, cpus).unwrap();
        steps.done("boot");
        (Self { kvm, memory, vm, vcpus, trace: Arc::default() }, steps.text)
    }

    /// Runs the machine to its end.
    pub(crate) fn run(&mut self) -> End {
        self.run_until(None)
    }

    /// Runs the machine to its end, or until the console holds `text`.
    pub(crate) fn run_until(&mut self, text: Option<&'static str>) -> End {
        extern "C" fn nothing(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
        // For its interruption of KVM_RUN alone.
        register_signal_handler(SIGRTMIN(), nothing).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, ended) = mpsc::channel();
        let threads: Vec<_> = self
            .vcpus
            .drain(..)
            .map(|vcpu| {
                let (stop, sender, trace) = (Arc::clone(&stop), sender.clone(), Arc::clone(&self.trace));
                std::thread::spawn(move || run_vcpu(vcpu, &stop, &sender, &trace, text))
            })
            .collect();
        let end = match ended.recv_timeout(DEADLINE) {
            Ok(end) => end,
            Err(RecvTimeoutError::Timeout) => panic!("no end in sight: {:#?}", self.trace.lock().unwrap()),
            Err(RecvTimeoutError::Disconnected) => unreachable!("there is a sender here"),
        };
        stop.store(true, Ordering::SeqCst);
        self.vcpus = threads.into_iter().map(join).collect();
        end
    }

    /// Saves the machine, as if it ended here, and goes on with it in a new one that has the same RAM.
    pub(crate) fn move_to_new_vm(&mut self) {
        for vcpu in &mut self.vcpus {
            // Lets KVM finish what the last return of KVM_RUN was about.
            vcpu.set_kvm_immediate_exit(1);
            assert_eq!(vcpu.run().err().map(kvm_ioctls::Error::errno), Some(libc::EINTR));
        }
        let states: Vec<_> = self.vcpus.iter().map(|vcpu| VcpuState::save(&self.vm, vcpu).unwrap()).collect();
        let state = VmState::save(&self.vm).unwrap();
        let saved = serde_json::to_string(&(&state, &states)).unwrap();
        self.vcpus.clear();

        self.vm = Vm::new(&self.kvm, &self.memory).unwrap();
        let (state, states): (VmState, Vec<VcpuState>) = serde_json::from_str(&saved).unwrap();
        for (state, id) in states.iter().zip(0..) {
            let vcpu = self.vm.create_bare_vcpu(id).unwrap();
            state.restore(&self.vm, &vcpu).unwrap();
            self.vcpus.push(vcpu);
        }
        state.restore(&self.vm).unwrap();
    }

    /// Makes the machine a copy, as after a restore or a fork, and says so to the guest.
    pub(crate) fn become_a_copy(&self) {
        boot::renew_generation_id(&self.memory).unwrap();
        self.vm.announce_generation_id().unwrap();
    }

    pub(crate) fn trace(self) -> Trace {
        std::mem::take(&mut self.trace.lock().unwrap())
    }
}

struct Steps {
    last: Instant,
    text: String,
}

impl Steps {
    fn done(&mut self, step: &str) {
        use std::fmt::Write as _;
        write!(self.text, "{step} {:.2} ms, ", self.last.elapsed().as_secs_f64() * 1e3).unwrap();
        self.last = Instant::now();
    }
}

/// Interrupts KVM_RUN until the thread has noticed: a signal that comes just before KVM_RUN is lost.
fn join(thread: JoinHandle<VcpuFd>) -> VcpuFd {
    while !thread.is_finished() {
        thread.kill(SIGRTMIN()).unwrap();
        std::thread::yield_now();
    }
    thread.join().unwrap()
}

fn run_vcpu(
    mut vcpu: VcpuFd,
    stop: &AtomicBool,
    ended: &Sender<End>,
    trace: &Mutex<Trace>,
    text: Option<&str>,
) -> VcpuFd {
    while !stop.load(Ordering::SeqCst) {
        if let Some(end) = run_once(&mut vcpu, trace, text) {
            ended.send(end).unwrap();
            break;
        }
    }
    vcpu
}

fn run_once(vcpu: &mut VcpuFd, trace: &Mutex<Trace>, text: Option<&str>) -> Option<End> {
    const LINE_STATUS: u16 = layout::SERIAL_PORT + 5;
    const READY: u8 = 0x60;
    let (reason, end) = match vcpu.run() {
        Ok(VcpuExit::IoOut(port, data)) => {
            let end = match (port, data) {
                (layout::SERIAL_PORT, data) => {
                    let console = &mut trace.lock().unwrap().console;
                    console.push_str(&String::from_utf8_lossy(data));
                    text.filter(|text| console.ends_with(text)).map(|_| End::Said)
                }
                (layout::I8042_PORT, [layout::I8042_RESET]) => Some(End::Reset),
                (layout::SLEEP_CONTROL_PORT, [layout::POWER_OFF]) => Some(End::PowerOff),
                _ => None,
            };
            (format!("write to port {port:#x}"), end)
        }
        Ok(VcpuExit::IoIn(port, data)) => {
            data.fill(match port {
                LINE_STATUS => READY,
                layout::I8042_PORT | layout::SLEEP_STATUS_PORT => 0,
                _ => 0xff,
            });
            (format!("read of port {port:#x}"), None)
        }
        Ok(VcpuExit::MmioRead(address, data)) => {
            data.fill(0xff);
            (format!("read of {address:#x}"), None)
        }
        Ok(VcpuExit::MmioWrite(address, _)) => (format!("write to {address:#x}"), None),
        Ok(VcpuExit::Shutdown) => ("triple fault".to_owned(), Some(End::TripleFault)),
        Ok(other) => panic!("KVM_RUN returned {other:?}"),
        Err(error) if error.errno() == libc::EINTR => ("signal".to_owned(), None),
        // An AP that has been started (KVM_RUN while it was waiting).
        Err(error) if error.errno() == libc::EAGAIN => ("start of a vCPU".to_owned(), None),
        Err(error) => panic!("KVM_RUN: {error}"),
    };
    *trace.lock().unwrap().returns.entry(reason).or_default() += 1;
    end
}
