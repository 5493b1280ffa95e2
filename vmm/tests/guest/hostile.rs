//! Machines whose guest means them harm: see `kernel/main.rs` for what it does. Whatever that is, the process answers on its
//! control socket, does not grow, and lives until the guest switches it off or ends with a reason that says what was done.
//!
//! `VOIDRUN_HOSTILE_ROUNDS` multiplies what is tried, `VOIDRUN_HOSTILE_SEED` makes it something else.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use vmm::control::{Client, ControlError, Metrics};
use vmm::exit::ExitReason;

use crate::process::{DEADLINE, End, Launch, Process};

/// Of the private memory of the process beside guest RAM; the test's own binary is part of it.
const OWN_KIB: u64 = 32 << 10;
/// The machine's own descriptors, and those of the clients that a test has.
const OPEN_FDS: u64 = 100;
/// Of the disk; the kernel's `block.rs` knows it too.
const DISK: u64 = 4 << 20;

fn from_env(name: &str) -> u64 {
    std::env::var(name).map_or(1, |value| value.parse().expect(name))
}

/// Compiles the kernel, unless it was.
fn hostile_kernel() -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/kernel");
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(&source).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut hash = DefaultHasher::new();
    for file in files {
        std::fs::read(file).unwrap().hash(&mut hash);
    }
    let result = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("hostile-{:x}", hash.finish()));
    if result.exists() {
        return result;
    }
    std::fs::create_dir_all(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let new = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap().into_temp_path();
    let mut rustc = Command::new("rustc");
    rustc.current_dir(env!("CARGO_MANIFEST_DIR")).args([
        "--edition",
        "2024",
        "--crate-name",
        "hostile",
        "-O",
    ]);
    // The agent's target, since that is there; nothing of its C library is used.
    rustc.args(["--target", "x86_64-unknown-linux-musl"]);
    for option in [
        "panic=abort",
        "relocation-model=static",
        "link-self-contained=no",
        "default-linker-libraries=no",
        "linker=rust-lld",
        "linker-flavor=ld.lld",
        "link-arg=-static",
        "link-arg=--image-base=0x1000000",
        // Named by the library's tables of unwinding, which nobody reads.
        "link-arg=--defsym=rust_eh_personality=0",
    ] {
        rustc.args(["-C", option]);
    }
    let status = rustc.arg(source.join("main.rs")).arg("-o").arg(&new).status().expect("running rustc");
    assert!(status.success(), "compiling the hostile kernel");
    new.persist(&result).unwrap();
    result
}

/// A machine to be.
struct Hostile {
    scenario: &'static str,
    rounds: u64,
    cpus: u8,
    boot_timeout: Duration,
    ttl: Option<Duration>,
}

impl Hostile {
    /// `rounds` take seconds.
    fn new(scenario: &'static str, rounds: u64) -> Self {
        Self { scenario, rounds, cpus: 1, boot_timeout: DEADLINE, ttl: None }
    }

    /// Runs it to its end. `meanwhile` is called again and again.
    fn run(&self, mut meanwhile: impl FnMut(&Process)) -> End {
        let Self { scenario, cpus, boot_timeout, ttl, .. } = *self;
        let (seed, rounds) =
            (from_env("VOIDRUN_HOSTILE_SEED"), self.rounds * from_env("VOIDRUN_HOSTILE_ROUNDS"));
        let boot_timeout = boot_timeout * from_env("VOIDRUN_HOSTILE_ROUNDS") as u32;
        let kernel = hostile_kernel();
        let directory = tempfile::tempdir().unwrap();
        let [base, diff] = ["base", "diff"].map(|name| directory.path().join(name));
        let content: Vec<u8> = (0..DISK / 8).flat_map(|number| word(number).to_le_bytes()).collect();
        std::fs::write(&base, &content).unwrap();
        std::fs::write(&diff, []).unwrap();
        let launch = Launch {
            snapshot: None,
            base: None,
            touched: None,
            kernel: &kernel,
            cmdline: &format!("scenario={scenario} seed={seed} rounds={rounds}"),
            cpus,
            disk: Some((&base, &diff)),
            boot_timeout,
            ttl,
        };
        let process = launch.start();
        let (mut samples, mut slowest, mut last) = (0, Duration::ZERO, None);
        while !process.ends_within(Duration::from_millis(20)) {
            let asked = Instant::now();
            if let Some(metrics) = process.control().and_then(metrics) {
                assert!(metrics.own_kib <= OWN_KIB, "{scenario}, seed {seed}: {metrics:?}");
                assert!(metrics.open_fds <= OPEN_FDS, "{scenario}, seed {seed}: {metrics:?}");
                samples += 1;
                slowest = slowest.max(asked.elapsed());
                last = Some(metrics);
            }
            meanwhile(&process);
        }
        let end = process.end();
        println!(
            "{scenario}, {rounds} rounds, seed {seed}: {:?}; {samples} answers, within {slowest:?}; {last:?}",
            end.exit.reason
        );
        assert!(std::fs::read(&base).unwrap() == content, "{scenario}, seed {seed}: the base has changed");
        assert!(end.exit.console.len() <= 8 << 10, "{} bytes of console", end.exit.console.len());
        end
    }

    /// Runs it, and the guest comes to its own end.
    fn survives(&self, meanwhile: impl FnMut(&Process)) {
        let end = self.run(meanwhile);
        assert_eq!(end.exit.reason, ExitReason::Shutdown, "{end:?}");
        assert!(end.exit.console.ends_with("through\n"), "{end:?}");
        assert_eq!(end.stderr, "");
    }

    /// Runs it to its end, for a reason.
    fn ends(&self) -> ExitReason {
        let end = self.run(|_| {});
        assert!(end.status.success(), "{end:?}");
        assert_eq!(end.stderr, "");
        end.exit.reason
    }
}

/// The same as the kernel's: SplitMix64.
fn word(number: u64) -> u64 {
    let z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// `None` when the machine ends meanwhile; that it does not answer is something else.
fn metrics(mut client: Client) -> Option<Metrics> {
    match client.metrics() {
        Ok(metrics) => Some(metrics),
        Err(ControlError::Closed) => None,
        Err(ControlError::Io(error)) if is_end(&error) => None,
        Err(error) => panic!("{error}"),
    }
}

fn is_end(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

/// Takes a minute in the lab, whose writes vanish: run before on the machine itself, it saves that.
#[test]
fn kernel_compiles() {
    hostile_kernel();
}

#[test]
fn registers_and_ports() {
    Hostile::new("registers", 4000).survives(|_| {});
}

#[test]
fn interrupt_controllers() {
    let reason = Hostile { ttl: Some(Duration::from_secs(20)), ..Hostile::new("irqchip", 2000) }.ends();
    // Whether the guest is still able to go on is its own affair.
    let typed = matches!(
        reason,
        ExitReason::Shutdown
            | ExitReason::TripleFault { .. }
            | ExitReason::KernelPanic { .. }
            | ExitReason::Ttl { .. }
    );
    assert!(typed, "{reason:?}");
}

#[test]
fn rings() {
    Hostile::new("rings", 60).survives(|_| {});
}

#[test]
fn rings_by_two_vcpus() {
    Hostile { cpus: 2, ..Hostile::new("race", 60) }.survives(|_| {});
}

#[test]
fn disk_requests() {
    Hostile::new("block", 800).survives(|_| {});
}

#[test]
fn msrs_and_cpuid() {
    Hostile::new("msr", 4000).survives(|_| {});
}

#[test]
fn packets_while_a_client_connects() {
    let mut answers = 0;
    Hostile::new("vsock", 3000).survives(|process| {
        let Some(stream) = process.vsock() else { return };
        answers += u32::from(answer(stream).is_some_and(|line| line.is_empty() || line.starts_with("OK ")));
    });
    assert!(answers > 0, "no client was answered");
}

/// The first line that a client is told, empty if there is none; `None` when the machine has ended before.
fn answer(mut stream: UnixStream) -> Option<String> {
    let mut line = String::new();
    let result = stream
        .write_all(b"CONNECT 1024\nwhatever")
        .and_then(|()| BufReader::new(stream).read_line(&mut line).map(drop));
    match result {
        Ok(()) => Some(line),
        Err(error) if is_end(&error) => None,
        Err(error) => panic!("a client has no answer: {error}"),
    }
}

#[test]
fn console() {
    let reason = Hostile::new("console", 40_000).ends();
    // What reaches a terminal moves no cursor.
    let told = ExitReason::KernelPanic { message: "\u{fffd}[31mred\u{fffd}".to_owned() };
    assert_eq!(reason, told);
}

#[test]
fn triple_fault() {
    assert_eq!(Hostile::new("triple-fault", 0).ends(), ExitReason::TripleFault { vcpu: 0 });
}

#[test]
fn a_guest_that_does_nothing_reaches_its_deadlines() {
    let ttl = Some(Duration::from_secs(2));
    for scenario in ["halt", "spin"] {
        let hostile = Hostile { ttl, ..Hostile::new(scenario, 0) };
        assert_eq!(hostile.ends(), ExitReason::Ttl { seconds: 2 });
    }
    let hostile = Hostile { boot_timeout: Duration::from_secs(3), ..Hostile::new("spin", 0) };
    assert!(matches!(hostile.ends(), ExitReason::BootTimeout { .. }));
}
