//! The probe on the KVM that is here: a processor's own passes, anything else is found out.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::fs::File;

use vmm::probe::{self, ProbeError};

#[test]
fn tells_a_software_kvm_apart() {
    let kvm = File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .expect("/dev/kvm is there, and open to this user");
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap();
    let has_virtualization = flags.split_whitespace().any(|flag| matches!(flag, "svm" | "vmx"));
    let result = probe::kvm(kvm);
    println!("the processor has virtualization: {has_virtualization}; the probe says: {result:?}");
    if has_virtualization {
        result.unwrap();
    } else {
        let error = result.unwrap_err();
        assert!(matches!(error, ProbeError::Guest { .. }), "{error}");
    }
}
