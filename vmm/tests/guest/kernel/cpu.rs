//! Ports, MSRs and CPUID.

use core::arch::{asm, global_asm, x86_64::__cpuid_count};

use crate::Random;

/// The serial port's data.
pub const SERIAL: u16 = 0x3f8;

pub fn out8(port: u16, value: u8) {
    // SAFETY: a port is no memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) }
}

pub fn out16(port: u16, value: u16) {
    // SAFETY: as above.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack)) }
}

pub fn out32(port: u16, value: u32) {
    // SAFETY: as above.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack)) }
}

/// Reads `port` in every width.
pub fn in_all(port: u16) {
    // SAFETY: as above.
    unsafe {
        asm!("in al, dx", "in ax, dx", "in eax, dx", in("dx") port, out("eax") _, options(nomem, nostack));
    }
}

/// Reads `port` `count` times into `buffer`.
pub fn in_string(port: u16, buffer: &mut [u8]) {
    // SAFETY: no more is written than `buffer` holds.
    unsafe {
        asm!("rep insb", in("dx") port, inout("rcx") buffer.len() => _, inout("rdi") buffer.as_mut_ptr() => _);
    }
}

/// Writes `buffer` to `port`.
pub fn out_string(port: u16, buffer: &[u8]) {
    // SAFETY: no more is read than `buffer` holds.
    unsafe {
        asm!("rep outsb", in("dx") port, inout("rcx") buffer.len() => _, inout("rsi") buffer.as_ptr() => _);
    }
}

/// ACPI S5.
pub fn power_off() -> ! {
    out8(0x600, 5 << 2 | 1 << 5);
    halt()
}

/// By the i8042.
pub fn reset() -> ! {
    out8(0x64, 0xfe);
    halt()
}

/// For ever: no interrupt comes.
pub fn halt() -> ! {
    loop {
        // SAFETY: nothing is touched.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) }
    }
}

#[repr(C, packed)]
struct TablePointer {
    limit: u16,
    base: u64,
}

/// An exception without a table of handlers.
pub fn triple_fault() -> ! {
    let none = TablePointer { limit: 0, base: 0 };
    // SAFETY: nothing runs after it.
    unsafe { asm!("lidt [{}]", "ud2", in(reg) &raw const none, options(noreturn)) }
}

// Goes on after the instruction that has faulted: RDMSR and WRMSR have two bytes.
global_asm!("skip:", "add rsp, 8", "add qword ptr [rsp], 2", "iretq");

const GENERAL_PROTECTION: usize = 13;

/// RDMSR, WRMSR and CPUID of anything but what this kernel stands on.
pub fn storm(random: &mut Random, rounds: u64) {
    unsafe extern "C" {
        fn skip();
    }
    let handler = skip as *const () as u64;
    let gate = handler & 0xffff | 0x10 << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
    let mut gates = [[0_u64; 2]; 32];
    gates[GENERAL_PROTECTION] = [gate, handler >> 32];
    let table =
        TablePointer { limit: (size_of_val(&gates) - 1) as u16, base: (&raw const gates).addr() as u64 };
    // SAFETY: the table is there until the end of this function, and no exception comes after it.
    unsafe { asm!("lidt [{}]", in(reg) &raw const table) };
    for _ in 0..rounds {
        let base = random.one_of(&[
            0,
            0x400,
            0x800,
            0x4000_0000,
            0x4b56_4d00,
            0xc000_0000,
            0xc001_0000,
            0xc001_1000,
        ]);
        let msr = base + random.below(0x400) as u32;
        // SAFETY: what faults is skipped; see below for what is not to be written.
        unsafe { asm!("rdmsr", in("ecx") msr, out("eax") _, out("edx") _) };
        // The APIC's address, EFER, and where KVM writes to memory.
        if !matches!(msr, 0x1b | 0xc000_0080 | 0x11 | 0x12 | 0x4b56_4d00..=0x4b56_4dff | 0x4000_0000..=0x4000_0fff)
        {
            let value = random.next() >> random.below(64);
            // SAFETY: as above.
            unsafe { asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32) };
        }
        let leaf = random.one_of(&[0, 0x4000_0000, 0x8000_0000]) + random.below(64) as u32;
        __cpuid_count(leaf, random.below(4) as u32);
        __cpuid_count(random.next() as u32, random.next() as u32);
    }
}
