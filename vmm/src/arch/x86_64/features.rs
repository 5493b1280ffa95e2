//! What a saved vCPU needs of the CPU that it is to go on with. A program asks CPUID once, when it starts, and uses what it was told
//! for as long as it lives: a guest that goes on with less ends in an invalid instruction, at some time.

use std::fmt::Write as _;

use kvm_bindings::kvm_cpuid_entry2;

use super::ArchError;

#[derive(Clone, Copy)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}
use Register::{Eax, Ebx, Ecx, Edx};

/// A register of CPUID that has a feature in each bit.
struct Features {
    leaf: u32,
    index: u32,
    register: Register,
    /// Bits of which KVM_GET_SUPPORTED_CPUID does not tell whether the guest can have them.
    ignored: u32,
    /// As Linux calls them; those that are most likely to be missing.
    names: &'static [(u8, &'static str)],
}

const fn features(
    leaf: u32,
    index: u32,
    register: Register,
    names: &'static [(u8, &'static str)],
) -> Features {
    Features { leaf, index, register, ignored: 0, names }
}

/// Where the features are that a guest may use.
const FEATURES: &[Features] = &[
    Features {
        leaf: 1,
        index: 0,
        register: Ecx,
        // x2APIC, the TSC deadline timer and the hypervisor are KVM's own and always there (`cpuid` sets them), and OSXSAVE follows
        // the guest's CR4.
        ignored: 1 << 21 | 1 << 24 | 1 << 27 | 1 << 31,
        names: &[
            (0, "sse3"),
            (1, "pclmulqdq"),
            (9, "ssse3"),
            (12, "fma"),
            (13, "cx16"),
            (17, "pcid"),
            (19, "sse4_1"),
            (20, "sse4_2"),
            (22, "movbe"),
            (23, "popcnt"),
            (25, "aes"),
            (26, "xsave"),
            (28, "avx"),
            (29, "f16c"),
            (30, "rdrand"),
        ],
    },
    Features {
        leaf: 1,
        index: 0,
        register: Edx,
        // The APIC is KVM's, and its bit follows the guest's APIC_BASE; HTT says how many vCPUs there are.
        ignored: 1 << 9 | 1 << 28,
        names: &[(25, "sse"), (26, "sse2")],
    },
    features(
        7,
        0,
        Ebx,
        &[
            (0, "fsgsbase"),
            (3, "bmi1"),
            (4, "hle"),
            (5, "avx2"),
            (8, "bmi2"),
            (10, "invpcid"),
            (11, "rtm"),
            (16, "avx512f"),
            (17, "avx512dq"),
            (18, "rdseed"),
            (19, "adx"),
            (20, "smap"),
            (21, "avx512ifma"),
            (23, "clflushopt"),
            (24, "clwb"),
            (28, "avx512cd"),
            (29, "sha_ni"),
            (30, "avx512bw"),
            (31, "avx512vl"),
        ],
    ),
    Features {
        leaf: 7,
        index: 0,
        register: Ecx,
        // OSPKE follows the guest's CR4.
        ignored: 1 << 4,
        names: &[
            (1, "avx512vbmi"),
            (2, "umip"),
            (3, "pku"),
            (6, "avx512_vbmi2"),
            (7, "shstk"),
            (8, "gfni"),
            (9, "vaes"),
            (10, "vpclmulqdq"),
            (11, "avx512_vnni"),
            (12, "avx512_bitalg"),
            (14, "avx512_vpopcntdq"),
            (16, "la57"),
            (22, "rdpid"),
            (27, "movdiri"),
            (28, "movdir64b"),
        ],
    },
    features(
        7,
        0,
        Edx,
        &[
            (4, "fsrm"),
            (8, "avx512_vp2intersect"),
            (20, "ibt"),
            (22, "amx_bf16"),
            (23, "avx512_fp16"),
            (24, "amx_tile"),
            (25, "amx_int8"),
            (26, "ibrs"),
            (27, "stibp"),
            (31, "ssbd"),
        ],
    ),
    features(7, 1, Eax, &[(4, "avx_vnni"), (5, "avx512_bf16"), (21, "amx_fp16"), (23, "avx_ifma")]),
    features(7, 1, Edx, &[(4, "avx_vnni_int8"), (5, "avx_ne_convert"), (8, "amx_complex"), (19, "avx10")]),
    // The parts of the XSAVE area, then of it the supervisor's.
    features(0xd, 0, Eax, &[(2, "avx"), (5, "avx512"), (9, "pku"), (17, "amx"), (18, "amx")]),
    features(0xd, 0, Edx, &[]),
    features(0xd, 1, Eax, &[(0, "xsaveopt"), (1, "xsavec"), (2, "xgetbv1"), (3, "xsaves")]),
    features(0xd, 1, Ecx, &[(11, "shstk"), (12, "shstk")]),
    // What KVM does for a guest that knows it.
    features(0x4000_0001, 0, Eax, &[(3, "kvmclock"), (5, "steal time")]),
    Features {
        leaf: 0x8000_0001,
        index: 0,
        register: Ecx,
        // CmpLegacy is AMD's HTT.
        ignored: 1 << 1,
        names: &[(5, "abm"), (6, "sse4a"), (8, "3dnowprefetch"), (11, "xop"), (16, "fma4"), (21, "tbm")],
    },
    features(
        0x8000_0001,
        0,
        Edx,
        &[(11, "syscall"), (20, "nx"), (26, "pdpe1gb"), (27, "rdtscp"), (29, "lm")],
    ),
    features(0x8000_0007, 0, Edx, &[(8, "constant_tsc")]),
    features(0x8000_0008, 0, Ebx, &[(0, "clzero"), (9, "wbnoinvd"), (12, "ibpb"), (24, "ssbd")]),
    features(0x8000_0021, 0, Eax, &[(8, "autoibrs")]),
];

/// Whether a guest that was told `saved` can go on where KVM has what is in `supported`.
pub(super) fn check(saved: &[kvm_cpuid_entry2], supported: &[kvm_cpuid_entry2]) -> Result<(), ArchError> {
    let [saved_vendor, vendor] = [saved, supported].map(vendor);
    // By it a guest decides on ways around the CPU's errors, and on much of what is not in a bit.
    if saved_vendor != vendor {
        let [saved, host] = [saved_vendor, vendor].map(|vendor| vendor.escape_ascii().to_string());
        return Err(ArchError::Vendor { saved, host });
    }
    let mut lacking = String::new();
    for features in FEATURES {
        let missing = features.of(saved) & !features.of(supported) & !features.ignored;
        if missing != 0 {
            features.describe(missing, &mut lacking);
        }
    }
    if lacking.is_empty() { Ok(()) } else { Err(ArchError::Lacking(lacking)) }
}

/// The text in EBX, EDX and ECX of leaf 0.
fn vendor(leaves: &[kvm_cpuid_entry2]) -> [u8; 12] {
    let mut text = [0; 12];
    for (place, register) in text.chunks_mut(4).zip([Ebx, Edx, Ecx]) {
        place.copy_from_slice(&features(0, 0, register, &[]).of(leaves).to_le_bytes());
    }
    text
}

impl Features {
    /// The register's value in `leaves`: 0 where the leaf is not there.
    fn of(&self, leaves: &[kvm_cpuid_entry2]) -> u32 {
        let leaf = leaves.iter().find(|leaf| (leaf.function, leaf.index) == (self.leaf, self.index));
        leaf.map_or(0, |leaf| match self.register {
            Eax => leaf.eax,
            Ebx => leaf.ebx,
            Ecx => leaf.ecx,
            Edx => leaf.edx,
        })
    }

    /// Adds those of the bits in `missing` to a text like "leaf 7 EBX bits 16 (avx512f), 22".
    fn describe(&self, missing: u32, text: &mut String) {
        let register = match self.register {
            Eax => "EAX",
            Ebx => "EBX",
            Ecx => "ECX",
            Edx => "EDX",
        };
        let leaf = match (self.leaf, self.index) {
            (leaf @ 0..=9, 0) => leaf.to_string(),
            (leaf @ 0..=9, index) => format!("{leaf}.{index}"),
            (leaf, 0) => format!("{leaf:#x}"),
            (leaf, index) => format!("{leaf:#x}.{index}"),
        };
        let bits = (0..32).filter(|bit| missing & 1 << bit != 0).map(|bit| {
            match self.names.iter().find(|(number, _)| *number == bit) {
                Some((_, name)) => format!("{bit} ({name})"),
                None => bit.to_string(),
            }
        });
        let bits = bits.collect::<Vec<_>>().join(", ");
        let (before, several) = (if text.is_empty() { "" } else { "; " }, missing.count_ones() > 1);
        // Writing to a string does not fail.
        let _ = write!(text, "{before}leaf {leaf} {register} bit{} {bits}", if several { "s" } else { "" });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
    }

    /// Leaf 0 of a CPU of this vendor.
    fn of(vendor: &[u8; 12]) -> kvm_cpuid_entry2 {
        let word = |at: usize| u32::from_le_bytes(vendor[at..at + 4].try_into().unwrap());
        leaf(0, 0, [0x1f, word(0), word(8), word(4)])
    }

    fn error(saved: &[kvm_cpuid_entry2], supported: &[kvm_cpuid_entry2]) -> Option<String> {
        let [saved, supported] = [saved, supported].map(|leaves| [&[of(b"GenuineIntel")], leaves].concat());
        check(&saved, &supported).err().map(|error| error.to_string())
    }

    #[test]
    fn a_cpu_with_as_much_or_more_will_do() {
        let saved = [leaf(1, 0, [1, 2, 1 << 28, 1]), leaf(7, 0, [0, 1 << 5, 0, 0])];
        let more = [leaf(1, 0, [9, 9, !0, !0]), leaf(7, 0, [0, !0, !0, !0]), leaf(7, 1, [!0, 0, 0, 0])];
        assert_eq!(error(&saved, &saved), None);
        assert_eq!(error(&saved, &more), None);
        assert!(error(&more, &saved).is_some());
    }

    #[test]
    fn what_is_missing_is_named() {
        let saved = [leaf(7, 0, [0, 1 << 16 | 1 << 17 | 1 << 22 | 1 << 5, 0, 1 << 24])];
        let less = [leaf(7, 0, [0, 1 << 5, 0, 0])];
        let expected = "the snapshot needs a CPU with what this one lacks: \
                        leaf 7 EBX bits 16 (avx512f), 17 (avx512dq), 22; leaf 7 EDX bit 24 (amx_tile)";
        assert_eq!(error(&saved, &less).unwrap(), expected);
        // A leaf that the host has not is one without features.
        let expected = "the snapshot needs a CPU with what this one lacks: leaf 0xd.1 EAX bit 3 (xsaves)";
        assert_eq!(error(&[leaf(0xd, 1, [8, 0, 0, 0])], &[leaf(0xd, 0, [8, 0, 0, 0])]).unwrap(), expected);
        assert_eq!(error(&[leaf(0xd, 1, [0, 8, 0, 0])], &[]), None, "a size");
    }

    #[test]
    fn what_is_the_guests_own_or_kvms_is_not_asked_of_the_cpu() {
        let saved = [
            leaf(1, 0, [0, !0, 1 << 21 | 1 << 24 | 1 << 27 | 1 << 31, 1 << 9 | 1 << 28]),
            leaf(7, 0, [0, 0, 1 << 4, 0]),
            leaf(0x8000_0001, 0, [0, 0, 1 << 1, 0]),
        ];
        assert_eq!(error(&saved, &[]), None);
    }

    #[test]
    fn another_vendors_cpu_is_refused() {
        let error = check(&[of(b"AuthenticAMD")], &[of(b"GenuineIntel")]).unwrap_err().to_string();
        assert_eq!(error, "the snapshot is of a CPU by AuthenticAMD, and this one is by GenuineIntel");
        // Whatever stands in a snapshot, a terminal can show it.
        let error = check(&[of(b"\x1b[2J\n       ")], &[of(b"GenuineIntel")]).unwrap_err().to_string();
        assert!(error.contains(r"by \x1b[2J\n   "), "{error}");
    }
}
