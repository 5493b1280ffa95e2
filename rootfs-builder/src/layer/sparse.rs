//! Sparse files: where the data of an entry lie in the file (GNU tar manual, "Storing Sparse Files").
//!
//! Four formats are in use: old GNU (type `S`, a map in the header and in blocks behind it) and PAX 0.0 (a
//! record a field), 0.1 (one record) and 1.0 (a map in front of the data).

use super::pax;

/// A run of data within a sparse file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
}

/// The most regions of one file: 4 MiB of memory, and as much again for each form they pass through.
pub(super) const MAX_REGIONS: usize = 1 << 18;

/// What PAX records say of a sparse file.
#[derive(Debug, Default)]
pub(super) struct PaxSparse {
    /// `GNU.sparse.major`: 1 for the map in front of the data.
    pub(super) major: u64,
    /// Real size: `GNU.sparse.size` (0.x) or `GNU.sparse.realsize` (1.0).
    pub(super) size: Option<u64>,
    /// Real name: the header's own is a made-up one.
    pub(super) name: Option<Vec<u8>>,
    /// 0.x: offsets and lengths, alternating.
    numbers: Vec<u64>,
    /// Any record of these was there.
    pub(super) present: bool,
}

impl PaxSparse {
    /// Takes a record whose key begins with `GNU.sparse.`; `None` where its value is malformed.
    pub(super) fn record(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"major" => self.major = pax::decimal(value)?,
            b"size" | b"realsize" => self.size = Some(pax::decimal(value)?),
            b"name" => self.name = Some(value.to_vec()),
            b"offset" | b"numbytes" => {
                // 0.0 alternates the two; anything else is malformed.
                if self.numbers.len().is_multiple_of(2) != (key == b"offset") {
                    return None;
                }
                self.numbers.push(pax::decimal(value)?);
            }
            b"map" => {
                self.numbers = value.split(|&c| c == b',').map(pax::decimal).collect::<Option<Vec<_>>>()?;
            }
            // minor, numblocks: implied by the rest.
            _ => {}
        }
        self.present = true;
        (self.numbers.len() <= 2 * MAX_REGIONS).then_some(())
    }

    /// The regions of a 0.x map.
    pub(super) fn regions(&self) -> Option<Vec<Region>> {
        if !self.numbers.len().is_multiple_of(2) {
            return None;
        }
        Some(self.numbers.chunks_exact(2).map(|pair| Region { offset: pair[0], length: pair[1] }).collect())
    }
}

/// Checks that `regions` ascend without overlap within `size` and hold `stored` bytes in all, as everything behind relies on.
pub(super) fn is_valid(regions: &[Region], size: u64, stored: u64) -> bool {
    let mut end = 0;
    let mut sum: u64 = 0;
    for region in regions {
        let Some(region_end) = region.offset.checked_add(region.length) else { return false };
        if region.offset < end || region_end > size {
            return false;
        }
        end = region_end;
        // Cannot overflow: disjoint parts of `size`.
        sum += region.length;
    }
    sum == stored
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps() {
        let mut zero = PaxSparse::default();
        for (key, value) in [("offset", "0"), ("numbytes", "5"), ("offset", "4096"), ("numbytes", "1")] {
            zero.record(key.as_bytes(), value.as_bytes()).unwrap();
        }
        let mut one = PaxSparse::default();
        one.record(b"map", b"0,5,4096,1").unwrap();
        let regions = vec![Region { offset: 0, length: 5 }, Region { offset: 4096, length: 1 }];
        assert_eq!(zero.regions(), Some(regions.clone()));
        assert_eq!(one.regions(), Some(regions.clone()));
        assert!(is_valid(&regions, 5000, 6));
        assert!(!is_valid(&regions, 4096, 6), "beyond the end");
        assert!(!is_valid(&regions, 5000, 7), "another sum");

        assert_eq!(PaxSparse::default().record(b"numbytes", b"5"), None);
        assert_eq!(PaxSparse::default().record(b"map", b"0,5,"), None);
    }

    #[test]
    fn hostile_maps() {
        let region = |offset, length| Region { offset, length };
        assert!(!is_valid(&[region(10, 10), region(15, 10)], 100, 20), "overlap");
        assert!(!is_valid(&[region(10, 10), region(0, 5)], 100, 15), "descending");
        assert!(!is_valid(&[region(u64::MAX, 10)], u64::MAX, 10), "overflow");
    }
}
