//! PAX extended header records (POSIX.1-2017, pax, "pax Extended Header").

use super::Timestamp;

/// The records of one extended header: `(key, value)`, values as bytes. They may hold newlines and NULs, so
/// only the length in front delimits a record. `None` where the text is malformed.
pub(super) fn records(mut text: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let mut records = Vec::new();
    while !text.is_empty() {
        let space = text.iter().take(20).position(|&c| c == b' ')?;
        let length = usize::try_from(decimal(&text[..space])?).ok()?;
        if length <= space + 1 || length > text.len() || text[length - 1] != b'\n' {
            return None;
        }
        let record = &text[space + 1..length - 1];
        let equals = record.iter().position(|&c| c == b'=')?;
        records.push((&record[..equals], &record[equals + 1..]));
        text = &text[length..];
    }
    Some(records)
}

/// An unsigned decimal number of up to 20 digits.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `[-]seconds[.fraction]`; digits beyond nanoseconds are cut off.
pub(super) fn time(text: &[u8]) -> Option<Timestamp> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |&c| c == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or(b"");
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nanoseconds =
        (0..9).fold(0, |sum, i| sum * 10 + fraction.get(i).map_or(0, |digit| u32::from(digit - b'0')));
    Some(match (negative, nanoseconds) {
        (false, _) => Timestamp { seconds, nanoseconds },
        (true, 0) => Timestamp { seconds: -seconds, nanoseconds: 0 },
        // -1.25 s is 0.75 s after second -2.
        (true, _) => Timestamp { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_may_hold_anything() {
        let text = b"12 path=a/b\n27 SCHILY.xattr.user.x=\n\0=\n7 a===\n";
        let records = records(text).unwrap();
        assert_eq!(records, [(&b"path"[..], &b"a/b"[..]), (b"SCHILY.xattr.user.x", b"\n\0="), (b"a", b"==")]);
    }

    #[test]
    fn malformed_records() {
        for text in [
            &b"path=a\n"[..],
            b"99 path=a\n",
            b"0 a=b\n",
            b"5 a=b\n",
            b"-6 a=b\n",
            b"6 a=b ",
            b"6 abc\n",
            b"99999999999999999999999 a=b\n",
        ] {
            assert_eq!(records(text), None, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn times() {
        let at = |seconds, nanoseconds| Some(Timestamp { seconds, nanoseconds });
        assert_eq!(time(b"0"), at(0, 0));
        assert_eq!(time(b"1.5"), at(1, 500_000_000));
        assert_eq!(time(b"4294967296.123456789999"), at(4_294_967_296, 123_456_789));
        assert_eq!(time(b"-1.25"), at(-2, 750_000_000));
        assert_eq!(time(b"-1"), at(-1, 0));
        assert_eq!(time(b"1."), at(1, 0));
        for text in [&b""[..], b"-", b".5", b"1.x", b"1e9", b"99999999999999999999"] {
            assert_eq!(time(text), None, "{}", text.escape_ascii());
        }
    }
}
