//! The jail, from within: each test forks a process that enters it, as root (where the tests run as root) and as an ordinary
//! user.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::fd::{AsRawFd as _, RawFd};
use std::panic::AssertUnwindSafe;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use vmm::jail::{JailError, KICK_SIGNAL, Layers, SelfReport, Thread, enter_process, enter_thread, filter};

/// How a forked process has ended, and what it has said through its pipe.
#[derive(Debug)]
struct Ended {
    status: ExitStatus,
    said: String,
}

impl Ended {
    fn well(&self) {
        assert!(self.status.success(), "{self:?}");
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum User {
    /// Whoever runs the tests.
    Same,
    /// Nobody, where root runs the tests.
    Ordinary,
}

fn users() -> &'static [User] {
    if rustix::process::geteuid().is_root() { &[User::Same, User::Ordinary] } else { &[User::Same] }
}

/// Runs `body` in a forked process of one thread with a pipe to speak through.
fn forked(user: User, body: impl FnOnce(&mut File)) -> Ended {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    // SAFETY: both C libraries keep malloc usable in the child, and the child takes no other lock of the test program.
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", std::io::Error::last_os_error()),
        0 => {
            drop(read);
            if user == User::Ordinary {
                become_nobody();
            }
            let mut out = File::from(write);
            let result = std::panic::catch_unwind(AssertUnwindSafe(|| body(&mut out)));
            if let Err(panic) = &result {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let _ =
                    out.write_all(text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("?").as_bytes());
            }
            // SAFETY: ends the process without what the test program wants to be done at its end.
            unsafe { libc::_exit(i32::from(result.is_err())) }
        }
        pid => {
            drop(write);
            let mut said = String::new();
            File::from(read).read_to_string(&mut said).unwrap();
            Ended { status: wait(pid), said }
        }
    }
}

fn wait(pid: i32) -> ExitStatus {
    let mut status = 0;
    // SAFETY: `status` lives for the call.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid, "{}", std::io::Error::last_os_error());
    std::os::unix::process::ExitStatusExt::from_raw(status)
}

fn become_nobody() {
    const NOBODY: u32 = 65534;
    // SAFETY: none of these keeps a pointer; the list of groups is empty.
    unsafe {
        assert_eq!(libc::setgroups(0, std::ptr::null()), 0);
        assert_eq!(libc::setresgid(NOBODY, NOBODY, NOBODY), 0);
        assert_eq!(libc::setresuid(NOBODY, NOBODY, NOBODY), 0);
        // A change of the user has cleared it: a process that is started as this user has it.
        assert_eq!(libc::prctl(libc::PR_SET_DUMPABLE, 1), 0);
    }
}

fn enter(keep: &[RawFd]) -> Layers {
    enter_with(keep, false)
}

fn enter_with(keep: &[RawFd], network: bool) -> Layers {
    enter_process(keep, network)
        .unwrap_or_else(|error| panic!("{error}: {:?}", std::error::Error::source(&error)))
}

/// Work that every kind of thread must be able to do.
fn ordinary_work(out: &mut File) {
    let mut blocks: Vec<Vec<u8>> = (0..8).map(|n| vec![n; 1 << 20]).collect();
    for block in &mut blocks {
        block.resize(3 << 20, 7);
    }
    drop(blocks);
    let map: HashMap<u32, String> = (0..1000).map(|n| (n, n.to_string())).collect();
    assert_eq!(map[&999], "999");
    let (left, right) = std::sync::mpsc::sync_channel(1);
    left.send(std::time::Instant::now()).unwrap();
    right.recv_timeout(std::time::Duration::from_secs(9)).unwrap();
    std::thread::yield_now();
    assert!(std::panic::catch_unwind(|| panic!("on purpose")).is_err());
    out.write_all(b".").unwrap();
}

#[test]
fn paths_sockets_and_signals_are_denied_before_any_filter() {
    for &user in users() {
        let parent = std::process::id() as i32;
        forked(user, |out| {
            assert!(File::open("/etc/passwd").is_ok());
            let layers = enter(&[out.as_raw_fd()]);
            let landlock = layers.landlock.expect("this kernel has no Landlock");
            let denied = |result: std::io::Result<File>| {
                assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EACCES));
            };
            denied(File::open("/etc/passwd"));
            denied(File::open("/dev/null"));
            denied(File::open("/proc/self/status"));
            denied(File::create("/tmp/voidrun-jail-test"));
            if landlock.abi >= 4 {
                let error = TcpListener::bind("127.0.0.1:0").unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::EACCES));
            }
            if landlock.abi >= 6 {
                // SAFETY: signal 0 asks only whether one could be sent.
                assert_eq!(unsafe { libc::kill(parent, 0) }, -1);
                assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EPERM));
            }
        })
        .well();
    }
}

/// What a snapshot is restored from is read, and mapped, by its descriptor alone; and the thread that copies pages of it ahead, which
/// has no filter yet, can open nothing either.
#[test]
fn what_a_restored_machine_goes_on_from_has_no_path() {
    for &user in users() {
        let mut snapshot = tempfile::NamedTempFile::new().unwrap();
        snapshot.write_all(&[7; 4096]).unwrap();
        snapshot.as_file().set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        forked(user, |out| {
            let file = File::open(snapshot.path()).unwrap();
            let layers = enter(&[out.as_raw_fd(), file.as_raw_fd()]);
            layers.landlock.expect("this kernel has no Landlock");
            let is_shut = || {
                for path in [snapshot.path(), std::path::Path::new("/etc/passwd")] {
                    assert_eq!(File::open(path).unwrap_err().raw_os_error(), Some(libc::EACCES));
                }
                let mut byte = [0];
                std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, 4095).unwrap();
                assert_eq!(byte, [7]);
            };
            is_shut();
            std::thread::scope(|scope| scope.spawn(is_shut).join()).unwrap();
            // SAFETY: a mapping of its own, which nobody else knows.
            let map = unsafe {
                let flags = rustix::mm::MapFlags::PRIVATE;
                rustix::mm::mmap(std::ptr::null_mut(), 4096, rustix::mm::ProtFlags::READ, flags, &file, 0)
            };
            // SAFETY: it has a page.
            assert_eq!(unsafe { map.unwrap().cast::<u8>().read() }, 7);
        })
        .well();
    }
}

#[test]
fn the_process_has_given_up_what_it_says() {
    for &user in users() {
        let ended = forked(user, |out| {
            // SAFETY: one thread.
            unsafe { std::env::set_var("SECRET", "1") };
            let stray = std::os::fd::IntoRawFd::into_raw_fd(File::open("/etc/passwd").unwrap());
            let layers = enter(&[out.as_raw_fd()]);
            layers.require().unwrap();
            assert!(std::env::vars_os().next().is_none());
            // SAFETY: these touch no memory.
            unsafe {
                assert_eq!(libc::fcntl(stray, libc::F_GETFD), -1);
                assert_eq!(libc::prctl(libc::PR_GET_DUMPABLE), 0);
                assert_eq!(libc::prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), 1);
                assert_eq!(libc::umask(0), 0o077);
            }
            let limit = rustix::process::getrlimit(rustix::process::Resource::Core);
            assert_eq!((limit.current, limit.maximum), (Some(0), Some(0)));
            let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
            assert_eq!(limit.maximum, Some(layers.limits.open_files));
            assert!(layers.limits.open_files <= 4096);
            for fd in 0..3 {
                let null = rustix::fs::fstat(unsafe_borrow(fd)).unwrap();
                assert_eq!(null.st_rdev, rustix::fs::makedev(1, 3), "descriptor {fd} is not /dev/null");
            }
            // The network's thread is none of a machine without a network.
            assert_eq!(layers.seccomp.len(), Thread::ALL.len() - 1);
            out.write_all(serde_json::to_string(&layers).unwrap().as_bytes()).unwrap();
        });
        ended.well();
        let layers: Layers = serde_json::from_str(&ended.said).unwrap();
        let without = Layers { landlock: None, ..layers.clone() };
        assert!(matches!(without.require(), Err(JailError::Missing { layer: "Landlock" })));
        layers.require().unwrap();
    }
}

fn unsafe_borrow(fd: RawFd) -> rustix::fd::BorrowedFd<'static> {
    // SAFETY: the callers name descriptors that are open.
    unsafe { rustix::fd::BorrowedFd::borrow_raw(fd) }
}

#[test]
fn from_outside_the_kernel_says_the_same() {
    for &user in users() {
        let (wait_for, go) = rustix::pipe::pipe().unwrap();
        let (entered, tell) = rustix::pipe::pipe().unwrap();
        let (entered, go) = (File::from(entered), File::from(go));
        let watcher = std::thread::spawn(move || {
            let mut pid = [0; 4];
            (&entered).read_exact(&mut pid).unwrap();
            let path = format!("/proc/{}/status", i32::from_le_bytes(pid));
            let status = std::fs::read_to_string(&path).unwrap();
            let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(&path).unwrap());
            drop(go);
            (status, owner)
        });
        // What the forked process inherits of `go` it closes with the rest.
        forked(user, |out| {
            enter(&[out.as_raw_fd(), wait_for.as_raw_fd(), tell.as_raw_fd()]);
            enter_thread(Thread::Main).unwrap();
            let pid = rustix::process::getpid().as_raw_nonzero().get();
            rustix::io::write(&tell, &pid.to_le_bytes()).unwrap();
            let _ = rustix::io::read(&wait_for, &mut [0; 1]).unwrap();
        })
        .well();
        let (status, owner) = watcher.join().unwrap();
        for line in
            ["Seccomp:\t2", "NoNewPrivs:\t1", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000"]
        {
            assert!(status.lines().any(|there| there == line), "no {line} in {status}");
        }
        if user == User::Ordinary {
            assert_eq!(owner, 0, "the process is dumpable");
        }
    }
}

#[test]
fn what_no_thread_may_do_ends_the_process() {
    let forbidden: &[(&str, fn())] = &[
        ("open a path", || syscall(libc::SYS_open, [c"/etc/passwd".as_ptr() as i64, 0, 0])),
        #[cfg(not(target_env = "gnu"))]
        ("openat a path", || drop(File::open("/etc/passwd"))),
        ("socket(AF_INET)", || drop(std::net::UdpSocket::bind("127.0.0.1:0"))),
        ("socket(AF_UNIX)", || drop(std::os::unix::net::UnixDatagram::unbound())),
        ("execve", || {
            drop(std::os::unix::process::CommandExt::exec(&mut std::process::Command::new("/bin/true")));
        }),
        ("an ioctl of terminals", || syscall(libc::SYS_ioctl, [0, libc::TIOCSTI as i64, 0])),
        ("an ioctl of no one", || syscall(libc::SYS_ioctl, [0, 0xdead_beef, 0])),
        ("executable memory", || {
            syscall(libc::SYS_mprotect, [0, 0, i64::from(libc::PROT_EXEC | libc::PROT_READ)]);
        }),
        ("kill", || syscall(libc::SYS_kill, [1, 0, 0])),
        ("tgkill with SIGKILL", || syscall(libc::SYS_tgkill, [1, 1, 9])),
        ("a new user namespace", || syscall(libc::SYS_clone, [i64::from(libc::CLONE_NEWUSER), 0, 0])),
        ("unshare", || syscall(libc::SYS_unshare, [0, 0, 0])),
        ("ptrace", || syscall(libc::SYS_ptrace, [0, 0, 0])),
        ("becoming dumpable", || syscall(libc::SYS_prctl, [i64::from(libc::PR_SET_DUMPABLE), 1, 0])),
        ("F_SETOWN", || syscall(libc::SYS_fcntl, [0, i64::from(libc::F_SETOWN), 1])),
        ("io_uring", || syscall(libc::SYS_io_uring_setup, [0, 0, 0])),
        ("bind", || syscall(libc::SYS_bind, [0, 0, 0])),
        ("listen", || syscall(libc::SYS_listen, [0, 0, 0])),
        ("socketpair of datagrams", || drop(std::os::unix::net::UnixDatagram::pair())),
        ("stat", || syscall(libc::SYS_stat, [0, 0, 0])),
    ];
    for thread in Thread::ALL {
        for (name, call) in forbidden {
            assert_killed(thread, name, *call);
        }
    }
    for thread in Thread::ALL.into_iter().filter(|thread| *thread != Thread::Net) {
        assert_killed(thread, "connect", || syscall(libc::SYS_connect, [0, 0, 0]));
    }
    for thread in [Thread::Vcpu, Thread::Disk, Thread::Net] {
        assert_killed(thread, "socketpair", || drop(std::os::unix::net::UnixStream::pair()));
    }
    assert_killed(Thread::Io, "sendto an address", || {
        // SAFETY: the address is not looked at: the process has ended.
        unsafe { libc::syscall(libc::SYS_sendto, 0, 0, 0, 0, 1, 0) };
    });
}

#[test]
fn what_belongs_to_main_ends_the_others() {
    let create_vm = i64::from(rustix::ioctl::opcode::none(0xae, 1));
    for thread in [Thread::Vcpu, Thread::Disk, Thread::Io, Thread::Net] {
        assert_killed(thread, "KVM_CREATE_VM", || syscall(libc::SYS_ioctl, [-1, create_vm, 0]));
        assert_killed(thread, "a thread", || drop(std::thread::Builder::new().spawn(|| ())));
        assert_killed(thread, "fork", || syscall(libc::SYS_fork, [0, 0, 0]));
        assert_killed(thread, "a kick", || syscall(libc::SYS_tgkill, [0, 0, i64::from(KICK_SIGNAL)]));
    }
    for thread in [Thread::Vcpu, Thread::Disk, Thread::Net] {
        assert_killed(thread, "accept4", || syscall(libc::SYS_accept4, [-1, 0, 0]));
    }
    for thread in [Thread::Disk, Thread::Io, Thread::Net] {
        let run = i64::from(rustix::ioctl::opcode::none(0xae, 0x80));
        assert_killed(thread, "KVM_RUN", || syscall(libc::SYS_ioctl, [-1, run, 0]));
    }
}

/// Connects by TCP and UDP, as the network does, and tells what came of it.
fn connect(address: std::net::SocketAddr) -> Result<(), rustix::io::Errno> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
    for kind in [SocketType::STREAM, SocketType::DGRAM] {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::INET, kind, flags, None)?;
        match rustix::net::connect(&socket, &address) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => sockopt::socket_error(&socket)??,
            Err(errno) => return Err(errno),
        }
        rustix::net::getsockname(&socket)?;
        let _ = rustix::net::shutdown(&socket, rustix::net::Shutdown::Both);
    }
    Ok(())
}

#[test]
fn the_network_connects_and_nobody_else() {
    for &user in users() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let ended = forked(user, |out| {
            let layers = enter_with(&[out.as_raw_fd()], true);
            layers.require().unwrap();
            assert_eq!(layers.seccomp.len(), Thread::ALL.len());
            // LANDLOCK_ACCESS_NET_BIND_TCP alone.
            let landlock = layers.landlock.expect("this kernel has no Landlock");
            assert_eq!(landlock.net, u64::from(landlock.abi >= 4));
            if landlock.abi >= 4 {
                let error = TcpListener::bind("127.0.0.1:0").unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::EACCES));
            }
            assert!(layers.limits.open_files <= 16384);
            let mut clone = out.try_clone().unwrap();
            let thread = std::thread::spawn(move || {
                enter_thread(Thread::Net).unwrap();
                ordinary_work(&mut clone);
                connect(address)
            });
            enter_thread(Thread::Main).unwrap();
            assert_eq!(thread.join().unwrap(), Ok(()));
        });
        ended.well();
        assert_eq!(ended.said, ".");
        // Without a network Landlock denies it, should the thread exist by mistake.
        forked(user, |out| {
            if enter(&[out.as_raw_fd()]).landlock.expect("this kernel has no Landlock").abi >= 4 {
                enter_thread(Thread::Net).unwrap();
                assert_eq!(connect(address), Err(rustix::io::Errno::ACCESS));
            }
        })
        .well();
    }
}

#[test]
fn the_network_has_no_other_sockets() {
    let sockets: &[(&str, [i32; 3])] = &[
        ("a Unix stream", [libc::AF_UNIX, libc::SOCK_STREAM, 0]),
        ("Unix datagrams", [libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0]),
        ("netlink", [libc::AF_NETLINK, libc::SOCK_RAW, 0]),
        ("packets", [libc::AF_PACKET, libc::SOCK_DGRAM, 0]),
        ("vsock", [libc::AF_VSOCK, libc::SOCK_STREAM, 0]),
        ("raw IPv4", [libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP]),
        ("raw IPv6", [libc::AF_INET6, libc::SOCK_RAW | libc::SOCK_NONBLOCK, libc::IPPROTO_ICMPV6]),
        ("SCTP", [libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP]),
        ("MPTCP", [libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP]),
        ("ICMP of the other family", [libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_ICMP]),
        ("a type with a bit too many", [libc::AF_INET, libc::SOCK_STREAM | 1 << 20, 0]),
    ];
    for &(name, arguments) in sockets {
        assert_killed(Thread::Net, name, || syscall(libc::SYS_socket, arguments.map(i64::from)));
    }
    assert_killed(Thread::Net, "an option of netfilter", || {
        // SAFETY: the process has ended before anything is looked at.
        unsafe { libc::syscall(libc::SYS_setsockopt, 0, 256, 64, 0, 0) };
    });
}

/// glibc's malloc itself tries to open a file, and must come to no harm by it.
#[cfg(target_env = "gnu")]
#[test]
fn openat_does_not_exist_with_glibc() {
    for thread in Thread::ALL {
        forked(User::Same, |out| {
            let directory = File::open("/").unwrap();
            enter(&[out.as_raw_fd(), directory.as_raw_fd()]);
            enter_thread(thread).unwrap();
            assert_eq!(File::open("/etc/passwd").unwrap_err().raw_os_error(), Some(libc::ENOSYS));
            let below =
                rustix::fs::openat(&directory, "etc", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty());
            assert_eq!(below.unwrap_err(), rustix::io::Errno::NOSYS);
        })
        .well();
    }
}

fn syscall(number: libc::c_long, [a, b, c]: [i64; 3]) {
    // SAFETY: the arguments are numbers, or pointers that the kernel refuses.
    unsafe { libc::syscall(number, a, b, c) };
}

/// Says "here" right before the call, so that nothing else can have ended the process, and "still here" after it.
fn assert_killed(thread: Thread, name: &str, call: impl FnOnce()) {
    let ended = forked(User::Same, |out| {
        enter(&[out.as_raw_fd()]);
        enter_thread(thread).unwrap();
        ordinary_work(out);
        out.write_all(b"here").unwrap();
        call();
        out.write_all(b", still here").unwrap();
    });
    let signal = std::os::unix::process::ExitStatusExt::signal(&ended.status);
    assert_eq!(
        (signal, ended.said.as_str()),
        (Some(libc::SIGSYS), ".here"),
        "{name} in {thread:?}: {ended:?}"
    );
}

#[test]
fn threads_start_work_and_end() {
    for &user in users() {
        for main_first in [true, false] {
            let ended = forked(user, |out| {
                enter(&[out.as_raw_fd()]);
                if main_first {
                    enter_thread(Thread::Main).unwrap();
                }
                // More than glibc has arenas for without asking how many CPUs there are.
                let kinds = [Thread::Vcpu, Thread::Disk, Thread::Io].into_iter().cycle().take(33);
                let start = Arc::new(std::sync::Barrier::new(33));
                let threads: Vec<_> = kinds
                    .map(|kind| {
                        let (mut out, start) = (out.try_clone().unwrap(), Arc::clone(&start));
                        let work = move || {
                            enter_thread(kind).unwrap();
                            start.wait();
                            ordinary_work(&mut out);
                        };
                        std::thread::Builder::new().name(format!("{kind:?}")).spawn(work).unwrap()
                    })
                    .collect();
                enter_thread(Thread::Main).unwrap();
                for thread in threads {
                    thread.join().unwrap();
                }
            });
            ended.well();
            assert_eq!(ended.said, ".".repeat(33));
        }
    }
}

static KICKS: AtomicI32 = AtomicI32::new(0);

extern "C" fn on_kick(_: libc::c_int) {
    KICKS.fetch_add(1, Ordering::SeqCst);
}

/// The worker of the balloon, whose guest has used up all mappings that a process may have.
#[test]
fn memory_is_given_back_or_stays() {
    use vm_memory::{Bytes as _, GuestAddress};
    use vmm::memory::{self, Mapped, Pages, Runs};
    forked(User::Same, |out| {
        let mib = vmm::spec::MemoryMib::try_from(128).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(mib.bytes()).unwrap();
        let runs = Runs::try_from(vec![(0, 128 << 8)]).unwrap();
        let memory = memory::map(mib, &[Pages { file: &file, offset: 0, runs: &runs }]).unwrap();
        enter(&[out.as_raw_fd(), file.as_raw_fd()]);
        // The jail has closed its own descriptor of the file.
        let memory = std::mem::ManuallyDrop::new(memory);
        enter_thread(Thread::Io).unwrap();
        let place = GuestAddress(4 << 20);
        let give_back = || {
            memory.write_slice(b"there", place).unwrap();
            // Each time for the first time: a file's pages are replaced, by a mapping.
            let mapped = Mapped::new(runs.clone(), Runs::default(), mib.bytes());
            let result = memory::give_back(&memory, place.0, 2 << 20, Some(&mapped));
            let mut bytes = [0; 5];
            memory.read_slice(&mut bytes, place).unwrap();
            assert_eq!(bytes, if result.is_ok() { *b"\0\0\0\0\0" } else { *b"there" });
            result.is_ok()
        };
        assert!(give_back());
        // Neighbours with different rights, which are not one mapping.
        let map = |index: usize| {
            let access = if index.is_multiple_of(2) { libc::PROT_READ } else { libc::PROT_NONE };
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            // SAFETY: the kernel chooses where.
            let at = unsafe { libc::mmap(std::ptr::null_mut(), 4096, access, flags, -1, 0) };
            (at != libc::MAP_FAILED).then_some(at)
        };
        let mut maps = Vec::with_capacity(1 << 20);
        maps.extend((0..1 << 20).map_while(map));
        // Until there is room for it again it fails at one step or another.
        let mut failed = 0;
        while !give_back() {
            failed += 1;
            // SAFETY: it was mapped above, and nothing refers to it.
            unsafe { libc::munmap(maps.pop().unwrap(), 4096) };
        }
        assert!((1..64).contains(&failed), "{failed}");
    })
    .well();
}

#[test]
fn main_kicks_a_thread_out_of_the_kernel() {
    for &user in users() {
        forked(user, |out| {
            let (blocked, silent) = rustix::pipe::pipe().unwrap();
            enter(&[out.as_raw_fd(), blocked.as_raw_fd(), silent.as_raw_fd()]);
            // SAFETY: a zeroed sigaction is one without flags (no SA_RESTART) and with an empty mask; the handler touches an
            // atomic alone.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = on_kick as *const () as usize;
                assert_eq!(libc::sigaction(KICK_SIGNAL, &raw const action, std::ptr::null_mut()), 0);
            }
            let returned = Arc::new(AtomicBool::new(false));
            let flag = Arc::clone(&returned);
            let thread = std::thread::spawn(move || {
                enter_thread(Thread::Vcpu).unwrap();
                let result = rustix::io::read(&blocked, &mut [0; 1]);
                flag.store(true, Ordering::SeqCst);
                result
            });
            enter_thread(Thread::Main).unwrap();
            let id = std::os::unix::thread::JoinHandleExt::as_pthread_t(&thread);
            // A kick may come before the thread is in the kernel.
            while !returned.load(Ordering::SeqCst) {
                // SAFETY: the thread is not joined yet.
                let sent = unsafe { libc::pthread_kill(id as libc::pthread_t, KICK_SIGNAL) };
                // Signals of a thread that does not get to run are queued, up to a limit.
                assert!(matches!(sent, 0 | libc::EAGAIN), "{sent}");
                std::thread::yield_now();
            }
            assert_eq!(thread.join().unwrap(), Err(rustix::io::Errno::INTR));
            assert!(KICKS.load(Ordering::SeqCst) > 0);
        })
        .well();
    }
}

#[test]
fn main_forks_a_process_that_builds_a_machine() {
    for &user in users() {
        // Before the user changes: the descriptor is given, as to a real machine.
        let kvm = kvm_ioctls::Kvm::new().expect("opening /dev/kvm");
        let ended = forked(user, |out| {
            enter(&[out.as_raw_fd(), kvm.as_raw_fd()]);
            enter_thread(Thread::Main).unwrap();
            let build = |out: &File| {
                let vm = kvm.create_vm().unwrap();
                let cpuid = kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES).unwrap();
                vm.create_irq_chip().unwrap();
                vm.create_pit2(kvm_bindings::kvm_pit_config::default()).unwrap();
                let irqfd = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
                vm.register_irqfd(&irqfd, 5).unwrap();
                let mut vcpu = vm.create_vcpu(0).unwrap();
                let mut out = out.try_clone().unwrap();
                let work = move || {
                    enter_thread(Thread::Vcpu).unwrap();
                    vcpu.set_cpuid2(&cpuid).unwrap();
                    let events = vcpu.get_vcpu_events().unwrap();
                    vcpu.set_vcpu_events(&events).unwrap();
                    vcpu.set_regs(&vcpu.get_regs().unwrap()).unwrap();
                    vcpu.set_sregs(&vcpu.get_sregs().unwrap()).unwrap();
                    vcpu.set_lapic(&vcpu.get_lapic().unwrap()).unwrap();
                    vcpu.set_mp_state(vcpu.get_mp_state().unwrap()).unwrap();
                    // Returns at once.
                    vcpu.set_kvm_immediate_exit(1);
                    let errno = vcpu.run().map(|exit| format!("{exit:?}")).unwrap_err().errno();
                    assert_eq!(errno, libc::EINTR);
                    ordinary_work(&mut out);
                };
                std::thread::spawn(work).join().unwrap();
            };
            build(out);
            // Twice: a fork of a fork.
            let mut parents = 0;
            // SAFETY: one thread.
            while parents < 2 && unsafe { libc::fork() } == 0 {
                parents += 1;
                build(out);
            }
            if parents < 2 {
                let mut status = -1;
                // SAFETY: `status` lives for the call.
                assert!(unsafe { libc::waitpid(-1, &raw mut status, 0) } > 0);
                assert_eq!(status, 0);
            }
        });
        ended.well();
        assert_eq!(ended.said, "...");
    }
}

#[test]
fn the_process_knows_what_it_uses() {
    for &user in users() {
        forked(user, |out| {
            let report = SelfReport::open().unwrap();
            let keep = [&report.fds()[..], &[out.as_raw_fd()]].concat();
            enter(&keep);
            assert!(SelfReport::open().is_err(), "anyone can look");
            enter_thread(Thread::Main).unwrap();
            // 0, 1, 2, the pipe and those of the report.
            let few = 4 + report.fds().len();
            assert_eq!(report.open_fds().unwrap(), few);
            let more: Vec<File> = (0..500).map(|_| out.try_clone().unwrap()).collect();
            assert_eq!(report.open_fds().unwrap(), few + 500);
            drop(more);
            assert_eq!(report.open_fds().unwrap(), few);

            // Pages of the program's file are shared with the other tests that run just now, and are counted to fewer of them
            // when one ends: hence the width.
            let (pss, private) = (report.pss_kib().unwrap(), report.own_kib(&[]).unwrap());
            let block = std::hint::black_box(vec![1_u8; 64 << 20]);
            let grown = |now: u64, before: u64| {
                assert!((before + (48 << 10)..before + (80 << 10)).contains(&now), "{before} {now}");
            };
            grown(report.pss_kib().unwrap(), pss);
            grown(report.own_kib(&[]).unwrap(), private);
            if let Some(pagemap) = report.pagemap() {
                let there = pagemap.own(block.as_ptr() as u64, block.len() / 4096).unwrap();
                assert!(there.iter().all(|&there| there));
                let untouched = vec![0_u8; 64 << 20];
                // Without its beginning: malloc has something there, and a huge page may have come with it.
                let there = pagemap.own(untouched.as_ptr() as u64 + (4 << 20), 15_000).unwrap();
                assert!(there.iter().all(|&there| !there));
            }
            drop(block);
        })
        .well();
    }
}

#[test]
fn the_length_of_a_file_is_not_needed_to_read_it() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&vec![b'x'; 100_000]).unwrap();
    forked(User::Same, |out| {
        enter(&[out.as_raw_fd(), file.as_raw_fd()]);
        enter_thread(Thread::Main).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text.len(), 100_000);
        assert_eq!(rustix::fs::fstat(&file).unwrap().st_size, 100_000);
    })
    .well();
}

#[test]
fn a_jail_that_would_leak_is_refused() {
    forked(User::Same, |_| {
        let error = enter_process(&[999], false).unwrap_err();
        assert!(matches!(error, JailError::NotOpen { fd: 999, .. }), "{error:?}");
    })
    .well();
    forked(User::Same, |out| {
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || ended.recv().is_err());
        let error = enter_process(&[out.as_raw_fd()], false).unwrap_err();
        assert!(matches!(error, JailError::Threads { threads: 2 }), "{error:?}");
        drop(end);
        assert!(thread.join().unwrap());
    })
    .well();
}

#[test]
fn every_kind_has_a_filter_of_its_own_and_always_the_same() {
    for (index, thread) in Thread::ALL.into_iter().enumerate() {
        let program = filter(thread).unwrap();
        assert_eq!(program, filter(thread).unwrap());
        for other in &Thread::ALL[..index] {
            assert_ne!(program, filter(*other).unwrap());
        }
    }
}
