//! Builds the guest's agent, which the binary carries: for musl, because it is the only program in its initramfs.

use std::env;
use std::path::PathBuf;
use std::process::{Command, exit};

const TARGET: &str = "x86_64-unknown-linux-musl";

fn main() {
    for path in ["agent", "protocol", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={path}");
    }
    if let Err(why) = build() {
        eprintln!("the guest's agent was not built: {why}");
        exit(1);
    }
}

fn build() -> Result<(), String> {
    let variable = |name: &str| env::var_os(name).ok_or_else(|| format!("cargo did not set {name}"));
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
