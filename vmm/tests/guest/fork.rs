//! Live fork, as far as it needs to be known to hold: a jailed process with a running machine forks, and both go on, the child
//! with a new KVM machine over the memory that it has inherited. Then the child forks, and the first process is killed.
//!
//! ```text
//!   test ──fork──▶ machine 0 ──fork──▶ machine 1 ──fork──▶ machine 2      each answers on a socket of its own
//! ```

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use vm_memory::{Bytes as _, GuestAddress};
use vmm::GuestMemory;
use vmm::arch::x86_64::{VcpuState, Vm, VmState, kvm};
use vmm::jail::{self, KICK_SIGNAL, Thread};
use vmm::memory;
use vmm::spec::{Cpus, MemoryMib};

const CPUS: u8 = 2;
/// Where vCPU `n` begins: `n` pages further on.
const CODE: u64 = 0x1000;
/// Where it counts: `n` words further on.
const COUNTERS: u64 = 0x8000;
/// Both vCPUs have to come so much further to be believed alive.
const STEP: u32 = 1000;

/// Of the test to a machine.
const COUNT: u8 = b'c';
const FORK: u8 = b'f';

#[test]
fn a_fork_goes_on_and_outlives_its_parent() {
    let pairs: Vec<_> = (0..3).map(|_| UnixStream::pair().unwrap()).collect();
    let (ours, theirs): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    let kvm = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").unwrap();
    // SAFETY: the child calls nothing that another thread of this process could hold a lock for but malloc, which the C library
    // makes usable again.
    let first = match unsafe { libc::fork() } {
        -1 => panic!("{}", std::io::Error::last_os_error()),
        0 => {
            run_first(kvm.into(), theirs);
            // SAFETY: ends the process without the test harness, which belongs to the parent.
            unsafe { libc::_exit(0) }
        }
        pid => pid,
    };
    drop(theirs);
    let machines: Vec<Remote> = ours.into_iter().map(Remote::new).collect();
    let before = machines[0].count();
    machines[0].fork();
    // Both go on from where the machine was, each in its own memory.
    for counters in [machines[0].count(), machines[1].count()] {
        assert!(
            counters.iter().zip(before).all(|(now, before)| *now >= before + STEP),
            "{counters:?} {before:?}"
        );
    }
    assert_eq!(machines[0].jail(), machines[1].jail());
    machines[1].fork();
    machines[2].count();
    machines[1].count();
    machines[0].count();
    // SAFETY: kills the process that was forked above and has not been waited for.
    unsafe {
        libc::kill(first, libc::SIGKILL);
        libc::waitpid(first, std::ptr::null_mut(), 0);
    }
    for machine in &machines[1..] {
        let once = machine.count();
        let again = machine.count();
        assert!(again.iter().zip(once).all(|(again, once)| *again >= once + STEP), "{again:?} {once:?}");
        assert_eq!(machine.jail(), [("NoNewPrivs", 1), ("Seccomp", 2)]);
    }
}

/// A machine as the test sees it.
struct Remote {
    socket: UnixStream,
}

impl Remote {
    fn new(socket: UnixStream) -> Self {
        socket.set_read_timeout(Some(Duration::from_mins(2))).unwrap();
        Self { socket }
    }

    /// Waits until both vCPUs have counted on.
    fn count(&self) -> [u32; 2] {
        self.ask(COUNT)
    }

    fn fork(&self) {
        self.ask(FORK);
    }

    fn ask(&self, command: u8) -> [u32; 2] {
        (&self.socket).write_all(&[command]).unwrap();
        let mut answer = [0; 8];
        (&self.socket).read_exact(&mut answer).unwrap();
        let word = |at: usize| u32::from_le_bytes(answer[at..at + 4].try_into().unwrap());
        [word(0), word(4)]
    }

    /// What the kernel says of the jail of the machine's process.
    fn jail(&self) -> [(&'static str, u8); 2] {
        let [pid, _] = self.ask(b'p');
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        ["NoNewPrivs", "Seccomp"].map(|name| {
            let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            (name, value.unwrap().trim().parse().unwrap())
        })
    }
}

/// The process of the first machine.
fn run_first(kvm_file: OwnedFd, sockets: Vec<UnixStream>) {
    let keep: Vec<RawFd> = sockets.iter().map(AsRawFd::as_raw_fd).chain([2, kvm_file.as_raw_fd()]).collect();
    jail::enter_process(&keep, false).unwrap();
    let kvm = kvm(kvm_file).unwrap();
    let memory = memory::allocate(MemoryMib::try_from(128).unwrap()).unwrap();
    let vm = Vm::new(&kvm, &memory).unwrap();
    let vcpus: Vec<VcpuFd> = (0..CPUS).map(|id| counting_vcpu(&vm, &memory, id)).collect();
    let machine = Machine::start(vm, vcpus);
    jail::enter_thread(Thread::Main).unwrap();
    serve(machine, &kvm, &memory, sockets);
}

/// A vCPU in real mode that increments a word for ever.
fn counting_vcpu(vm: &Vm, memory: &GuestMemory, id: u8) -> VcpuFd {
    let [low, high] = (COUNTERS as u16 + 4 * u16::from(id)).to_le_bytes();
    // lock inc dword ptr [counter]; jmp back
    let code = [0x66, 0xf0, 0xff, 0x06, low, high, 0xeb, 0xf8];
    let address = CODE + 0x1000 * u64::from(id);
    memory.write_slice(&code, GuestAddress(address)).unwrap();
    let vcpu = vm.create_vcpu(id, Cpus::try_from(CPUS).unwrap()).unwrap();
    let mut sregs = vcpu.get_sregs().unwrap();
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    vcpu.set_sregs(&sregs).unwrap();
    let regs = kvm_bindings::kvm_regs { rip: address, rflags: 2, ..Default::default() };
    vcpu.set_regs(&regs).unwrap();
    let mp_state = kvm_bindings::kvm_mp_state { mp_state: kvm_bindings::KVM_MP_STATE_RUNNABLE };
    vcpu.set_mp_state(mp_state).unwrap();
    vcpu
}

/// Answers on the first of `sockets` until its other end is closed; a fork of the machine answers on the next one.
fn serve(mut machine: Machine, kvm: &Kvm, memory: &GuestMemory, mut sockets: Vec<UnixStream>) {
    let mut command = [0];
    while matches!((&sockets[0]).read(&mut command), Ok(1)) {
        let answer = match command[0] {
            COUNT => count_on(memory),
            FORK => {
                let state = machine.park();
                // SAFETY: every other thread of this process is parked in a channel and holds no lock.
                match unsafe { libc::fork() } {
                    -1 => panic!("{}", std::io::Error::last_os_error()),
                    0 => {
                        // The parent's machine: its descriptors are closed by number, its threads are not here.
                        std::mem::forget(machine);
                        sockets.remove(0);
                        close_others(kvm, &sockets);
                        machine = Machine::restore(kvm, memory, &state);
                        continue;
                    }
                    _ => machine.go_on(),
                }
                [0; 2]
            }
            _ => [std::process::id(), 0],
        };
        let bytes = [answer[0].to_le_bytes(), answer[1].to_le_bytes()].concat();
        (&sockets[0]).write_all(&bytes).unwrap();
    }
}

/// KVM's descriptors belong to the memory of the parent and are of no use here.
fn close_others(kvm: &Kvm, sockets: &[UnixStream]) {
    let mut keep: Vec<RawFd> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
    keep.extend([2, kvm.as_raw_fd()]);
    keep.sort_unstable();
    let mut next = 3;
    for fd in keep.into_iter().filter(|fd| *fd >= 3).chain([RawFd::MAX]) {
        if next < fd {
            // SAFETY: the owners of what is closed were forgotten.
            unsafe { libc::syscall(libc::SYS_close_range, next, fd - 1, 0) };
        }
        next = fd.saturating_add(1);
    }
}

fn counters(memory: &GuestMemory) -> [u32; 2] {
    [0, 4].map(|offset| memory.load(GuestAddress(COUNTERS + offset), Ordering::Relaxed).unwrap())
}

/// Waits until both vCPUs have come [`STEP`] further.
fn count_on(memory: &GuestMemory) -> [u32; 2] {
    let before = counters(memory);
    loop {
        let now = counters(memory);
        if now.iter().zip(before).all(|(now, before)| now.wrapping_sub(before) >= STEP) {
            return now;
        }
        std::thread::yield_now();
    }
}

/// A machine whose threads can be parked.
struct Machine {
    vm: std::sync::Arc<Vm>,
    vcpus: Vec<Vcpu>,
}

struct Vcpu {
    wake: Sender<()>,
    states: Receiver<VcpuState>,
    immediate_exit: &'static AtomicU8,
    thread: std::thread::JoinHandle<()>,
}

struct State {
    vcpus: Vec<VcpuState>,
    vm: VmState,
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

impl Machine {
    fn start(vm: Vm, vcpus: Vec<VcpuFd>) -> Self {
        vmm_sys_util::signal::register_signal_handler(KICK_SIGNAL, on_kick).unwrap();
        let vm = std::sync::Arc::new(vm);
        let vcpus = vcpus.into_iter().map(|vcpu| Vcpu::start(std::sync::Arc::clone(&vm), vcpu)).collect();
        Self { vm, vcpus }
    }

    fn restore(kvm: &Kvm, memory: &GuestMemory, state: &State) -> Self {
        let vm = Vm::new(kvm, memory).unwrap();
        let vcpus: Vec<VcpuFd> = (0..CPUS).map(|id| vm.create_bare_vcpu(id).unwrap()).collect();
        for (vcpu, state) in vcpus.iter().zip(&state.vcpus) {
            state.restore(&vm, vcpu).unwrap();
        }
        state.vm.restore(&vm).unwrap();
        Self::start(vm, vcpus)
    }

    fn park(&self) -> State {
        use vmm_sys_util::signal::Killable as _;
        for vcpu in &self.vcpus {
            vcpu.immediate_exit.store(1, Ordering::Release);
            vcpu.thread.kill(KICK_SIGNAL).unwrap();
        }
        let vcpus = self.vcpus.iter().map(|vcpu| vcpu.states.recv().unwrap()).collect();
        State { vcpus, vm: VmState::save(&self.vm).unwrap() }
    }

    fn go_on(&self) {
        for vcpu in &self.vcpus {
            vcpu.wake.send(()).unwrap();
        }
    }
}

impl Vcpu {
    fn start(vm: std::sync::Arc<Vm>, mut vcpu: VcpuFd) -> Self {
        let (wake, woken) = mpsc::channel();
        let (send, states) = mpsc::channel();
        // SAFETY: the page is mapped for as long as the thread lives, which is as long as the process.
        let immediate_exit = unsafe { AtomicU8::from_ptr(&raw mut vcpu.get_kvm_run().immediate_exit) };
        let thread = std::thread::spawn(move || {
            jail::enter_thread(Thread::Vcpu).unwrap();
            loop {
                match vcpu.run() {
                    Ok(VcpuExit::Intr) => {}
                    Err(error) if error.errno() == libc::EINTR => {}
                    other => panic!("{other:?}"),
                }
                vcpu.set_kvm_immediate_exit(0);
                send.send(VcpuState::save(&vm, &vcpu).unwrap()).unwrap();
                woken.recv().unwrap();
            }
        });
        Self { wake, states, immediate_exit, thread }
    }
}
