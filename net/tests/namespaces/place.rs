//! Three network namespaces: the guest's, with a tap device; the host's, with the engine; and another machine's, with servers, behind a
//! cable from the host's.

use std::net::UdpSocket;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use net::engine::{Config, Counters, Denial, Engine};
use net::wire::Features;
use rustix::process::{Pid, Resource};
use rustix::thread::{UnshareFlags, gettid, unshare_unsafe};

use super::tap::Tap;

/// Addresses of the other machine that everybody could have, one that is closed, and a private one that a rule may open.
pub(crate) const PUBLIC: &str = "93.184.215.14";
pub(crate) const OTHER: &str = "93.184.215.15";
pub(crate) const METADATA: &str = "169.254.169.254";
pub(crate) const PRIVATE: &str = "10.9.8.7";
pub(crate) const PUBLIC6: &str = "2606:2800:21f::14";
/// The host's own, which everybody could have as well: two of an interface, and those of a network on `lo`.
pub(crate) const OWN: &str = "93.184.217.1";
pub(crate) const OWN_TOO: &str = "93.184.217.2";
pub(crate) const OWN_LO: &str = "93.184.218.99";
pub(crate) const OWN6: &str = "2606:2800:220::1";
pub(crate) const OWN6_TOO: &str = "2606:2800:220::11";
/// The other machine's, in the same network as these two.
pub(crate) const NEIGHBOUR6: &str = "2606:2800:220::10";
/// Their networks' broadcast address, and the one that routers answer at.
pub(crate) const OWN_BROADCAST: &str = "93.184.217.255";
pub(crate) const OWN_ROUTER6: &str = "2606:2800:220::";
/// Where there is no way to, nobody, and what a firewall forbids.
pub(crate) const NO_ROUTE: &str = "203.1.113.1";
pub(crate) const NO_HOST: &str = "93.184.216.1";
pub(crate) const FORBIDDEN: &str = "93.184.216.2";

/// What the guest's driver takes.
pub(crate) const ALL: Features = Features { checksum: true, tso4: true, tso6: true };
pub(crate) const NONE: Features = Features { checksum: false, tso4: false, tso6: false };

/// What is to be run in a namespace.
type Job = Box<dyn FnOnce() + Send>;

/// A guest on the thread that made it.
pub(crate) struct Place {
    host: mpsc::Sender<Job>,
    others: mpsc::Sender<Job>,
    ended: Arc<AtomicBool>,
    engine: Option<JoinHandle<()>>,
    pub(crate) denials: Arc<Mutex<Vec<Denial>>>,
    pub(crate) counters: Arc<Counters>,
}

/// Puts this thread, and those that it starts, into a network namespace with nothing in it.
fn separate() -> rustix::io::Result<()> {
    // SAFETY: of the network alone, which no other thread's memory or descriptors depend on.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
}

/// Runs `ip` with each line's arguments, in this thread's namespace.
fn ip(lines: &str) {
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let status = Command::new("ip").args(line.split_whitespace()).status().unwrap();
        assert!(status.success(), "ip {line}");
    }
}

/// Waits for `to` to have a route: the kernel makes those of IPv6 addresses by and by.
fn until_route(to: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    let found = || UdpSocket::bind("[::]:0").and_then(|socket| socket.connect((to, 9)));
    while let Err(error) = found() {
        assert!(Instant::now() < deadline, "{to}: {error}");
        thread::yield_now();
    }
}

impl Place {
    /// `None`: it takes more rights than this process has.
    pub(crate) fn new(config: Config, features: Features) -> Option<Self> {
        if let Err(error) = separate() {
            eprintln!("skipped: network namespaces need root: {error}");
            return None;
        }
        // A thousand connections have three descriptors each here.
        let mut limit = rustix::process::getrlimit(Resource::Nofile);
        limit.current = limit.maximum;
        rustix::process::setrlimit(Resource::Nofile, limit).unwrap();
        let mut tap = Tap::new("eth0", features).unwrap();
        ip("link set lo up
            link set eth0 address 02:76:6f:69:64:02 mtu 1500 up
            addr add 192.0.0.2/30 dev eth0
            addr add fd76:6f69:6472::2/64 dev eth0 nodad
            route add default via 192.0.0.1
            -6 route add default via fd76:6f69:6472::1");
        until_route(PUBLIC6);
        let denials = Arc::new(Mutex::new(Vec::new()));
        let ended = Arc::new(AtomicBool::new(false));
        let (journal, end) = (denials.clone(), ended.clone());
        let (sender, jobs) = mpsc::channel::<Job>();
        let (ready, made) = mpsc::channel();
        let (others, thread) = other_machine();
        let other = others.clone();
        let engine = thread::spawn(move || {
            separate().unwrap();
            connect(&other, thread);
            std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647").unwrap();
            let mut engine =
                Engine::new(config, Box::new(move |denial| journal.lock().unwrap().push(denial))).unwrap();
            engine.attach(features);
            ready.send(engine.counters()).unwrap();
            tap.carry(&mut engine, |_| {
                while let Ok(job) = jobs.try_recv() {
                    job();
                }
                end.load(Ordering::Relaxed)
            })
            .unwrap();
        });
        let counters = made.recv().unwrap();
        Some(Self { host: sender, others, ended, engine: Some(engine), denials, counters })
    }

    /// Runs `job` on the other machine, as a server on a thread of its own, and waits for what it says first.
    pub(crate) fn serve<T: Send + 'static, R: Send + 'static>(
        &self,
        job: impl FnOnce(mpsc::Sender<T>) -> R + Send + 'static,
    ) -> (T, JoinHandle<R>) {
        run(&self.others, job)
    }

    /// The same on the host itself.
    pub(crate) fn host<T: Send + 'static, R: Send + 'static>(
        &self,
        job: impl FnOnce(mpsc::Sender<T>) -> R + Send + 'static,
    ) -> (T, JoinHandle<R>) {
        run(&self.host, job)
    }
}

fn run<T: Send + 'static, R: Send + 'static>(
    namespace: &mpsc::Sender<Job>,
    job: impl FnOnce(mpsc::Sender<T>) -> R + Send + 'static,
) -> (T, JoinHandle<R>) {
    let (first, said) = mpsc::channel();
    let (handle, thread) = mpsc::channel();
    namespace.send(Box::new(move || handle.send(thread::spawn(move || job(first))).unwrap())).unwrap();
    let thread = thread.recv().unwrap();
    (said.recv().unwrap(), thread)
}

/// Another machine, with nothing in it, and the id of its thread, which lives as long as jobs may come.
fn other_machine() -> (mpsc::Sender<Job>, Pid) {
    let (sender, jobs) = mpsc::channel::<Job>();
    let (ready, made) = mpsc::channel();
    thread::spawn(move || {
        separate().unwrap();
        ready.send(gettid()).unwrap();
        for job in jobs {
            job();
        }
    });
    (sender, made.recv().unwrap())
}

/// Gives this thread's namespace its addresses, and a cable to that machine.
fn connect(others: &mpsc::Sender<Job>, thread: Pid) {
    ip(&format!(
        "link set lo up
         link add cable type veth peer name cable netns {}
         addr add {OWN}/24 broadcast {OWN_BROADCAST} dev cable
         addr add {OWN_TOO}/24 broadcast {OWN_BROADCAST} dev cable
         addr add {OWN6}/64 dev cable nodad
         addr add {OWN6_TOO}/64 dev cable nodad
         addr add 93.184.218.1/24 dev lo",
        thread.as_raw_pid()
    ));
    // Neighbours find only what is on the interface itself.
    let (up, done) = mpsc::channel();
    others
        .send(Box::new(move || {
            ip("link set lo up");
            for address in [PUBLIC, OTHER, METADATA, PRIVATE] {
                ip(&format!("addr add {address}/32 dev cable"));
            }
            for address in [PUBLIC6, NEIGHBOUR6] {
                ip(&format!("addr add {address}/128 dev cable nodad"));
            }
            at_once("cable");
            ip(&format!("route add {OWN}/32 dev cable"));
            for address in [OWN6, OWN6_TOO] {
                ip(&format!("-6 route add {address}/128 dev cable"));
            }
            up.send(()).unwrap();
        }))
        .unwrap();
    done.recv().unwrap();
    at_once("cable");
    for address in [PUBLIC, OTHER, METADATA, PRIVATE] {
        ip(&format!("route add {address} dev cable"));
    }
    ip(&format!(
        "-6 route add {PUBLIC6} dev cable
         route add unreachable {NO_HOST}
         route add prohibit {FORBIDDEN}"
    ));
    until_route(PUBLIC6);
}

/// Has `interface` up, without the second in which nobody else may have its own IPv6 address.
fn at_once(interface: &str) {
    std::fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/accept_dad"), "0").unwrap();
    ip(&format!("link set {interface} up"));
}

impl Drop for Place {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(engine) = self.engine.take()
            && !thread::panicking()
        {
            engine.join().unwrap();
        }
    }
}

/// An engine's configuration with this policy, in JSON.
pub(crate) fn config(policy: &str) -> Config {
    serde_json::from_str(&format!(r#"{{"policy": {policy}, "resolvers": [], "ipv6": true}}"#)).unwrap()
}
