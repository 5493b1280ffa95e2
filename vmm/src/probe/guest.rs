//! The probe's guest: 64 KiB of memory, 64-bit mode, a supervisor and a user part.

use std::fmt;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, Msrs, kvm_dtable, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::{Kvm, VcpuFd};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::{ProbeError, ioctl};
use crate::arch::x86_64::ArchError;

/// Bytes of memory.
pub(super) const MEMORY: usize = 0x1_0000;
/// Where the guest writes a byte after each step.
pub(super) const PORT: u16 = 0xf4;

const GDT: u64 = 0x500;
const IDT: u64 = 0x600;
const TSS: u64 = 0x700;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
/// Stacks grow down from their ends.
const STACK: u64 = 0x5000;
/// For exceptions in user mode.
const EXCEPTION_STACK: u64 = 0x6000;
const WORDS: u64 = 0x7000;
const START: u64 = 0x8000;

/// Selectors. SYSRET takes user data and code from behind STAR's 0x18 (AMD64 manual, volume 2, section 6.1.1).
const CODE_SELECTOR: u16 = 0x08;
const DATA_SELECTOR: u16 = 0x10;
const SYSRET_BASE: u16 = 0x18;
const TSS_SELECTOR: u16 = 0x30;
const USER_CODE: u8 = 0x2b;

const OLD: u128 = 0x0011_2233_4455_6677_8899_aabb_ccdd_eeff;
const NEW: u128 = !OLD;

const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_SYSCALL_MASK: u32 = 0xc000_0084;

/// What the guest does, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// CMPXCHG16B in supervisor mode.
    Exchange,
    /// INT3 in supervisor mode, and IRET.
    Breakpoint,
    /// IRET to user mode, and back by an exception.
    User,
    /// Back from user mode by SYSCALL.
    Syscall,
    /// To user mode by SYSRET, and back by an exception.
    Sysret,
}

/// Each step, and the byte that the guest writes after it.
pub(super) const STEPS: [(Step, u8); 5] = [
    (Step::Exchange, 1),
    (Step::Breakpoint, CODE_SELECTOR as u8),
    (Step::User, USER_CODE),
    (Step::Syscall, CODE_SELECTOR as u8 | 0x80),
    (Step::Sysret, USER_CODE),
];

const USER: u64 = START + 0x1c;
const BREAKPOINT: u64 = START + 0x22;
const SYSCALL: u64 = START + 0x2a;

/// What it runs, from [`START`].
#[rustfmt::skip]
pub(super) const CODE: [u8; 0x33] = [
    // supervisor mode; rdx:rax is OLD, rcx:rbx is NEW, rdi is WORDS
    0xf0, 0x48, 0x0f, 0xc7, 0x0f,   // 00  lock cmpxchg16b [rdi]
    0x0f, 0x94, 0xc0,               // 05  sete al
    0xe6, 0xf4,                     // 08  out  0xf4, al
    0xcc,                           // 0a  int3
    0x6a, 0x23,                     // 0b  push 0x23             ; SS: user data
    0x68, 0x00, 0x50, 0x00, 0x00,   // 0d  push STACK
    0x6a, 0x02,                     // 12  push 2                ; RFLAGS
    0x6a, 0x2b,                     // 14  push 0x2b             ; CS: user code
    0x56,                           // 16  push rsi              ; USER
    0x48, 0xcf,                     // 17  iretq
    0x90, 0x90, 0x90,               // 19  nop
    // user mode
    0xcc,                           // 1c  int3
    0x0f, 0x05,                     // 1d  syscall
    0xcc,                           // 1f  int3
    0xeb, 0xfe,                     // 20  jmp  $                ; is not run any more
    // exception 3
    0x8a, 0x44, 0x24, 0x08,         // 22  mov  al, [rsp+8]      ; CS of what was interrupted
    0xe6, 0xf4,                     // 26  out  0xf4, al
    0x48, 0xcf,                     // 28  iretq
    // SYSCALL
    0x8c, 0xc8,                     // 2a  mov  eax, cs
    0x0c, 0x80,                     // 2c  or   al, 0x80
    0xe6, 0xf4,                     // 2e  out  0xf4, al
    0x48, 0x0f, 0x07,               // 30  sysretq
];

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exchange => "execute CMPXCHG16B in supervisor mode",
            Self::Breakpoint => "take a breakpoint in supervisor mode",
            Self::User => "enter user mode and come back by an exception",
            Self::Syscall => "come back from user mode by SYSCALL",
            Self::Sysret => "return to user mode by SYSRET",
        })
    }
}

/// Writes tables and code.
pub(super) fn load(memory: &GuestMemoryMmap<()>, code: &[u8]) -> Result<(), GuestMemoryError> {
    let write = |value: u64, address: u64| memory.write_obj(value.to_le(), GuestAddress(address));
    // Present, writable, user; the last one is a page of 2 MiB, of which the guest uses what there is.
    write(PDPT | 0x07, PML4)?;
    write(PD | 0x07, PDPT)?;
    write(0x87, PD)?;

    let tss = 0x67 | TSS << 16 | 0x8b << 40;
    let descriptors = [
        (CODE_SELECTOR, 0x00af_9b00_0000_ffff),
        (DATA_SELECTOR, 0x00cf_9300_0000_ffff),
        (SYSRET_BASE + 8, 0x00cf_f300_0000_ffff),
        (SYSRET_BASE + 16, 0x00af_fb00_0000_ffff),
        (TSS_SELECTOR, tss),
    ];
    for (selector, descriptor) in descriptors {
        write(descriptor, GDT + u64::from(selector))?;
    }
    // An interrupt gate that user mode may call. Every other exception lies beyond the table: a triple fault.
    write(BREAKPOINT | u64::from(CODE_SELECTOR) << 16 | 0xee << 40, IDT + 3 * 16)?;
    write(EXCEPTION_STACK, TSS + 4)?;

    memory.write_obj(OLD.to_le_bytes(), GuestAddress(WORDS))?;
    memory.write_slice(code, GuestAddress(START))
}

/// Whether CMPXCHG16B has done what it should.
pub(super) fn has_exchanged(memory: &GuestMemoryMmap<()>) -> bool {
    memory.read_obj::<[u8; 16]>(GuestAddress(WORDS)).is_ok_and(|words| words == NEW.to_le_bytes())
}

/// Sets the vCPU's registers.
pub(super) fn prepare(kvm: &Kvm, vcpu: &VcpuFd) -> Result<(), ProbeError> {
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(ioctl("ask KVM for its CPUID"))?;
    vcpu.set_cpuid2(&cpuid).map_err(ioctl("set the vCPU's CPUID"))?;

    let mut sregs = vcpu.get_sregs().map_err(ioctl("get the vCPU's system registers"))?;
    let data = segment(DATA_SELECTOR, 0x3);
    sregs.cs = kvm_segment { l: 1, db: 0, ..segment(CODE_SELECTOR, 0xb) };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment { base: TSS, limit: 0x67, s: 0, db: 0, g: 0, ..segment(TSS_SELECTOR, 0xb) };
    sregs.gdt = kvm_dtable { base: GDT, limit: TSS_SELECTOR + 15, ..Default::default() };
    sregs.idt = kvm_dtable { base: IDT, limit: 4 * 16 - 1, ..Default::default() };
    sregs.cr0 = 0x8001_0033; // paging, write protection, numeric errors, protected mode
    sregs.cr3 = PML4;
    sregs.cr4 = 0x20; // PAE
    sregs.efer = 0x501; // long mode, SYSCALL
    vcpu.set_sregs(&sregs).map_err(ioctl("set the vCPU's system registers"))?;

    let star = u64::from(CODE_SELECTOR) << 32 | u64::from(SYSRET_BASE) << 48;
    let entries = [(MSR_STAR, star), (MSR_LSTAR, SYSCALL), (MSR_SYSCALL_MASK, 0)];
    for (index, data) in entries {
        let msr = Msrs::from_entries(&[kvm_msr_entry { index, data, ..Default::default() }]);
        let set = msr.map_or(Ok(0), |msr| vcpu.set_msrs(&msr)).map_err(ioctl("set a register of SYSCALL"))?;
        if set != 1 {
            return Err(ProbeError::Lacks(ArchError::Msr { index, value: data }));
        }
    }
    let regs = kvm_regs {
        rax: OLD as u64,
        rdx: (OLD >> 64) as u64,
        rbx: NEW as u64,
        rcx: (NEW >> 64) as u64,
        rdi: WORDS,
        rsi: USER,
        rsp: STACK,
        rip: START,
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(ioctl("set the vCPU's registers"))
}

/// A flat segment.
fn segment(selector: u16, kind: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_: kind,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        ..Default::default()
    }
}
