//! The host's kernel and memory.

use landlock::{
    ABI, Access as _, AccessFs, LandlockStatus, RestrictionStatus, Ruleset, RulesetAttr as _, RulesetError,
};
use rustix::system::uname;

use super::finding::Finding;
use crate::size::Size;

/// The first kernel with all that the process of a machine asks for: close_range(2) and pidfd_open(2).
const OLDEST_KERNEL: (u32, u32) = (5, 9);
/// The first kernel with Landlock.
const LANDLOCK_KERNEL: (u32, u32) = (5, 13);
/// Less than this is short for a guest of the default size beside everything else.
const LITTLE_MEMORY: u64 = 1 << 30;

pub(super) fn check() -> Vec<Finding> {
    let release = uname().release().to_string_lossy().into_owned();
    let sysctl = |name: &str| std::fs::read_to_string(format!("/proc/sys/{name}")).ok();
    let mut findings = vec![
        kernel(&release),
        seccomp(sysctl("kernel/seccomp/actions_avail").as_deref()),
        landlock(try_landlock(), &release),
        namespaces(
            sysctl("user/max_user_namespaces").as_deref(),
            sysctl("kernel/unprivileged_userns_clone").as_deref(),
            sysctl("kernel/apparmor_restrict_unprivileged_userns").as_deref(),
        ),
    ];
    findings.extend(std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| memory(&text)));
    findings.extend(sysctl("vm/overcommit_memory").map(|text| overcommit(&text)));
    let huge = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    findings.push(huge_pages(huge.ok().as_deref()));
    findings
}

/// The first two numbers of a release, as in 6.12.5-amd64.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn kernel(release: &str) -> Finding {
    const CHECK: &str = "host.kernel";
    let (major, minor) = OLDEST_KERNEL;
    match version(release) {
        Some(version) if version < OLDEST_KERNEL => Finding::failed(
            CHECK,
            format!("Linux {release} is older than {major}.{minor}"),
            "Install a newer kernel: that of the distribution's current release.",
        ),
        _ => Finding::ok(CHECK, format!("Linux {release}")),
    }
}

fn seccomp(actions: Option<&str>) -> Finding {
    const CHECK: &str = "host.seccomp";
    if actions.unwrap_or_default().split_whitespace().any(|action| action == "kill_process") {
        Finding::ok(CHECK, "can filter system calls")
    } else {
        Finding::failed(
            CHECK,
            "the kernel does not filter system calls, and no machine runs without it",
            "Use a kernel with CONFIG_SECCOMP_FILTER=y, as all distributions have.",
        )
    }
}

/// Restricts a thread that then ends: only this shows that it works.
fn try_landlock() -> Option<LandlockStatus> {
    let restrict = || -> Result<RestrictionStatus, RulesetError> {
        Ruleset::default().handle_access(AccessFs::from_all(ABI::V1))?.create()?.restrict_self()
    };
    std::thread::Builder::new().spawn(restrict).ok()?.join().ok()?.ok().map(|status| status.landlock)
}

fn landlock(status: Option<LandlockStatus>, release: &str) -> Finding {
    const CHECK: &str = "host.landlock";
    let (detail, remedy) = match status {
        Some(LandlockStatus::Available { effective_abi, kernel_abi }) => {
            let abi = kernel_abi.unwrap_or(effective_abi as i32);
            let lacks = match abi {
                ..4 => ", without TCP (4) and signals (6)",
                4..6 => ", without signals (6)",
                _ => "",
            };
            return Finding::ok(CHECK, format!("ABI {abi}{lacks}"));
        }
        Some(LandlockStatus::NotEnabled) => (
            "is in the kernel, but not enabled",
            "Add landlock to the list that /sys/kernel/security/lsm shows, and boot with it: lsm=landlock,...",
        ),
        _ if version(release).is_some_and(|version| version < LANDLOCK_KERNEL) => {
            ("is not in a kernel of this age", "Linux 5.13 and newer have it.")
        }
        Some(LandlockStatus::NotImplemented) => {
            ("is not in this kernel", "Use a kernel with CONFIG_SECURITY_LANDLOCK=y.")
        }
        None => {
            ("cannot be used", "A container's or service's system call filter denies it: allow landlock_*.")
        }
    };
    Finding::warning(
        CHECK,
        format!("{detail}: the process of a machine has one layer less around it"),
        remedy,
    )
}

/// The arguments are texts of sysctls; the last two are of Debian's and of Ubuntu's kernels only.
fn namespaces(max: Option<&str>, clone: Option<&str>, apparmor: Option<&str>) -> Finding {
    const CHECK: &str = "host.namespaces";
    let is = |text: Option<&str>, value: &str| text.map(str::trim) == Some(value);
    let warning = |detail: &str, remedy: &str| {
        Finding::warning(CHECK, format!("ordinary users have none: {detail}"), remedy)
    };
    if max.is_none() {
        warning("the kernel has no user namespaces", "Use a kernel with CONFIG_USER_NS=y.")
    } else if is(max, "0") {
        warning("user.max_user_namespaces is 0", "sudo sysctl user.max_user_namespaces=15000")
    } else if is(clone, "0") {
        warning("kernel.unprivileged_userns_clone is 0", "sudo sysctl kernel.unprivileged_userns_clone=1")
    } else if is(apparmor, "1") {
        warning(
            "AppArmor restricts them (Ubuntu 23.10 and newer)",
            "Machines run without them, in a jail with a layer less. For all programs:\n\
             sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0",
        )
    } else {
        Finding::ok(CHECK, "user namespaces are open to ordinary users")
    }
}

fn memory(meminfo: &str) -> Option<Finding> {
    let bytes = |key: &str| -> Option<u64> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    };
    let (available, total) = (bytes("MemAvailable")?, bytes("MemTotal")?);
    let detail =
        format!("{} of {} available", indicatif::BinaryBytes(available), indicatif::BinaryBytes(total));
    Some(if available < LITTLE_MEMORY {
        let remedy = format!(
            "End something else, or give guests little: --memory 256MiB. {} is little.",
            Size(LITTLE_MEMORY)
        );
        Finding::warning("host.memory", detail, remedy)
    } else {
        Finding::ok("host.memory", detail)
    })
}

fn overcommit(text: &str) -> Finding {
    const CHECK: &str = "host.overcommit";
    match text.trim() {
        // MAP_NORESERVE has no effect then (proc_sys_vm(5)).
        "2" => Finding::warning(
            CHECK,
            "vm.overcommit_memory is 2: all of a guest's memory counts from the start, used or not",
            "sudo sysctl vm.overcommit_memory=0",
        ),
        mode => Finding::ok(
            CHECK,
            format!("a guest's memory counts when it is used (vm.overcommit_memory={mode})"),
        ),
    }
}

/// /sys/kernel/mm/transparent_hugepage/enabled, as in `always [madvise] never`.
fn huge_pages(enabled: Option<&str>) -> Finding {
    const CHECK: &str = "host.hugepages";
    let chosen = enabled.and_then(|text| text.split_once('[')?.1.split_once(']')).map(|(word, _)| word);
    match chosen {
        Some(word @ ("always" | "madvise")) => Finding::ok(CHECK, format!("transparent huge pages: {word}")),
        Some(_) => Finding::warning(
            CHECK,
            "transparent huge pages are off: guests boot slower",
            "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
        ),
        None => Finding::warning(
            CHECK,
            "the kernel has no transparent huge pages: guests boot slower",
            "Use a kernel with CONFIG_TRANSPARENT_HUGEPAGE=y.",
        ),
    }
}

#[cfg(test)]
#[path = "host_tests.rs"]
mod tests;
