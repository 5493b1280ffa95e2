//! What the binary carries. The guest's agent, built for musl, because it is the only program in its initramfs. And in a
//! release the guest's kernel, if VOIDRUN_EMBED_KERNEL names one.

use std::env;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, exit};

use sha2::{Digest as _, Sha256};

const TARGET: &str = "x86_64-unknown-linux-musl";

fn main() {
    for path in ["agent", "archive", "protocol", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={path}");
    }
    // A machine is a process, and begins with relocating itself: packed, there are 9 KiB of relocations to read, not 740.
    if env::var_os("TARGET").is_some_and(|target| target == TARGET) {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
    if let Err(why) = agent() {
        eprintln!("the guest's agent was not built: {why}");
        exit(1);
    }
    if let Err(why) = kernel() {
        eprintln!("the guest's kernel was not embedded: {why}");
        exit(1);
    }
}

fn variable(name: &str) -> Result<OsString, String> {
    env::var_os(name).ok_or_else(|| format!("cargo did not set {name}"))
}

fn agent() -> Result<(), String> {
    let directory = PathBuf::from(variable("OUT_DIR")?).join("agent");
    let source = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);

    let mut cargo = Command::new(variable("CARGO")?);
    cargo.args(["build", "--locked", "--package", "agent", "--bin", "voidrun-agent"]);
    cargo.args(["--profile", "agent", "--target", TARGET, "--target-dir"]).arg(&directory);
    cargo.current_dir(&source);
    // What the build around this one was asked for is not for the agent: clippy's wrapper, sanitizers, coverage, another target.
    for name in [
        "CARGO_BUILD_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "CARGO_BUILD_TARGET_DIR",
        "CARGO_TARGET_DIR",
        "CLIPPY_ARGS",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTFLAGS",
    ] {
        cargo.env_remove(name);
    }
    // Nothing in it is relocated, and it names no path of the machine that built it.
    let mut flags =
        vec!["-Crelocation-model=static".to_owned(), format!("--remap-path-prefix={}=.", source.display())];
    if let Some(home) =
        env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".cargo")))
    {
        flags.push(format!("--remap-path-prefix={}=cargo", home.display()));
    }
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));

    let status = cargo.status().map_err(|error| format!("cargo: {error}"))?;
    if !status.success() {
        let hint = format!("if its target is missing, `rustup target add {TARGET}` gets it");
        return Err(format!("cargo build ended with {status}; {hint}"));
    }
    let binary = directory.join(TARGET).join("agent").join("voidrun-agent");
    println!("cargo::rustc-env=VOIDRUN_AGENT={}", binary.display());
    Ok(())
}

/// Compresses the kernel, and writes an expression of type `Option<Embedded>` for src/sandbox/embedded.rs to include.
fn kernel() -> Result<(), String> {
    const NAME: &str = "VOIDRUN_EMBED_KERNEL";
    // The best that still unpacks within 8 MiB of window.
    const LEVEL: i32 = 19;
    println!("cargo::rerun-if-env-changed={NAME}");
    let directory = PathBuf::from(variable("OUT_DIR")?);
    let write = |name: &str, content: &[u8]| {
        fs::write(directory.join(name), content).map_err(|error| format!("{name}: {error}"))
    };
    let Some(path) = env::var_os(NAME).filter(|path| !path.is_empty()).map(PathBuf::from) else {
        return write("kernel.rs", b"None");
    };
    println!("cargo::rerun-if-changed={}", path.display());
    let kernel = fs::read(&path).map_err(|error| format!("{NAME} is {}: {error}", path.display()))?;
    if !kernel.starts_with(b"\x7fELF") {
        return Err(format!("{NAME} is {}: this is no vmlinux", path.display()));
    }
    let mut sha256 = String::new();
    for byte in Sha256::digest(&kernel) {
        let _ = write!(sha256, "{byte:02x}");
    }
    let zstd = zstd::bulk::compress(&kernel, LEVEL).map_err(|error| format!("zstd: {error}"))?;
    write("kernel.zst", &zstd)?;
    let size = kernel.len();
    let zstd = r#"include_bytes!(concat!(env!("OUT_DIR"), "/kernel.zst"))"#;
    write(
        "kernel.rs",
        format!(r#"Some(Embedded {{ zstd: {zstd}, sha256: "{sha256}", size: {size} }})"#).as_bytes(),
    )
}
