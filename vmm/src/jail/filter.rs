//! From the tables of system calls to the programs that the kernel runs.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt::Write as _;
use std::sync::OnceLock;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, sock_filter,
};
use sha2::{Digest as _, Sha256};

use super::syscalls::{NOT_IMPLEMENTED, When, tables};
use super::{JailError, Thread};

/// Each is made once: it is told of before it is entered.
static PROGRAMS: [OnceLock<BpfProgram>; Thread::ALL.len()] = [const { OnceLock::new() }; Thread::ALL.len()];

/// The program for a thread of the kind `thread`: always the same one.
///
/// # Errors
/// [`JailError::Seccomp`]: the machine is of an architecture without a filter.
pub fn filter(thread: Thread) -> Result<&'static BpfProgram, JailError> {
    let made = &PROGRAMS[thread as usize];
    if let Some(program) = made.get() {
        return Ok(program);
    }
    let program = compile(thread)
        .map_err(|source| JailError::Seccomp { thread, source: seccompiler::Error::Backend(source) })?;
    Ok(made.get_or_init(|| program))
}

/// Puts the calling thread, and those that it starts later, under the filter of `thread`; for good.
///
/// # Errors
/// [`JailError::Seccomp`]: the thread must end then.
pub fn enter_thread(thread: Thread) -> Result<(), JailError> {
    seccompiler::apply_filter(filter(thread)?).map_err(|source| JailError::Seccomp { thread, source })
}

/// The SHA-256 of every filter that a machine uses, with a network or without, in hexadecimal.
pub(super) fn digests(network: bool) -> Result<BTreeMap<Thread, String>, JailError> {
    let used = |thread: &Thread| network || *thread != Thread::Net;
    Thread::ALL.into_iter().filter(used).map(|thread| Ok((thread, digest(filter(thread)?)))).collect()
}

fn digest(program: &BpfProgram) -> String {
    let mut hash = Sha256::new();
    for instruction in program {
        hash.update(instruction.code.to_le_bytes());
        hash.update([instruction.jt, instruction.jf]);
        hash.update(instruction.k.to_le_bytes());
    }
    hash.finalize().iter().fold(String::with_capacity(64), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn compile(thread: Thread) -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for (number, when) in tables(thread).iter().copied().flatten() {
        let alternatives = when.rules()?;
        match rules.entry(*number) {
            Entry::Vacant(entry) => {
                entry.insert(alternatives);
            }
            // No alternatives: the call is allowed whatever its arguments are, and stays so.
            Entry::Occupied(mut entry) if alternatives.is_empty() || entry.get().is_empty() => {
                entry.get_mut().clear();
            }
            Entry::Occupied(mut entry) => {
                for rule in alternatives {
                    if !entry.get().contains(&rule) {
                        entry.get_mut().push(rule);
                    }
                }
            }
        }
    }
    let architecture = std::env::consts::ARCH.try_into()?;
    let allowed = SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, architecture)?;
    let mut program = not_implemented();
    program.extend(BpfProgram::try_from(allowed)?);
    Ok(program)
}

/// The head of every program: answers ENOSYS to the calls that have a fallback. It stands before the check of the
/// architecture, so that numbers of another one are answered as well, which gives nothing away.
fn not_implemented() -> BpfProgram {
    let load_number =
        sock_filter { code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, jt: 0, jf: 0, k: 0 };
    let answer = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
    std::iter::once(load_number)
        .chain(NOT_IMPLEMENTED.iter().flat_map(|&number| {
            let equal = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
            [
                sock_filter { code: equal, jt: 0, jf: 1, k: number as u32 },
                sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: answer },
            ]
        }))
        .collect()
}

impl When {
    /// One of these has to hold; none: the call is always allowed.
    fn rules(self) -> Result<Vec<SeccompRule>, BackendError> {
        // The kernel takes 32 bits of an ioctl's number, of flags and of the like: what the C library leaves in the upper
        // half is not looked at.
        let dword = |argument, operator, value: u32| {
            SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value.into())
                .and_then(|condition| SeccompRule::new(vec![condition]))
        };
        match self {
            Self::Always => Ok(Vec::new()),
            Self::OneOf(argument, values) => {
                values.iter().map(|&value| dword(argument, SeccompCmpOp::Eq, value)).collect()
            }
            Self::Without(argument, bits) => {
                Ok(vec![dword(argument, SeccompCmpOp::MaskedEq(bits.into()), 0)?])
            }
            Self::Both(arguments) => {
                let equal = |(argument, value): (u8, u32)| {
                    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value.into())
                };
                let conditions = arguments.map(equal).into_iter().collect::<Result<_, _>>()?;
                Ok(vec![SeccompRule::new(conditions)?])
            }
            Self::Null(argument) => {
                let null = SeccompCondition::new(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
                Ok(vec![SeccompRule::new(vec![null])?])
            }
            Self::Socket(kinds) => kinds
                .iter()
                .map(|&(family, kind, protocol)| {
                    // The kernel takes the rest of these bits for nothing but flags of the descriptor.
                    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
                    let arguments = [
                        (SeccompCmpOp::Eq, family),
                        (SeccompCmpOp::MaskedEq(u64::from(!(flags as u32))), kind),
                        (SeccompCmpOp::Eq, protocol),
                    ];
                    let conditions = (0..).zip(arguments).map(|(argument, (operator, value))| {
                        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value as u64)
                    });
                    SeccompRule::new(conditions.collect::<Result<_, _>>()?)
                })
                .collect(),
        }
    }
}
