//! A tar header: 512 bytes of fields (POSIX.1-2017, pax, "ustar Interchange Format").

/// Bytes of a header, and of the units that everything in a tar is padded to.
pub(super) const BLOCK: usize = 512;

/// A header block.
pub(super) struct Header(pub(super) [u8; BLOCK]);

impl Header {
    pub(super) fn kind(&self) -> u8 {
        self.0[156]
    }

    /// The name, with ustar's prefix (GNU headers have times in its place, star's prefix is shorter).
    pub(super) fn path(&self) -> Vec<u8> {
        let name = until_nul(&self.0[..100]);
        let prefix = match &self.0[257..263] {
            b"ustar\0" if self.0[508..] == *b"tar\0" => until_nul(&self.0[345..476]),
            b"ustar\0" => until_nul(&self.0[345..500]),
            _ => b"",
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    /// A number: octal digits, or base 256 in two's complement when the first bit is set.
    pub(super) fn number(&self, range: std::ops::Range<usize>) -> Option<i64> {
        let field = &self.0[range];
        if field[0] & 0x80 != 0 {
            let negative = field[0] & 0x40 != 0;
            let first = if negative { i128::from(field[0]) - 0x100 } else { i128::from(field[0] & 0x7f) };
            let value = field[1..].iter().fold(first, |sum, &byte| sum << 8 | i128::from(byte));
            return value.try_into().ok();
        }
        let is_filling = |c: &u8| matches!(c, b' ' | 0);
        let start = field.iter().position(|c| !is_filling(c)).unwrap_or(field.len());
        let digits = field[start..].iter().take_while(|c| !is_filling(c));
        digits.copied().try_fold(0, |sum, digit| {
            matches!(digit, b'0'..=b'7').then_some(sum << 3 | i64::from(digit.wrapping_sub(b'0')))
        })
    }

    /// Old archives were summed with signed characters.
    pub(super) fn checksum_is_right(&self) -> bool {
        let sum = |value: fn(u8) -> i64| -> i64 {
            let bytes = self.0.iter().enumerate();
            bytes.map(|(i, &byte)| value(if (148..156).contains(&i) { b' ' } else { byte })).sum()
        };
        let stored = self.number(148..156);
        // A fuzzer cannot guess sums; what lies behind them is what it is for.
        cfg!(fuzzing) || stored == Some(sum(i64::from)) || stored == Some(sum(|byte| i64::from(byte as i8)))
    }
}

/// What stands before the first NUL.
pub(super) fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|&c| c == 0).next().unwrap_or(field)
}
