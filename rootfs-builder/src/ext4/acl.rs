//! POSIX ACLs: from the form of the xattr `system.posix_acl_*` (linux/posix_acl_xattr.h) to that on disk
//! (linux fs/ext4/acl.h), which leaves out ids that say nothing.

use super::Ext4Error;

/// The xattr that decides on access to an object itself; the other one is for what is made in a directory.
const ACCESS: &str = "system.posix_acl_access";

const XATTR_VERSION: u32 = 2;
const DISK_VERSION: u32 = 1;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// The disk form of the xattr `name`. `None` where Linux stores none: an ACL without entries, or one for access that
/// says no more than permission bits.
pub(super) fn to_disk(name: &str, value: &[u8]) -> Result<Option<Vec<u8>>, Ext4Error> {
    let invalid = || Ext4Error::InvalidAcl(name.to_owned());
    let (version, entries) = value.split_first_chunk::<4>().ok_or_else(invalid)?;
    if u32::from_le_bytes(*version) != XATTR_VERSION || entries.len() % 8 != 0 {
        return Err(invalid());
    }
    if entries.is_empty() {
        return Ok(None);
    }
    let mut disk = DISK_VERSION.to_le_bytes().to_vec();
    let mut tags = Vec::new();
    for entry in entries.chunks_exact(8) {
        let (tag, permissions) = (u16::from_le_bytes([entry[0], entry[1]]), entry[2]);
        if permissions > 7 || entry[3] != 0 {
            return Err(invalid());
        }
        disk.extend_from_slice(&entry[..4]);
        if matches!(tag, USER | GROUP) {
            disk.extend_from_slice(&entry[4..]);
        }
        tags.push(tag);
    }
    if !is_well_formed(&tags) {
        return Err(invalid());
    }
    Ok((tags.len() > 3 || name != ACCESS).then_some(disk))
}

/// Ascending tags, each but USER and GROUP once, and a mask where there are named entries (posix_acl_valid).
fn is_well_formed(tags: &[u16]) -> bool {
    let count = |tag| tags.iter().filter(|&&t| t == tag).count();
    let named = count(USER) + count(GROUP) > 0;
    tags.is_sorted()
        && tags.iter().all(|tag| [USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER].contains(tag))
        && [USER_OBJ, GROUP_OBJ, OTHER].into_iter().all(|tag| count(tag) == 1)
        && (count(MASK) == 1 || count(MASK) == 0 && !named)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut bytes = XATTR_VERSION.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            bytes.extend_from_slice(&tag.to_le_bytes());
            bytes.extend_from_slice(&permissions.to_le_bytes());
            bytes.extend_from_slice(&id.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn ids_stay_only_where_they_say_something() {
        let none = u32::MAX;
        let named = acl(&[
            (USER_OBJ, 7, none),
            (USER, 6, 1000),
            (GROUP_OBJ, 5, none),
            (MASK, 7, none),
            (OTHER, 4, none),
        ]);
        let disk = to_disk(ACCESS, &named).unwrap().unwrap();
        assert_eq!(
            disk,
            b"\x01\0\0\0\x01\0\x07\0\x02\0\x06\0\xe8\x03\0\0\x04\0\x05\0\x10\0\x07\0\x20\0\x04\0"
        );

        let plain = acl(&[(USER_OBJ, 7, none), (GROUP_OBJ, 5, none), (OTHER, 4, none)]);
        assert_eq!(to_disk(ACCESS, &plain).unwrap(), None);
        assert_eq!(to_disk(ACCESS, &acl(&[])).unwrap(), None);
        let disk = to_disk("system.posix_acl_default", &plain).unwrap().unwrap();
        assert_eq!(disk, b"\x01\0\0\0\x01\0\x07\0\x04\0\x05\0\x20\0\x04\0");
    }

    #[test]
    fn what_linux_refuses() {
        let base = [(USER_OBJ, 7, 0), (GROUP_OBJ, 5, 0), (OTHER, 4, 0)];
        let with = |more: &[(u16, u16, u32)]| {
            let mut entries = base.to_vec();
            entries.extend_from_slice(more);
            entries.sort_unstable();
            acl(&entries)
        };
        for bad in [
            vec![],
            vec![2, 0, 0],
            acl(&base[..2]),
            with(&[(USER, 7, 5)]),
            with(&[(USER_OBJ, 7, 0)]),
            with(&[(MASK, 8, 0)]),
            with(&[(0x40, 7, 0)]),
            [acl(&base), vec![0]].concat(),
        ] {
            assert!(to_disk(ACCESS, &bad).is_err(), "{}", bad.escape_ascii());
        }
    }
}
