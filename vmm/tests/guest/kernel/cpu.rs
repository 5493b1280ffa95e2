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

// One entry a vector, 16 bytes each. All leave an error code and the vector above what the processor has saved.
global_asm!(
    ".balign 16",
    ".global exception_entries, skip",
    "exception_entries:",
    ".set vector, 0",
    ".rept {count}",
    ".balign 16",
    ".if !({with_code} >> vector & 1)",
    "push 0",
    ".endif",
    "push vector",
    "jmp {exception}",
    ".set vector, vector + 1",
    ".endr",
    // Goes on after the instruction that has faulted: RDMSR and WRMSR have two bytes.
    "skip:",
    "add rsp, 8",
    "add qword ptr [rsp], 2",
    "iretq",
    count = const EXCEPTIONS,
    with_code = const 0x6022_7d00_u32,
    exception = sym exception_entry,
);

const EXCEPTIONS: usize = 32;
const GENERAL_PROTECTION: usize = 13;

/// The gates of this processor's exceptions. Only the first one has them.
static mut GATES: [[u64; 2]; EXCEPTIONS] = [[0; 2]; EXCEPTIONS];

fn set_gate(vector: usize, handler: u64) {
    let gate = handler & 0xffff | 0x10 << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
    // SAFETY: no other vCPU and no handler writes them.
    unsafe { GATES[vector] = [gate, handler >> 32] };
}

/// From here on an exception tells of itself instead of ending in a triple fault that says nothing.
pub fn catch_exceptions() {
    unsafe extern "C" {
        static exception_entries: u8;
    }
    for vector in 0..EXCEPTIONS {
        set_gate(vector, (&raw const exception_entries).addr() as u64 + vector as u64 * 16);
    }
    let table = TablePointer { limit: (EXCEPTIONS * 16 - 1) as u16, base: (&raw const GATES).addr() as u64 };
    // SAFETY: the table is there for ever.
    unsafe { asm!("lidt [{}]", in(reg) &raw const table) };
}

/// What an entry has left on the stack.
#[repr(C)]
struct Saved {
    vector: u64,
    code: u64,
    rip: u64,
    cs: u64,
    flags: u64,
    rsp: u64,
}

#[unsafe(naked)]
extern "C" fn exception_entry() -> ! {
    core::arch::naked_asm!("mov rdi, rsp", "and rsp, -16", "call {}", sym exception)
}

extern "C" fn exception(saved: &Saved) -> ! {
    let (cr2, cr3): (u64, u64);
    // SAFETY: nothing is touched.
    unsafe { asm!("mov {}, cr2", "mov {}, cr3", out(reg) cr2, out(reg) cr3, options(nomem, nostack)) };
    let Saved { vector, code, rip, cs, flags, rsp } = saved;
    panic!(
        "exception {vector}, code {code:#x}, at {cs:x}:{rip:x}, flags {flags:x}, rsp {rsp:x}, cr2 {cr2:x}, cr3 {cr3:x}"
    )
}

/// RDMSR, WRMSR and CPUID of anything but what this kernel stands on.
pub fn storm(random: &mut Random, rounds: u64) {
    unsafe extern "C" {
        fn skip();
    }
    set_gate(GENERAL_PROTECTION, skip as *const () as u64);
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
