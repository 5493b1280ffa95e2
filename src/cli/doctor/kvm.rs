//! /dev/kvm: whether it is there, may be opened, and runs a guest.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use rustix::process::{getegid, geteuid, getgroups};
use vmm::probe::ProbeError;

use super::finding::{Finding, chain};

const DEVICE: &str = "/dev/kvm";

pub(super) fn check() -> Vec<Finding> {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let in_container = ["/.dockerenv", "/run/.containerenv"].iter().any(|path| Path::new(path).exists());
    let mut findings = vec![processor(&cpuinfo)];
    let metadata = match std::fs::metadata(DEVICE) {
        Ok(metadata) if metadata.file_type().is_char_device() => metadata,
        Ok(_) => {
            findings.push(missing("is no device", &cpuinfo, in_container));
            return findings;
        }
        Err(error) => {
            findings.push(missing(&error.to_string(), &cpuinfo, in_container));
            return findings;
        }
    };
    let file = match File::options().read(true).write(true).open(DEVICE) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            findings.push(Finding::ok("kvm.device", "is there"));
            let device = Device { mode: metadata.mode(), gid: metadata.gid() };
            findings.push(denied(&device, &User::current(), in_container));
            return findings;
        }
        // The node is there, the driver is not.
        Err(error) => {
            findings.push(missing(&error.to_string(), &cpuinfo, in_container));
            return findings;
        }
    };
    findings.push(Finding::ok("kvm.device", "is there"));
    findings.push(Finding::ok("kvm.access", "can be read and written"));
    findings.extend(probed(vmm::probe::kvm(file), &cpuinfo));
    findings
}

/// The flag of /proc/cpuinfo that says that the processor has virtualization, and the name of the driver for it.
fn virtualization(cpuinfo: &str) -> Option<(&'static str, &'static str)> {
    flags(cpuinfo).find_map(|flag| match flag {
        "vmx" => Some(("Intel VT-x (vmx)", "kvm_intel")),
        "svm" => Some(("AMD-V (svm)", "kvm_amd")),
        _ => None,
    })
}

fn flags(cpuinfo: &str) -> impl Iterator<Item = &str> {
    let line = cpuinfo.lines().find(|line| line.starts_with("flags"));
    line.and_then(|line| line.split_once(':')).map(|(_, flags)| flags).unwrap_or_default().split_whitespace()
}

fn processor(cpuinfo: &str) -> Finding {
    const CHECK: &str = "kvm.processor";
    match virtualization(cpuinfo) {
        Some((name, _)) => Finding::ok(CHECK, format!("has {name}")),
        // kvm.guest has the last word.
        None if flags(cpuinfo).any(|flag| flag == "hypervisor") => Finding::warning(
            CHECK,
            "shows no virtualization (vmx, svm) in this virtual machine",
            "Enable nested virtualization where this machine is hosted, and give it the host's processor:\n\
             KVM: `options kvm_intel nested=1` (or kvm_amd) in /etc/modprobe.d, and -cpu host, in libvirt \
             <cpu mode='host-passthrough'/>\n\
             Google Cloud: gcloud compute instances create --enable-nested-virtualization\n\
             AWS: a .metal instance, or a type with nested virtualization. Azure: a Dv3, Ev3 or later size\n\
             VMware: \"Virtualize Intel VT-x/EPT or AMD-V/RVI\". VirtualBox: VBoxManage modifyvm NAME --nested-hw-virt on\n\
             Hyper-V: Set-VMProcessor -VMName NAME -ExposeVirtualizationExtensions $true\n\
             WSL 2: nestedVirtualization=true below [wsl2] in .wslconfig",
        ),
        None => Finding::warning(
            CHECK,
            "shows no virtualization (vmx, svm)",
            "Enable \"Intel VT-x\", \"AMD-V\" or \"SVM Mode\" in the firmware's set-up, and boot again.",
        ),
    }
}

fn missing(why: &str, cpuinfo: &str, in_container: bool) -> Finding {
    let remedy = match virtualization(cpuinfo) {
        None => {
            "First see kvm.processor. The driver is loaded at boot once the processor has virtualization."
                .into()
        }
        Some((_, driver)) => {
            let mut text = format!(
                "Load the driver: sudo modprobe {driver}\n\
                 \"Operation not supported\" then means that the firmware has virtualization switched off."
            );
            if in_container {
                text.push_str(
                    "\nThis looks like a container, which has to be given the device: --device /dev/kvm",
                );
            }
            text
        }
    };
    Finding::failed("kvm.device", format!("{DEVICE}: {why}"), remedy)
}

/// Who may open the device.
struct Device {
    mode: u32,
    gid: u32,
}

/// Who asks.
struct User {
    name: String,
    /// The groups of this process.
    groups: Vec<u32>,
    /// /etc/group
    database: String,
}

impl User {
    fn current() -> Self {
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let mut groups = getgroups().unwrap_or_default();
        groups.push(getegid());
        Self {
            name: name_of(&passwd, geteuid().as_raw()).unwrap_or_default().to_owned(),
            groups: groups.iter().map(|group| group.as_raw()).collect(),
            database: std::fs::read_to_string("/etc/group").unwrap_or_default(),
        }
    }
}

/// The name of a user in /etc/passwd (passwd(5)), or of a group in /etc/group (group(5)).
pub(super) fn name_of(database: &str, id: u32) -> Option<&str> {
    entry(database, id).and_then(|line| line.split(':').next())
}

fn entry(database: &str, id: u32) -> Option<&str> {
    database.lines().find(|line| line.split(':').nth(2).is_some_and(|field| field.parse() == Ok(id)))
}

/// Why the device does not open.
fn denied(device: &Device, user: &User, in_container: bool) -> Finding {
    let failed = |detail: String, remedy: String| Finding::failed("kvm.access", detail, remedy);
    let Device { mode, gid } = *device;
    let group = name_of(&user.database, gid).map_or_else(|| gid.to_string(), str::to_owned);
    // Root is what it is called where no rule of udev has been applied.
    if mode & 0o060 != 0o060 || gid == 0 {
        return failed(
            format!("{DEVICE} is not open to a group for users: group {group}, mode {:04o}", mode & 0o7777),
            "Until the next boot: sudo chgrp kvm /dev/kvm && sudo chmod 660 /dev/kvm\n\
             For good: echo 'KERNEL==\"kvm\", GROUP=\"kvm\", MODE=\"0660\"' | sudo tee /etc/udev/rules.d/65-kvm.rules\n\
             Then: sudo usermod -aG kvm $USER, and log in again."
                .into(),
        );
    }
    if user.groups.contains(&gid) {
        let remedy = if in_container {
            "This looks like a container: it has to be given the device, with --device /dev/kvm."
        } else {
            "A security module or the device policy of a service denies it: see `sudo dmesg` and `systemctl show -p \
             DevicePolicy` of the service."
        };
        return failed(
            format!("{DEVICE} is denied although this process is in group {group}"),
            remedy.into(),
        );
    }
    let members = entry(&user.database, gid).and_then(|line| line.split(':').nth(3)).unwrap_or_default();
    if members.split(',').any(|member| !member.is_empty() && member == user.name) {
        return failed(
            format!("{} has joined group {group}, but not in this session", user.name),
            format!("Log out of all sessions and in again. For this shell alone: newgrp {group}"),
        );
    }
    let join = match name_of(&user.database, gid) {
        Some(group) => format!("sudo usermod -aG {group} $USER"),
        None => format!("sudo groupadd -g {gid} kvm && sudo usermod -aG kvm $USER"),
    };
    failed(
        format!("{} is not in group {group}, to which {DEVICE} belongs", user.name),
        format!("{join}\nThen log out of all sessions and in again. For this shell alone: newgrp {group}"),
    )
}

/// What the probe says.
fn probed(result: Result<(), ProbeError>, cpuinfo: &str) -> Vec<Finding> {
    const FEATURES: &str = "kvm.features";
    const GUEST: &str = "kvm.guest";
    let error = match result {
        Ok(()) => {
            return vec![
                Finding::ok(FEATURES, "has all that machines need"),
                Finding::ok(GUEST, "runs a guest in supervisor and in user mode"),
            ];
        }
        Err(error) => error,
    };
    let detail = chain(&error);
    if matches!(error, ProbeError::Lacks(_)) {
        return vec![Finding::failed(FEATURES, detail, "A newer kernel has it.")];
    }
    let remedy = if virtualization(cpuinfo).is_some() {
        "KVM is broken here: `sudo dmesg | grep -i kvm` may say why. In a virtual machine its host is to blame: a newer \
         kernel or hypervisor there."
    } else {
        "This is a software KVM, which does not run ordinary kernels: the processor shows no virtualization. See \
         kvm.processor."
    };
    vec![Finding::ok(FEATURES, "has all that machines need"), Finding::failed(GUEST, detail, remedy)]
}

#[cfg(test)]
#[path = "kvm_tests.rs"]
mod tests;
