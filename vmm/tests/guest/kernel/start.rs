//! The first instructions of each vCPU, and what a program without a library has to bring along.

use core::arch::global_asm;
use core::sync::atomic::{AtomicPtr, Ordering};

use crate::{peek, poke};

// The VMM enters in long mode with the lower 4 GiB mapped to themselves; SSE, which compiled code uses, is still off.
global_asm!(
    ".global _start",
    "_start:",
    "cli",
    "mov rax, cr4",
    "or rax, 0x600",
    "mov cr4, rax",
    "lea rsp, [rip + first_stack_end]",
    "call {main}",
    ".bss",
    ".balign 16",
    ".skip 65536",
    "first_stack_end:",
    ".skip 65536",
    "second_stack_end:",
    ".text",
    main = sym crate::main,
);

// The second vCPU begins in real mode at TRAMPOLINE, and goes to long mode at once, with the first one's page tables.
global_asm!(
    ".code16",
    "trampoline:",
    "cli",
    "xor eax, eax",
    "mov ds, ax",
    "lgdt [gdtr_at]",
    "mov eax, 0x620",
    "mov cr4, eax",
    "mov eax, 0x9000",
    "mov cr3, eax",
    "mov ecx, 0xc0000080",
    "rdmsr",
    "or eax, 0x100",
    "wrmsr",
    "mov eax, 0x80000011",
    "mov cr0, eax",
    ".byte 0x66, 0xea",
    ".long long_at",
    ".word 0x10",
    ".code64",
    "trampoline_long:",
    "movabs rax, offset second_start",
    "jmp rax",
    ".balign 8",
    "trampoline_gdtr:",
    ".word 39",
    ".long 0x500",
    "trampoline_end:",
    ".set gdtr_at, {at} + trampoline_gdtr - trampoline",
    ".set long_at, {at} + trampoline_long - trampoline",
    "second_start:",
    "lea rsp, [rip + second_stack_end]",
    "call {second}",
    at = const TRAMPOLINE,
    second = sym second,
);

/// RAM that nobody else uses, and where the number of its page is a SIPI's vector.
const TRAMPOLINE: u64 = 0xf000;
const LAPIC: u64 = 0xfee0_0000;

/// What the second vCPU is to do.
static WORK: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// Lets the second vCPU do `work`, which is to halt it in the end.
pub fn start_second(work: extern "C" fn() -> !) {
    unsafe extern "C" {
        static trampoline: [u8; 256];
        static trampoline_end: u8;
    }
    // SAFETY: the assembler above has put both there, one after the other.
    let code = unsafe {
        core::slice::from_raw_parts(
            (&raw const trampoline).cast::<u8>(),
            (&raw const trampoline_end).addr() - (&raw const trampoline).addr(),
        )
    };
    for (address, byte) in (TRAMPOLINE..).zip(code) {
        poke(address, *byte);
    }
    WORK.store(work as *mut (), Ordering::Release);
    // The LAPIC on; INIT and SIPI to all but this one.
    poke(LAPIC + 0xf0, peek::<u32>(LAPIC + 0xf0) | 0x100);
    poke(LAPIC + 0x300, 0xc_4500_u32);
    poke(LAPIC + 0x300, 0xc_4600_u32 | (TRAMPOLINE >> 12) as u32);
}

extern "C" fn second() -> ! {
    // SAFETY: it was stored before this vCPU was started, and is nothing else.
    let work: extern "C" fn() -> ! = unsafe { core::mem::transmute(WORK.load(Ordering::Acquire)) };
    work()
}

// What the compiler calls and no library brings. The instruction, not a loop: that would be compiled to a call of itself.
global_asm!(
    ".global memcpy, memmove, memset, memcmp",
    "memcpy:",
    "mov rax, rdi",
    "mov rcx, rdx",
    "rep movsb",
    "ret",
    "memmove:",
    "mov rax, rdi",
    "mov rcx, rdx",
    "cmp rdi, rsi",
    "jbe 1f",
    "lea rdi, [rdi + rcx - 1]",
    "lea rsi, [rsi + rcx - 1]",
    "std",
    "rep movsb",
    "cld",
    "ret",
    "1: rep movsb",
    "ret",
    "memset:",
    "mov r8, rdi",
    "mov eax, esi",
    "mov rcx, rdx",
    "rep stosb",
    "mov rax, r8",
    "ret",
    "memcmp:",
    "mov rcx, rdx",
    "xor eax, eax",
    "repe cmpsb",
    "je 2f",
    "movzx eax, byte ptr [rdi - 1]",
    "movzx ecx, byte ptr [rsi - 1]",
    "sub ecx, eax",
    "mov eax, ecx",
    "2: ret",
);
