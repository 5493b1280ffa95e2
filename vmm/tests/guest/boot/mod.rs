//! Boots the real guest kernel, without devices.

mod init;
mod machine;

use std::fs::File;
use std::path::Path;
use std::time::Instant;

use crate::guest_kernel;
use machine::{End, Guest, Machine, Trace};

/// The messages of a panic, and nothing else. (`pci=off`: Linux loads no ACPI tables without CONFIG_PCI, and then looks for buses.)
const QUIET: &str = "pci=off quiet loglevel=1 reboot=k panic=-1 earlyprintk=serial,0x3f8,nocfg,keep";
/// Everything.
const VERBOSE: &str = "pci=off reboot=k panic=-1 earlyprintk=serial,0x3f8,nocfg,keep";
const NO_ROOT: &str = "VFS: Unable to mount root fs";

fn open(path: &Path) -> File {
    File::open(path).unwrap_or_else(|error| panic!("opening {}: {error}", path.display()))
}

/// Boots `guest`, and tells how it went.
fn boot(guest: &Guest<'_>) -> (End, Trace) {
    let (mut machine, steps) = Machine::new(guest);
    let start = Instant::now();
    let end = machine.run();
    let ran = start.elapsed();
    let trace = machine.trace();
    let Guest { pvh, mib, cpus, .. } = guest;
    println!(
        "{} vCPU, {mib} MiB, {}: {steps}guest {:.0} ms, {} returns of KVM_RUN: {:?}",
        cpus,
        if *pvh { "PVH" } else { "64-bit" },
        ran.as_secs_f64() * 1e3,
        trace.returns.values().sum::<u64>(),
        trace.returns
    );
    (end, trace)
}

#[test]
fn panics_without_a_root_by_either_protocol_on_any_number_of_vcpus() {
    let kernel = open(&guest_kernel());
    for cpus in [1, 2, 4] {
        for pvh in [true, false] {
            let guest =
                Guest { kernel: &kernel, pvh, cmdline: QUIET, initramfs: None, mib: 128, cpus, devices: 0 };
            let (end, trace) = boot(&guest);
            assert_eq!(end, End::Reset, "{}", trace.console);
            assert!(trace.console.contains(NO_ROOT), "{}", trace.console);
        }
    }
}

/// The number after `before` in the console's text.
fn number(console: &str, before: &str) -> u64 {
    let rest = console.split(before).nth(1).unwrap_or_else(|| panic!("{before:?} in {console}"));
    rest.trim_start().split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
}

#[test]
fn finds_all_vcpus_ram_and_devices() {
    let kernel = open(&guest_kernel());
    for (mib, cpus) in [(128, 1), (3584, 2), (4608, 4)] {
        for pvh in [true, false] {
            let guest =
                Guest { kernel: &kernel, pvh, cmdline: VERBOSE, initramfs: None, mib, cpus, devices: 19 };
            let (end, trace) = boot(&guest);
            let console = &trace.console;
            assert_eq!(end, End::Reset, "{console}");
            assert_eq!(number(console, "smp: Brought up 1 node,"), u64::from(cpus));
            // "Memory: 97216K/130676K available": the kernel leaves out the first page and what is reserved below 1 MiB.
            let all = number(console.split("Memory:").nth(1).unwrap_or_else(|| panic!("{console}")), "K/");
            assert!(
                (u64::from(mib) * 1024 - 512..u64::from(mib) * 1024).contains(&all),
                "{all} KiB of {mib} MiB"
            );
            // There is nothing behind the registers of the devices, which reads as ones.
            for device in [0, 18] {
                let found = format!("LNRO0005:{device:02x}: Wrong magic value 0xffffffff");
                assert!(console.contains(&found), "{found:?} in {console}");
            }
        }
    }
}

#[test]
fn a_bzimage_boots() {
    let kernel = open(&guest_kernel().with_file_name("bzImage"));
    let guest =
        Guest { kernel: &kernel, pvh: false, cmdline: QUIET, initramfs: None, mib: 256, cpus: 2, devices: 0 };
    let (end, trace) = boot(&guest);
    assert_eq!(end, End::Reset, "{}", trace.console);
    assert!(trace.console.contains(NO_ROOT), "{}", trace.console);
}

#[test]
fn init_switches_the_machine_off_and_resets_it() {
    let kernel = open(&guest_kernel());
    let cases = [
        (init::POWER_OFF, End::PowerOff, "reboot: Power down\r\n"),
        (init::RESTART, End::Reset, "reboot: Restarting system\r\n"),
    ];
    for (command, expected, last_words) in cases {
        let initramfs = init::initramfs(command);
        for pvh in [true, false] {
            let initramfs = Some(&initramfs);
            let guest =
                Guest { kernel: &kernel, pvh, cmdline: QUIET, initramfs, mib: 128, cpus: 2, devices: 0 };
            let (end, trace) = boot(&guest);
            assert_eq!(end, expected, "{}", trace.console);
            assert!(trace.console.ends_with(last_words), "{}", trace.console);
            assert_eq!(trace.console.lines().count(), 1, "{}", trace.console);
        }
    }
}

/// Saved in the middle of the boot, again and again, and gone on with in a new machine.
#[test]
fn a_machine_goes_on_where_it_was_saved() {
    let kernel = open(&guest_kernel());
    for cpus in [1, 2] {
        let guest = Guest {
            kernel: &kernel,
            pvh: true,
            cmdline: VERBOSE,
            initramfs: None,
            mib: 128,
            cpus,
            devices: 0,
        };
        let (mut machine, _) = Machine::new(&guest);
        for text in ["Linux version", "Brought up", "Switched to clocksource", "NET: Registered PF_PACKET"] {
            let end = machine.run_until(Some(text));
            assert_eq!(end, End::Said, "waiting for {text:?}: {}", machine.trace().console);
            machine.move_to_new_vm();
        }
        let end = machine.run();
        let trace = machine.trace();
        assert_eq!(end, End::Reset, "{}", trace.console);
        assert!(trace.console.contains(NO_ROOT), "{}", trace.console);
        assert!(!trace.console.contains("BUG:") && !trace.console.contains("Oops"), "{}", trace.console);
    }
}

#[test]
fn a_new_generation_id_reseeds_the_random_numbers() {
    let kernel = open(&guest_kernel());
    let guest = Guest {
        kernel: &kernel,
        pvh: true,
        cmdline: VERBOSE,
        initramfs: None,
        mib: 128,
        cpus: 1,
        devices: 0,
    };
    let (mut machine, _) = Machine::new(&guest);
    assert_eq!(machine.run_until(Some("NET: Registered PF_VSOCK")), End::Said);
    machine.become_a_copy();
    assert_eq!(machine.run(), End::Reset);
    let console = machine.trace().console;
    assert!(console.contains("crng reseeded due to virtual machine fork"), "{console}");
}
