use super::*;
use crate::cli::doctor::finding::Status;

#[test]
fn releases() {
    assert_eq!(version("6.12.5+deb13-amd64"), Some((6, 12)));
    assert_eq!(version("5.8-rc1"), Some((5, 8)));
    assert_eq!(version("what"), None);
    assert_eq!(kernel("5.8.18").status, Status::Failed);
    assert_eq!(kernel("5.10.0-30-amd64").status, Status::Ok);
    assert_eq!(kernel("6.1").status, Status::Ok);
}

#[test]
fn filters() {
    assert_eq!(seccomp(Some("kill_process kill_thread trap errno\n")).status, Status::Ok);
    assert_eq!(seccomp(Some("kill_thread trap")).status, Status::Failed);
    assert_eq!(seccomp(None).status, Status::Failed);
}

#[test]
fn landlock_by_status() {
    let available = |effective_abi, kernel_abi| Some(LandlockStatus::Available { effective_abi, kernel_abi });
    let old = landlock(available(ABI::V1, None), "5.15.0");
    assert_eq!((old.status, old.detail.as_str()), (Status::Ok, "ABI 1, without TCP (4) and signals (6)"));
    assert_eq!(landlock(available(ABI::V4, None), "6.7.0").detail, "ABI 4, without signals (6)");
    assert_eq!(landlock(available(ABI::V6, Some(9)), "7.0.0").detail, "ABI 9");
    for (status, release, remedy) in [
        (Some(LandlockStatus::NotEnabled), "6.1.0", "lsm=landlock"),
        (Some(LandlockStatus::NotImplemented), "6.1.0", "CONFIG_SECURITY_LANDLOCK"),
        (Some(LandlockStatus::NotImplemented), "5.10.0", "Linux 5.13"),
        (None, "6.1.0", "allow landlock_"),
    ] {
        let finding = landlock(status, release);
        assert_eq!(finding.status, Status::Warning);
        assert!(finding.remedy.as_ref().unwrap().contains(remedy), "{finding:?}");
    }
}

/// It must restrict the thread that tried it alone.
#[test]
fn trying_landlock_changes_nothing_here() {
    try_landlock();
    std::fs::read("/proc/self/status").unwrap();
    assert!(!rustix::thread::no_new_privs().unwrap());
}

#[test]
fn namespaces_by_sysctl() {
    assert_eq!(namespaces(Some("127000\n"), None, None).status, Status::Ok);
    assert_eq!(namespaces(Some("127000\n"), Some("1\n"), Some("0\n")).status, Status::Ok);
    for (max, clone, apparmor, word) in [
        (None, None, None, "CONFIG_USER_NS"),
        (Some("0\n"), None, None, "max_user_namespaces"),
        (Some("9\n"), Some("0\n"), None, "unprivileged_userns_clone=1"),
        (Some("9\n"), None, Some("1\n"), "apparmor_restrict_unprivileged_userns=0"),
    ] {
        let finding = namespaces(max, clone, apparmor);
        assert_eq!(finding.status, Status::Warning);
        assert!(finding.remedy.as_ref().unwrap().contains(word), "{finding:?}");
    }
}

#[test]
fn memory_and_its_rules() {
    let meminfo = |available: u64| format!("MemTotal:  8388608 kB\nMemAvailable:  {available} kB\n");
    let plenty = memory(&meminfo(4 << 20)).unwrap();
    assert_eq!((plenty.status, plenty.detail.as_str()), (Status::Ok, "4.00 GiB of 8.00 GiB available"));
    assert_eq!(memory(&meminfo((1 << 20) - 1)).unwrap().status, Status::Warning);
    assert_eq!(memory("MemTotal: 1 kB\n"), None);
    assert_eq!(overcommit("0\n").status, Status::Ok);
    assert_eq!(overcommit("2\n").status, Status::Warning);
    assert_eq!(huge_pages(Some("always [madvise] never\n")).status, Status::Ok);
    assert_eq!(huge_pages(Some("always madvise [never]\n")).status, Status::Warning);
    assert_eq!(huge_pages(None).status, Status::Warning);
}
