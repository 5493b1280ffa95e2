//! What a guest is told apart by, beside its name: derived from the sandbox's id, so that it lasts as long as the sandbox.

use std::fmt::Write as _;

use net::address::{GATEWAY_MAC, Mac};
use rootfs_builder::image::Digest;

use super::id::SandboxId;

/// For the guest's /etc/machine-id: 32 hexadecimal digits. It has the form of a random UUID, as machine-id(5) asks.
pub(super) fn machine_id(id: &SandboxId) -> String {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash("machine-id", id)[..16]);
    // Version and variant: sections 4.2 and 4.1 of RFC 9562.
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    bytes.iter().fold(String::new(), |mut digits, byte| {
        let _ = write!(digits, "{byte:02x}");
        digits
    })
}

/// For the guest's network device.
pub(super) fn mac(id: &SandboxId) -> Mac {
    mac_of(&hash("mac", id))
}

/// One that nobody else on the guest's wire has: locally administered, of one machine, and not the gateway's.
fn mac_of(hash: &[u8; 32]) -> Mac {
    let mut mac = [0x02; 6];
    mac[1..].copy_from_slice(&hash[..5]);
    if mac == GATEWAY_MAC {
        mac[5] ^= 0x80;
    }
    mac
}

fn hash(what: &str, id: &SandboxId) -> [u8; 32] {
    *Digest::of(format!("voidrun {what} {id}").as_bytes()).as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(digits: &str) -> SandboxId {
        digits.parse().unwrap()
    }

    #[test]
    fn each_sandbox_has_its_own_and_keeps_it() {
        let id = id("0123456789ab");
        // A change of these would be another machine to the programs in every sandbox that there is.
        assert_eq!(machine_id(&id), "c6af3f65f2c04980b01588e7609dbe17");
        assert_eq!(mac(&id), [0x02, 0x2d, 0xa6, 0x98, 0x7f, 0x15]);
        let ids: Vec<_> = (0..100).map(|_| SandboxId::random().unwrap()).collect();
        let count = |all: std::collections::BTreeSet<String>| all.len();
        assert_eq!(count(ids.iter().map(machine_id).collect()), 100);
        assert_eq!(count(ids.iter().map(|id| format!("{:?}", mac(id))).collect()), 100);
    }

    #[test]
    fn a_machine_id_is_a_random_uuid() {
        for _ in 0..100 {
            let digits = machine_id(&SandboxId::random().unwrap());
            let lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            assert!(digits.len() == 32 && digits.bytes().all(lower), "{digits}");
            assert!(
                digits[12..].starts_with('4') && digits[16..].starts_with(['8', '9', 'a', 'b']),
                "{digits}"
            );
        }
    }

    #[test]
    fn a_hardware_address_is_of_one_machine_and_not_the_gateways() {
        assert_eq!(mac_of(&[7; 32]), [0x02, 7, 7, 7, 7, 7]);
        let mut hash = [7; 32];
        hash[..5].copy_from_slice(&GATEWAY_MAC[1..]);
        let mac = mac_of(&hash);
        assert_eq!(mac[..5], GATEWAY_MAC[..5]);
        assert_ne!(mac[5], GATEWAY_MAC[5]);
    }
}
