//! Which system calls each kind of thread may make, and why where the name does not tell.
//!
//! What is not here on purpose: anything with a path; `bind` and `listen`; `socket` and `connect`, but for the thread of the network
//! (all other sockets come by descriptor, or are a pair of streams, and a Unix socket with a path leads to the services of the user, where Landlock
//! does not look yet: that thread can make none); `execve`; `kill`.

use kvm_bindings as kvm;
use libc::{
    SYS_accept4, SYS_brk, SYS_clock_gettime, SYS_clock_nanosleep, SYS_clone, SYS_clone3, SYS_close,
    SYS_close_range, SYS_connect, SYS_dup, SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_pwait,
    SYS_epoll_pwait2, SYS_epoll_wait, SYS_eventfd2, SYS_exit, SYS_exit_group, SYS_fallocate, SYS_fcntl,
    SYS_fdatasync, SYS_fork, SYS_fstat, SYS_fsync, SYS_ftruncate, SYS_futex, SYS_getdents64, SYS_getpid,
    SYS_getrandom, SYS_getsockname, SYS_getsockopt, SYS_gettid, SYS_ioctl, SYS_lseek, SYS_madvise, SYS_mmap,
    SYS_mprotect, SYS_mremap, SYS_munmap, SYS_nanosleep, SYS_newfstatat, SYS_pidfd_open, SYS_pipe2, SYS_poll,
    SYS_ppoll, SYS_prctl, SYS_pread64, SYS_preadv, SYS_pwrite64, SYS_pwritev, SYS_read, SYS_readv,
    SYS_recvfrom, SYS_recvmsg, SYS_restart_syscall, SYS_rseq, SYS_rt_sigaction, SYS_rt_sigprocmask,
    SYS_rt_sigreturn, SYS_sched_getaffinity, SYS_sched_yield, SYS_seccomp, SYS_sendmsg, SYS_sendto,
    SYS_set_robust_list, SYS_set_tid_address, SYS_setsockopt, SYS_shutdown, SYS_sigaltstack, SYS_socket,
    SYS_socketpair, SYS_statx, SYS_tgkill, SYS_timerfd_create, SYS_timerfd_settime, SYS_tkill, SYS_wait4,
    SYS_waitid, SYS_write, SYS_writev, c_int, c_long,
};
use rustix::ioctl::opcode::{none, read, read_write, write};

use super::Thread;

/// The signal that makes a vCPU's thread return from KVM_RUN. The first that both C libraries leave to the program: glibc's
/// SIGRTMIN is 34, musl's is 35.
pub const KICK_SIGNAL: c_int = 35;

/// A system call, and when it is allowed.
pub(super) type Call = (c_long, When);

/// When a system call is allowed. Arguments count from 0 and are taken as 32 bits, except where it is said.
#[derive(Clone, Copy, Debug)]
pub(super) enum When {
    /// Whatever its arguments are.
    Always,
    /// The argument is one of these.
    OneOf(u8, &'static [u32]),
    /// The argument has none of these bits.
    Without(u8, u32),
    /// The argument, all 64 bits, is 0.
    Null(u8),
    /// Each of these arguments has its value.
    Both([(u8, u32); 2]),
    /// The three arguments of `socket`, without the flags of the descriptor, are one of these.
    Socket(&'static [(c_int, c_int, c_int)]),
}
use When::{Always, Both, Null, OneOf, Socket, Without};

/// What together makes up the rules of a kind of thread.
pub(super) fn tables(thread: Thread) -> &'static [&'static [Call]] {
    match thread {
        // With the tables of all the others but Net: a forked machine starts its threads from under the filter of Main.
        Thread::Main => &[EVERY, VCPU, WORKER, DISK, IO, MAIN],
        Thread::Vcpu => &[EVERY, VCPU],
        Thread::Disk => &[EVERY, WORKER, DISK],
        Thread::Io => &[EVERY, WORKER, IO],
        Thread::Net => &[EVERY, WORKER, NET],
    }
}

/// Answered with ENOSYS by every filter, since the libraries have a way without them. The arguments of clone3 are in memory,
/// where no filter can look: glibc falls back to clone. statx and newfstatat take paths, which Landlock does not deny:
/// the standard library asks them for the length of a file before it reads it to its end, and does without.
pub(super) const NOT_IMPLEMENTED: &[c_long] = &[
    SYS_clone3,
    SYS_statx,
    SYS_newfstatat,
    // glibc's malloc asks /sys/devices/system/cpu/online how many arenas to have, when several threads are there, and
    // /proc/sys/vm/overcommit_memory before it gives one's memory back. It does without either.
    #[cfg(target_env = "gnu")]
    libc::SYS_openat,
];

/// What the standard library and malloc, of glibc and of musl, need in a thread, and descriptors.
const EVERY: &[Call] = &[
    (SYS_read, Always),
    (SYS_write, Always),
    (SYS_readv, Always),
    (SYS_writev, Always),
    (SYS_close, Always),
    (SYS_fcntl, OneOf(1, &[libc::F_GETFD as u32])), // debug builds, of each descriptor that they close
    (SYS_futex, Always),
    (SYS_mmap, Without(2, libc::PROT_EXEC as u32)),
    (SYS_mprotect, Without(2, libc::PROT_EXEC as u32)), // guard pages of stacks, arenas of glibc's malloc
    (SYS_mremap, Always),
    (SYS_munmap, Always),
    (SYS_madvise, Always),
    (SYS_brk, Always),
    (SYS_sched_getaffinity, Always), // glibc: how many arenas malloc should have; where a thread's stack is
    (SYS_sigaltstack, Always),       // the standard library's report of a stack overflow
    (SYS_rt_sigaction, Always),
    (SYS_rt_sigprocmask, Always),
    (SYS_rt_sigreturn, Always),
    (SYS_restart_syscall, Always), // after SIGSTOP and SIGCONT, in place of a call with a timeout
    (SYS_sched_yield, Always),
    (SYS_gettid, Always), // in the message of a panic
    (SYS_getpid, Always),
    (SYS_getrandom, Always),     // keys of HashMap; the entropy device
    (SYS_clock_gettime, Always), // where the vDSO cannot read the clock
    (SYS_clock_nanosleep, Always),
    (SYS_nanosleep, Always), // musl
    (SYS_exit, Always),
    (SYS_exit_group, Always),
];

const VCPU: &[Call] = &[(SYS_ioctl, OneOf(1, VCPU_IOCTLS))];

/// KVM_RUN first: the list is searched from the front, at each return to the guest. The rest saves and restores a vCPU.
const VCPU_IOCTLS: &[u32] = &[
    none(KVM, 0x80),                          // RUN
    read::<kvm::kvm_regs>(KVM, 0x81),         // GET_REGS
    write::<kvm::kvm_regs>(KVM, 0x82),        // SET_REGS
    read::<kvm::kvm_sregs>(KVM, 0x83),        // GET_SREGS
    write::<kvm::kvm_sregs>(KVM, 0x84),       // SET_SREGS
    read_write::<kvm::kvm_msrs>(KVM, 0x88),   // GET_MSRS
    write::<kvm::kvm_msrs>(KVM, 0x89),        // SET_MSRS
    read::<kvm::kvm_fpu>(KVM, 0x8c),          // GET_FPU
    write::<kvm::kvm_fpu>(KVM, 0x8d),         // SET_FPU
    read::<kvm::kvm_lapic_state>(KVM, 0x8e),  // GET_LAPIC
    write::<kvm::kvm_lapic_state>(KVM, 0x8f), // SET_LAPIC
    write::<kvm::kvm_cpuid2>(KVM, 0x90),      // SET_CPUID2
    read_write::<kvm::kvm_cpuid2>(KVM, 0x91), // GET_CPUID2
    read::<kvm::kvm_mp_state>(KVM, 0x98),     // GET_MP_STATE
    write::<kvm::kvm_mp_state>(KVM, 0x99),    // SET_MP_STATE
    read::<kvm::kvm_vcpu_events>(KVM, 0x9f),  // GET_VCPU_EVENTS
    write::<kvm::kvm_vcpu_events>(KVM, 0xa0), // SET_VCPU_EVENTS
    read::<kvm::kvm_debugregs>(KVM, 0xa1),    // GET_DEBUGREGS
    write::<kvm::kvm_debugregs>(KVM, 0xa2),   // SET_DEBUGREGS
    none(KVM, 0xa2),                          // SET_TSC_KHZ
    none(KVM, 0xa3),                          // GET_TSC_KHZ
    read::<kvm::kvm_xsave>(KVM, 0xa4),        // GET_XSAVE
    write::<kvm::kvm_xsave>(KVM, 0xa5),       // SET_XSAVE
    read::<kvm::kvm_xcrs>(KVM, 0xa6),         // GET_XCRS
    write::<kvm::kvm_xcrs>(KVM, 0xa7),        // SET_XCRS
    none(KVM, 0xad),                          // KVMCLOCK_CTRL
    read::<kvm::kvm_xsave>(KVM, 0xcf),        // GET_XSAVE2
];

/// The loop of a thread that devices live on.
const WORKER: &[Call] = &[
    (SYS_epoll_wait, Always),
    (SYS_epoll_pwait, Always),
    (SYS_epoll_pwait2, Always),
    (SYS_epoll_ctl, Always),
];

const DISK: &[Call] = &[
    (SYS_pread64, Always),
    (SYS_pwrite64, Always),
    (SYS_preadv, Always),
    (SYS_pwritev, Always),
    (SYS_fdatasync, Always),
    (SYS_fsync, Always),
    (SYS_fallocate, Always), // holes
    (SYS_ftruncate, Always), // a new diff
    (SYS_fstat, Always),
    (SYS_lseek, Always),
];

const IO: &[Call] = &[
    (SYS_accept4, Always),
    (SYS_recvfrom, Always),
    (SYS_recvmsg, Always),
    (SYS_sendto, Null(4)), // to the connected peer alone
    // Addresses are in memory, where no filter can look. Connected stream sockets ignore them, and one that listens, as for a published
    // port, would take one by MSG_FASTOPEN alone, which connects it. A UDP socket, which is here where such a port is published, sends
    // to whom it is told: its clients are anywhere.
    (SYS_sendmsg, Without(2, libc::MSG_FASTOPEN as u32)),
    // Between a client of such a port and its connection. Stream sockets alone: one of datagrams would reach any Unix socket by its path.
    (SYS_socketpair, Socket(&[(libc::AF_UNIX, libc::SOCK_STREAM, 0)])),
    (SYS_shutdown, Always),
    (SYS_getsockopt, OneOf(1, &[libc::SOL_SOCKET as u32])), // SO_ERROR, SO_PEERCRED
    (SYS_setsockopt, Both([(1, libc::SOL_SOCKET as u32), (2, libc::SO_LINGER as u32)])), // a client sees a reset
    (SYS_ioctl, OneOf(1, &[libc::FIONBIO as u32])), // the standard library's set_nonblocking
    (SYS_fcntl, OneOf(1, &[libc::F_GETFL as u32, libc::F_SETFL as u32])), // rustix's
    (SYS_timerfd_create, Always),
    (SYS_timerfd_settime, Always),
];

/// The sockets of the host that a guest's packets become. Everything that they are connected to has gone through the policy, and
/// none of them listens.
const NET: &[Call] = &[
    (SYS_socket, Socket(NET_SOCKETS)),
    // Of a Unix socket it can only be one that came by descriptor, and those are connected already.
    (SYS_connect, Always),
    (SYS_getsockname, Always),
    (SYS_setsockopt, Both([(1, libc::SOL_SOCKET as u32), (2, libc::SO_KEEPALIVE as u32)])),
    (SYS_setsockopt, Both([(1, libc::SOL_SOCKET as u32), (2, libc::SO_LINGER as u32)])),
    (SYS_setsockopt, Both([(1, libc::IPPROTO_TCP as u32), (2, libc::TCP_NODELAY as u32)])),
    (SYS_setsockopt, Both([(1, libc::IPPROTO_IP as u32), (2, libc::IP_RECVERR as u32)])),
    (SYS_setsockopt, Both([(1, libc::IPPROTO_IPV6 as u32), (2, libc::IPV6_RECVERR as u32)])),
    (SYS_getsockopt, Both([(1, libc::SOL_SOCKET as u32), (2, libc::SO_ERROR as u32)])),
    (SYS_recvfrom, Always),
    (SYS_recvmsg, Always),
    (SYS_sendto, Always),
    (SYS_sendmsg, Always),
    (SYS_shutdown, Always),
    (SYS_timerfd_settime, Always), // the next deadline
];

/// Family, type and protocol. ICMP by datagrams is echo alone (ping_group_range in icmp(7)).
const NET_SOCKETS: &[(c_int, c_int, c_int)] = &[
    (libc::AF_INET, libc::SOCK_STREAM, 0),
    (libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_TCP),
    (libc::AF_INET, libc::SOCK_DGRAM, 0),
    (libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_UDP),
    (libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP),
    (libc::AF_INET6, libc::SOCK_STREAM, 0),
    (libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_TCP),
    (libc::AF_INET6, libc::SOCK_DGRAM, 0),
    (libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_UDP),
    (libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_ICMPV6),
];

const MAIN: &[Call] = &[
    // Threads, in this process and in a fork of it.
    (SYS_clone, OneOf(0, &[GLIBC_THREAD, MUSL_THREAD, GLIBC_FORK])),
    (SYS_set_robust_list, Always), // glibc, in a new thread or process
    (SYS_rseq, Always),            // the same
    (SYS_prctl, OneOf(0, &[libc::PR_SET_NAME as u32, libc::PR_SET_NO_NEW_PRIVS as u32])),
    (SYS_seccomp, OneOf(0, &[libc::SECCOMP_SET_MODE_FILTER])), // a new thread's own filter
    // To kick vCPUs; SIGABRT for abort(). The process is not checked: a fork inherits the filter and has another id. From
    // Landlock's version 6 on signals end at the machine and its forks; before, they reach all of the user's processes.
    (SYS_tgkill, OneOf(2, &[KICK_SIGNAL as u32, libc::SIGABRT as u32])),
    (SYS_tkill, OneOf(1, &[KICK_SIGNAL as u32, libc::SIGABRT as u32])), // musl's pthread_kill and raise
    // Live fork, for as long as the machine lives.
    (SYS_fork, Always),            // musl
    (SYS_set_tid_address, Always), // musl, in the child
    (SYS_close_range, OneOf(2, &[0])),
    (SYS_pipe2, Always),
    (SYS_wait4, Always),
    (SYS_waitid, Always),
    (SYS_pidfd_open, Always), // its own, for whoever connects
    // A machine, at the start, at a restore and in a fork.
    (SYS_ioctl, OneOf(1, MACHINE_IOCTLS)),
    (SYS_epoll_create1, Always),
    (SYS_eventfd2, Always),
    (SYS_dup, Always), // EventFd::try_clone
    (SYS_fcntl, OneOf(1, &[libc::F_DUPFD_CLOEXEC as u32, libc::F_SETFD as u32])),
    (SYS_poll, Always),
    (SYS_ppoll, Always),
    (SYS_getdents64, Always),  // how many descriptors are open
    (SYS_getsockname, Always), // of a port that is published
];

/// CLONE_VM and the like, with which pthread_create makes a thread, and nothing else does.
const GLIBC_THREAD: u32 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID) as u32;
const MUSL_THREAD: u32 = GLIBC_THREAD | libc::CLONE_DETACHED as u32;
const GLIBC_FORK: u32 = (libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID | libc::SIGCHLD) as u32;

/// Of /dev/kvm and of a VM.
const MACHINE_IOCTLS: &[u32] = &[
    none(KVM, 0x00),                                      // GET_API_VERSION
    none(KVM, 0x01),                                      // CREATE_VM
    read_write::<kvm::kvm_msr_list>(KVM, 0x02),           // GET_MSR_INDEX_LIST
    none(KVM, 0x03),                                      // CHECK_EXTENSION
    none(KVM, 0x04),                                      // GET_VCPU_MMAP_SIZE
    read_write::<kvm::kvm_cpuid2>(KVM, 0x05),             // GET_SUPPORTED_CPUID
    none(KVM, 0x41),                                      // CREATE_VCPU
    write::<kvm::kvm_dirty_log>(KVM, 0x42),               // GET_DIRTY_LOG
    write::<kvm::kvm_userspace_memory_region>(KVM, 0x46), // SET_USER_MEMORY_REGION
    none(KVM, 0x47),                                      // SET_TSS_ADDR, Intel
    write::<u64>(KVM, 0x48),                              // SET_IDENTITY_MAP_ADDR, Intel
    none(KVM, 0x60),                                      // CREATE_IRQCHIP
    read_write::<kvm::kvm_irqchip>(KVM, 0x62),            // GET_IRQCHIP
    read::<kvm::kvm_irqchip>(KVM, 0x63),                  // SET_IRQCHIP, which Linux declares so
    write::<kvm::kvm_irq_routing>(KVM, 0x6a),             // SET_GSI_ROUTING
    write::<kvm::kvm_irqfd>(KVM, 0x76),                   // IRQFD
    write::<kvm::kvm_pit_config>(KVM, 0x77),              // CREATE_PIT2
    write::<kvm::kvm_ioeventfd>(KVM, 0x79),               // IOEVENTFD
    write::<kvm::kvm_clock_data>(KVM, 0x7b),              // SET_CLOCK
    read::<kvm::kvm_clock_data>(KVM, 0x7c),               // GET_CLOCK
    read::<kvm::kvm_pit_state2>(KVM, 0x9f),               // GET_PIT2
    write::<kvm::kvm_pit_state2>(KVM, 0xa0),              // SET_PIT2
    write::<kvm::kvm_enable_cap>(KVM, 0xa3),              // ENABLE_CAP
];

/// The group of KVM's ioctls.
const KVM: u8 = kvm::KVMIO as u8;
