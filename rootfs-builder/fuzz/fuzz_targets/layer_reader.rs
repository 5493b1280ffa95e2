//! Any bytes as a compressed layer: the reader gives entries or an error, within its bounds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rootfs_builder::layer::{EntryKind, TarReader, decompress};
use std::io::{BufReader, Read};

/// A few bytes of zstd make any number of zeros; the conversion has limits of its own.
const MAX_CONTENT: u64 = 4 << 20;

fuzz_target!(|bytes: &[u8]| {
    let Ok(content) = decompress(bytes) else { return };
    let mut reader = TarReader::new(BufReader::with_capacity(1000, content.take(MAX_CONTENT)));
    while let Ok(Some(entry)) = reader.next_entry() {
        assert!(!entry.path.is_empty() && entry.path.len() <= 4096 && !entry.path.contains(&0));
        let EntryKind::File { size, regions } = entry.kind else { continue };
        let stored = regions.map_or(size, |regions| {
            let mut end = 0;
            for region in &regions {
                assert!(region.offset >= end);
                end = region.offset + region.length;
            }
            assert!(end <= size);
            regions.iter().map(|region| region.length).sum()
        });
        let mut read = 0;
        loop {
            let Ok(count) = reader.data().map(<[u8]>::len) else { return };
            if count == 0 {
                break;
            }
            reader.consume(count);
            read += count as u64;
        }
        assert_eq!(read, stored);
    }
});
