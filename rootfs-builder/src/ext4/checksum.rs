//! Metadata checksums: CRC-32C without the final inversion (filesystems/ext4/checksums.rst).

/// Continues `seed` over `bytes`.
pub(super) fn crc(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

/// What every checksum of a file system starts from.
pub(super) fn file_system_seed(uuid: &[u8; 16]) -> u32 {
    crc(!0, uuid)
}

/// What checksums of an inode and its blocks start from; its generation is 0.
pub(super) fn inode_seed(file_system: u32, inode: u32) -> u32 {
    crc(crc(file_system, &inode.to_le_bytes()), &0_u32.to_le_bytes())
}
