//! The guest's first file system: the agent, which this binary carries, and what it is told at boot.

use protocol::Config;
use serde_json::json;

/// Built by build.rs.
static AGENT: &[u8] = include_bytes!(env!("VOIDRUN_AGENT"));

/// File types of inode(7).
const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const REGULAR_FILE: u32 = 0o100_000;

/// An initramfs with the agent as `/init` and `config` as `/config.json`: an uncompressed cpio archive in the "newc" format
/// (Documentation/driver-api/early-userspace/buffer-format.rst of Linux). The same configuration makes the same bytes.
pub(crate) fn initramfs(config: &Config) -> Vec<u8> {
    let mut archive = Archive { bytes: Vec::with_capacity(AGENT.len() + 4096), entries: 0 };
    // Before the agent has mounted anything: Rust's runtime opens /dev/null where there is no console and aborts without it, and the
    // reason why nothing could be mounted has to get out.
    archive.add("dev", DIRECTORY | 0o755, [0, 0], &[]);
    archive.add("dev/kmsg", CHARACTER_DEVICE | 0o644, [1, 11], &[]);
    archive.add("dev/null", CHARACTER_DEVICE | 0o666, [1, 3], &[]);
    archive.add("config.json", REGULAR_FILE | 0o644, [0, 0], json!(config).to_string().as_bytes());
    archive.add("init", REGULAR_FILE | 0o755, [0, 0], AGENT);
    archive.add("TRAILER!!!", 0, [0, 0], &[]);
    archive.bytes
}

struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// `device` is a device's major and minor number.
    fn add(&mut self, name: &str, mode: u32, device: [u32; 2], content: &[u8]) {
        self.entries += 1;
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        let [major, minor] = device;
        let (size, name_size) = (content.len() as u32, name.len() as u32 + 1);
        // inode, mode, uid, gid, links, mtime, size, device of the file system, device, length of the name, checksum (unused)
        let fields = [self.entries, mode, 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mode, device and content of each entry, by the format's description.
    fn list(mut bytes: &[u8]) -> Vec<(String, u32, [u32; 2], &[u8])> {
        let mut entries = Vec::new();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |at: usize| {
                let text = std::str::from_utf8(&bytes[6 + 8 * at..14 + 8 * at]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (size, name_size) = (field(6) as usize, field(11) as usize);
            let name = std::str::from_utf8(&bytes[110..110 + name_size - 1]).unwrap().to_owned();
            assert_eq!(bytes[110 + name_size - 1], 0);
            let begin = (110 + name_size).next_multiple_of(4);
            let entry = (name, field(1), [field(9), field(10)], &bytes[begin..begin + size]);
            bytes = &bytes[(begin + size).next_multiple_of(4)..];
            if entry.0 == "TRAILER!!!" {
                assert!(bytes.is_empty());
                return entries;
            }
            entries.push(entry);
        }
    }

    #[test]
    fn an_initramfs_holds_the_agent_and_its_config() {
        let config = Config { hostname: "box".into(), ..Config::default() };
        let archive = initramfs(&config);
        let entries = list(&archive);
        let names: Vec<_> =
            entries.iter().map(|(name, mode, device, _)| (name.as_str(), *mode, *device)).collect();
        assert_eq!(
            names,
            [
                ("dev", 0o040_755, [0, 0]),
                ("dev/kmsg", 0o020_644, [1, 11]),
                ("dev/null", 0o020_666, [1, 3]),
                ("config.json", 0o100_644, [0, 0]),
                ("init", 0o100_755, [0, 0]),
            ]
        );
        assert_eq!(serde_json::from_slice::<Config>(entries[3].3).unwrap(), config);
        assert_eq!(entries[4].3, AGENT);
        assert_eq!(archive, initramfs(&config));
    }

    #[test]
    fn the_agent_is_a_small_static_program() {
        assert!(AGENT.len() <= 1 << 20, "{} bytes", AGENT.len());
        assert_eq!(&AGENT[..5], b"\x7fELF\x02");
        // No program header of type PT_INTERP: there is no loader in the initramfs.
        let number = |at: usize, length: usize| {
            AGENT[at..at + length].iter().rev().fold(0usize, |number, &byte| number << 8 | usize::from(byte))
        };
        let (headers, size, count) = (number(32, 8), number(54, 2), number(56, 2));
        assert!(count > 0 && (0..count).all(|index| number(headers + index * size, 4) != 3));
    }
}
