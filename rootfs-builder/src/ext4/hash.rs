//! The hash that orders a large directory: half MD4 over signed characters (filesystems/ext4/directory.rst,
//! "Hash Tree Directories"; s_def_hash_version 1, s_flags 1).

/// The hash of a name in a directory tree; its lowest bit is always 0.
pub(super) fn half_md4(name: &[u8], seed: [u32; 4]) -> u32 {
    let mut state = seed;
    let mut rest = name;
    while !rest.is_empty() {
        transform(&mut state, words(rest));
        rest = &rest[rest.len().min(32)..];
    }
    let hash = state[1] & !1;
    // The largest value stands for the end of the directory.
    if hash == 0xffff_fffe { 0xffff_fffc } else { hash }
}

/// Up to 32 characters in 8 words, first character highest, padded with the number of characters left.
fn words(name: &[u8]) -> [u32; 8] {
    let length = name.len() as u32;
    let padding = length | length << 8 | length << 16 | length << 24;
    let mut words = [padding; 8];
    for (word, characters) in words.iter_mut().zip(name.chunks(4)) {
        // The character is added with its sign, as C's `char` on x86.
        *word = characters.iter().fold(padding, |sum, &c| (sum << 8).wrapping_add(c as i8 as u32));
    }
    words
}

/// Three rounds of eight steps: MD4 with half of the message words.
fn transform(state: &mut [u32; 4], message: [u32; 8]) {
    type Round = (fn(u32, u32, u32) -> u32, u32, [usize; 8], [u32; 4]);
    const ROUNDS: [Round; 3] = [
        (|x, y, z| z ^ (x & (y ^ z)), 0, [0, 1, 2, 3, 4, 5, 6, 7], [3, 7, 11, 19]),
        (|x, y, z| (x & y).wrapping_add((x ^ y) & z), 0x5a82_7999, [1, 3, 5, 7, 0, 2, 4, 6], [3, 5, 9, 13]),
        (|x, y, z| x ^ y ^ z, 0x6ed9_eba1, [3, 7, 2, 6, 1, 5, 0, 4], [3, 9, 11, 15]),
    ];
    let [mut a, mut b, mut c, mut d] = *state;
    for (mix, constant, order, shifts) in ROUNDS {
        for (step, word) in order.into_iter().enumerate() {
            let sum = a.wrapping_add(mix(b, c, d)).wrapping_add(message[word]).wrapping_add(constant);
            (a, b, c, d) = (d, sum.rotate_left(shifts[step % 4]), b, c);
        }
    }
    for (word, sum) in state.iter_mut().zip([a, b, c, d]) {
        *word = word.wrapping_add(sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values by `debugfs -R 'dx_hash -h half_md4 -s 00112233-4455-6677-8899-aabbccddeeff NAME'` of e2fsprogs 1.47.
    #[test]
    fn as_debugfs_computes_it() {
        let seed = [0x3322_1100, 0x7766_5544, 0xbbaa_9988, 0xffee_ddcc];
        for (name, hash) in [
            (&b"a"[..], 0x9375_2ee6),
            (b"hello", 0x344c_a36e),
            (&[b'x'; 31], 0x7204_41f8),
            (&[b'y'; 32], 0xf516_691e),
            (&[b'z'; 33], 0xa1ff_3f12),
            (&b"name-".repeat(50), 0xea5b_6eee),
            (b"h\xc3\xa9llo \xff", 0xae3a_2d64),
        ] {
            assert_eq!(half_md4(name, seed), hash, "{}", name.escape_ascii());
        }
    }
}
