use std::time::Duration;

use vmm::probe::Step;

use super::*;
use crate::cli::doctor::finding::Status;

const INTEL: &str = "processor\t: 0\nflags\t\t: fpu vmx sse2\n";
const GUEST_OF_SOME_HOST: &str = "processor\t: 0\nflags\t\t: fpu sse2 hypervisor\nvmx flags\t: svm\n";
const NO_FLAGS: &str = "processor\t: 0\nflags\t\t: fpu sse2 vmxyz\n";

fn remedy(finding: &Finding) -> &str {
    finding.remedy.as_deref().unwrap()
}

#[test]
fn what_the_processor_shows() {
    assert_eq!(processor(INTEL), Finding::ok("kvm.processor", "has Intel VT-x (vmx)"));
    let nested = processor(GUEST_OF_SOME_HOST);
    assert_eq!(nested.status, Status::Warning);
    assert!(remedy(&nested).contains("nested=1"));
    let firmware = processor(NO_FLAGS);
    assert_eq!(firmware.status, Status::Warning);
    assert!(remedy(&firmware).contains("firmware") && !remedy(&firmware).contains("nested"));
}

#[test]
fn no_device() {
    let finding = missing("No such file", INTEL, false);
    assert_eq!(finding.status, Status::Failed);
    assert!(remedy(&finding).contains("modprobe kvm_intel") && !remedy(&finding).contains("--device"));
    assert!(remedy(&missing("No such file", INTEL, true)).contains("--device /dev/kvm"));
    assert!(remedy(&missing("No such file", NO_FLAGS, false)).contains("kvm.processor"));
}

#[test]
fn who_may_open_it() {
    let database = "root:x:0:\nkvm:x:104:ann,bob\nann:x:1000:\n";
    let user = |name: &str, groups: &[u32]| User {
        name: name.into(),
        groups: groups.to_vec(),
        database: database.into(),
    };
    let device = |mode: u32, gid| Device { mode: 0o20_000 | mode, gid };
    let cases = [
        (device(0o660, 104), user("eve", &[1001]), "eve is not in group kvm", "sudo usermod -aG kvm $USER"),
        (device(0o660, 104), user("bob", &[1002]), "bob has joined group kvm, but not in this", "newgrp kvm"),
        (device(0o660, 104), user("bo", &[1002]), "bo is not in group kvm", "usermod"),
        (device(0o660, 104), user("", &[1002]), "is not in group kvm", "usermod"),
        (device(0o660, 104), user("ann", &[1000, 104]), "although this process is in group kvm", "security"),
        (device(0o600, 104), user("ann", &[1000, 104]), "group kvm, mode 0600", "sudo chmod 660 /dev/kvm"),
        (device(0o660, 0), user("ann", &[1000]), "group root, mode 0660", "sudo chgrp kvm /dev/kvm"),
        (device(0o660, 77), user("ann", &[1000]), "ann is not in group 77", "sudo groupadd -g 77 kvm"),
    ];
    for (device, user, detail, remedy) in cases {
        let finding = denied(&device, &user, false);
        assert_eq!((finding.check, finding.status), ("kvm.access", Status::Failed));
        assert!(finding.detail.contains(detail), "{finding:?}");
        assert!(finding.remedy.as_ref().unwrap().contains(remedy), "{finding:?}");
    }
    let in_container = denied(&device(0o660, 104), &user("ann", &[104]), true);
    assert!(remedy(&in_container).contains("--device"));
}

#[test]
fn what_the_probe_says() {
    let statuses = |result, cpuinfo| {
        let findings = probed(result, cpuinfo);
        findings.into_iter().map(|found| (found.check, found.status)).collect::<Vec<_>>()
    };
    assert_eq!(statuses(Ok(()), INTEL), [("kvm.features", Status::Ok), ("kvm.guest", Status::Ok)]);
    let lacks = ProbeError::Lacks(vmm::arch::x86_64::ArchError::Lacks("irqfd"));
    assert_eq!(statuses(Err(lacks), INTEL), [("kvm.features", Status::Failed)]);

    let timeout = || ProbeError::Timeout { step: Step::User, deadline: Duration::from_secs(10) };
    assert_eq!(
        statuses(Err(timeout()), INTEL),
        [("kvm.features", Status::Ok), ("kvm.guest", Status::Failed)]
    );
    let software = &probed(Err(timeout()), GUEST_OF_SOME_HOST)[1];
    assert!(
        remedy(software).contains("software KVM") && software.detail.contains("within 10 s"),
        "{software:?}"
    );
    assert!(!remedy(&probed(Err(timeout()), INTEL)[1]).contains("software"));

    let source = io::Error::from_raw_os_error(12);
    let setup = ProbeError::Setup { action: "create a virtual machine", source };
    let detail = &probed(Err(setup), INTEL)[1].detail;
    assert!(detail.starts_with("cannot create a virtual machine: "), "{detail}");
}
