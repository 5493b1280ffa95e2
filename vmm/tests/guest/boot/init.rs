//! An initramfs whose `/init` makes one system call: reboot(2).

use std::fs::File;
use std::io::Write as _;

/// `LINUX_REBOOT_CMD_POWER_OFF`.
pub(crate) const POWER_OFF: u32 = 0x4321_fedc;
/// `LINUX_REBOOT_CMD_RESTART`.
pub(crate) const RESTART: u32 = 0x0123_4567;

/// The archive, in a temporary file.
pub(crate) fn initramfs(command: u32) -> File {
    let mut file = tempfile::tempfile().unwrap();
    for (name, mode, content) in [("init", 0o100_755, program(command)), ("TRAILER!!!", 0, Vec::new())] {
        file.write_all(&entry(name, mode, &content)).unwrap();
    }
    file
}

/// A static x86-64 program: reboot(LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, `command`).
fn program(command: u32) -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const CODE: u64 = 64 + 56;
    let mut code = vec![0xb8, 169, 0, 0, 0]; // mov eax, SYS_reboot
    code.push(0xbf); // mov edi, ...
    code.extend(0xfee1_dead_u32.to_le_bytes());
    code.push(0xbe); // mov esi, ...
    code.extend(672_274_793_u32.to_le_bytes());
    code.push(0xba); // mov edx, ...
    code.extend(command.to_le_bytes());
    code.extend([0x0f, 0x05, 0xeb, 0xfe]); // syscall; jmp .
    let len = CODE + code.len() as u64;

    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]); // ET_EXEC, EM_X86_64, version
    for value in [BASE + CODE, 64, 0] {
        file.extend(u64::to_le_bytes(value)); // entry, program headers, no section headers
    }
    file.extend([0; 4]);
    for value in [64, 56, 1, 0, 0, 0] {
        file.extend(u16::to_le_bytes(value));
    }
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]); // PT_LOAD, readable and executable
    for value in [0, BASE, BASE, len, len, 4096] {
        file.extend(u64::to_le_bytes(value));
    }
    file.extend(code);
    file
}

/// An entry of a "newc" archive (Documentation/driver-api/early-userspace/buffer-format.rst).
fn entry(name: &str, mode: u32, content: &[u8]) -> Vec<u8> {
    let fields = [1, mode, 0, 0, 1, 0, content.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
    let mut entry = b"070701".to_vec();
    entry.extend(fields.iter().flat_map(|field| format!("{field:08x}").into_bytes()));
    entry.extend(name.as_bytes());
    entry.push(0);
    entry.resize(entry.len().next_multiple_of(4), 0);
    entry.extend(content);
    entry.resize(entry.len().next_multiple_of(4), 0);
    entry
}
