use std::io::Cursor;

use super::*;

/// A header block with the fields that matter, checksum included.
fn header(name: &str, kind: u8, size: u64) -> [u8; 512] {
    let mut header = tar::Header::new_gnu();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(1000);
    header.set_gid(100);
    header.set_mtime(1_700_000_000);
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_cksum();
    *header.as_bytes()
}

fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len().next_multiple_of(512), 0);
    padded
}

fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut text = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length += 1;
        }
        text.extend_from_slice(format!("{length} {key}=").as_bytes());
        text.extend_from_slice(value);
        text.push(b'\n');
    }
    [header("PaxHeaders/x", b'x', text.len() as u64).to_vec(), padded(&text)].concat()
}

fn read(parts: &[&[u8]]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let mut reader = TarReader::new(Cursor::new(parts.concat()));
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut data = Vec::new();
        loop {
            let piece = reader.data()?;
            if piece.is_empty() {
                break;
            }
            // Small bites, so that resuming is tested too.
            let count = piece.len().min(100);
            data.extend_from_slice(&piece[..count]);
            reader.consume(count);
        }
        entries.push((entry, data));
    }
    Ok(entries)
}

#[test]
fn plain_files_and_both_ends() {
    let (head, data) = (header("a", b'0', 5), padded(b"hello"));
    let mut ends = vec![data[..5].to_vec(), data[..100].to_vec()];
    ends.extend([0, 512, 1024, 10240].map(|zeros| [&data[..], &vec![0; zeros]].concat()));
    for end in ends {
        let entries = read(&[&head, &data, &head, &end]).unwrap();
        assert_eq!(entries.len(), 2);
        let (entry, content) = &entries[0];
        assert_eq!(content, b"hello");
        assert_eq!(entry.path, b"a");
        assert_eq!(entry.kind, EntryKind::File { size: 5, regions: None });
        assert_eq!((entry.mode, entry.uid, entry.gid), (0o644, 1000, 100));
        assert_eq!(entry.mtime, Timestamp { seconds: 1_700_000_000, nanoseconds: 0 });
    }
}

#[test]
fn extended_headers_override() {
    let long = "d/".repeat(200) + "file";
    let extended = pax(&[
        ("path", long.as_bytes()),
        ("uid", b"4294967294"),
        ("gid", b"65536"),
        ("mtime", b"-1.5"),
        ("size", b"3"),
        ("SCHILY.xattr.user.bin", b"\n\0="),
        ("SCHILY.xattr.user.bin", b"again\n"),
    ]);
    let (entry, data) = read(&[&extended, &header("short", b'0', 0), &padded(b"abc")]).unwrap().remove(0);
    assert_eq!(entry.path, long.as_bytes());
    assert_eq!((entry.uid, entry.gid), (4_294_967_294, 65_536));
    assert_eq!(entry.mtime, Timestamp { seconds: -2, nanoseconds: 500_000_000 });
    assert_eq!(entry.xattrs[1], (b"user.bin".to_vec(), b"again\n".to_vec()));
    assert_eq!(data, b"abc");

    let name = [long.as_bytes(), b"\0"].concat();
    let gnu = [header("././@LongLink", b'L', name.len() as u64).to_vec(), padded(&name)].concat();
    let target = [header("././@LongLink", b'K', name.len() as u64).to_vec(), padded(&name)].concat();
    let (entry, _) = read(&[&gnu, &target, &header("short", b'2', 0)]).unwrap().remove(0);
    assert_eq!(entry.path, long.as_bytes());
    assert_eq!(entry.kind, EntryKind::Symlink { target: long.into_bytes() });
}

#[test]
fn numbers_in_base_256() {
    let field = |bytes: &[u8]| {
        let mut block = [0; 512];
        block[136..148].copy_from_slice(bytes);
        Header(block).number(136..148)
    };
    assert_eq!(field(b"\x80\0\0\0\0\0\0\x01\0\0\0\0"), Some(1 << 32));
    assert_eq!(field(&[0xff; 12]), Some(-1));
    assert_eq!(field(b"\xc0\0\0\0\0\0\0\0\0\0\0\0"), None, "far below 64 bits");
    assert_eq!(field(b"00000000777\0"), Some(0o777));
    assert_eq!(field(b"   777 \0\0\0\0\0"), Some(0o777));
    assert_eq!(field(b"\0\0\0\0\0\0\0\0\0\0\0\0"), Some(0));
    assert_eq!(field(b"0000000x777\0"), None);
}

#[test]
fn sparse_in_all_formats() {
    let regions = vec![Region { offset: 4096, length: 3 }, Region { offset: 10_000, length: 2 }];
    let expected = EntryKind::File { size: 20_000, regions: Some(regions) };
    let data = padded(b"abcde");

    let mut old = header("f", b'S', 5);
    for (at, number) in [(386, 4096), (398, 3), (410, 10_000), (422, 2), (483, 20_000)] {
        old[at..at + 12].copy_from_slice(format!("{number:011o}\0").as_bytes());
    }
    let mut header_of_old = tar::Header::from_byte_slice(&old).clone();
    header_of_old.set_cksum();
    let zero = pax(&[
        ("GNU.sparse.size", b"20000"),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.offset", b"4096"),
        ("GNU.sparse.numbytes", b"3"),
        ("GNU.sparse.offset", b"10000"),
        ("GNU.sparse.numbytes", b"2"),
    ]);
    let one = pax(&[("GNU.sparse.size", b"20000"), ("GNU.sparse.map", b"4096,3,10000,2")]);
    let two = pax(&[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.realsize", b"20000"),
        ("GNU.sparse.name", b"f"),
    ]);
    let map = padded(b"2\n4096\n3\n10000\n2\n");
    let plain = header("f", b'0', 5);
    let with_map = header("GNUSparseFile.0/f", b'0', 512 + 5);
    for archive in [
        vec![header_of_old.as_bytes(), &data[..]],
        vec![&zero[..], &plain, &data],
        vec![&one[..], &plain, &data],
        vec![&two[..], &with_map, &map, &data],
    ] {
        let (entry, content) = read(&archive).unwrap().remove(0);
        assert_eq!((&entry.path[..], &entry.kind), (&b"f"[..], &expected));
        assert_eq!(content, b"abcde");
    }
}

#[test]
fn an_old_sparse_map_goes_on_in_blocks_behind_the_header() {
    let mut head = header("f", b'S', 30);
    let put = |block: &mut [u8; 512], at: usize, number: u64| {
        block[at..at + 12].copy_from_slice(format!("{number:011o}\0").as_bytes());
    };
    let mut more = [[0; 512]; 2];
    for i in 0..30_usize {
        let (block, at) = match i {
            0..4 => (&mut head, 386 + 24 * i),
            4..25 => (&mut more[0], 24 * (i - 4)),
            _ => (&mut more[1], 24 * (i - 25)),
        };
        put(block, at, 10 * i as u64);
        put(block, at + 12, 1);
    }
    head[482] = 1;
    put(&mut head, 483, 300);
    more[0][504] = 1;
    let mut head = tar::Header::from_byte_slice(&head).clone();
    head.set_cksum();
    let (entry, data) =
        read(&[head.as_bytes(), &more[0], &more[1], &padded(&[7; 30]), &header("g", b'5', 0)])
            .unwrap()
            .remove(0);
    let EntryKind::File { size: 300, regions: Some(regions) } = entry.kind else { panic!("{entry:?}") };
    assert_eq!(regions.len(), 30);
    assert_eq!(regions[29], Region { offset: 290, length: 1 });
    assert_eq!(data, [7; 30]);
}

#[test]
fn bad_archives() {
    let head = header("a", b'0', 600);
    assert!(matches!(read(&[&head, &[1; 100]]), Err(TarError::Truncated { .. })), "within data");
    assert!(matches!(read(&[&head[..100]]), Err(TarError::Truncated { at: 0 })), "within a header");
    assert!(matches!(read(&[&[7; 512]]), Err(TarError::Checksum { at: 0 })), "noise");
    assert!(matches!(read(&[&[0; 512], &[7; 512]]), Err(TarError::Checksum { at: 512 })), "half an end");
    assert!(matches!(
        read(&[&header("a", b'x', 2 << 20)]),
        Err(TarError::Field { field: "extended header (over 1 MiB)", .. })
    ));
    assert!(matches!(read(&[&header("a", b'V', 0)]), Err(TarError::UnknownType { kind: 'V', .. })));
    assert!(matches!(read(&[&header("", b'0', 0)]), Err(TarError::Field { field: "name", .. })));
    assert!(matches!(read(&[&header("a", b'2', 0)]), Err(TarError::Field { field: "link target", .. })));
    let nul = pax(&[("path", b"a\0b")]);
    assert!(matches!(read(&[&nul, &head]), Err(TarError::Field { field: "name", .. })));
    let far = pax(&[("uid", b"4294967296")]);
    assert!(matches!(read(&[&far, &head]), Err(TarError::Field { field: "owner", .. })));
    let map = pax(&[("GNU.sparse.size", b"10"), ("GNU.sparse.map", b"0,5,3,595")]);
    assert!(matches!(read(&[&map, &head]), Err(TarError::Field { field: "sparse map", .. })));
}

#[test]
fn extended_headers_do_not_add_up_without_bound() {
    let half = pax(&[("comment", &vec![b'x'; 600_000])]);
    let plain = header("a", b'0', 0);
    assert_eq!(read(&[&half, &plain, &half, &plain]).unwrap().len(), 2, "each entry has its own");
    assert!(matches!(
        read(&[&half, &half, &plain]),
        Err(TarError::Field { field: "extended header (over 1 MiB)", .. })
    ));
    // A later header replaces an earlier one as a whole; GNU's long name goes before PAX's.
    let (one, two) = (pax(&[("path", b"one"), ("uid", b"7")]), pax(&[("path", b"two"), ("gid", b"")]));
    let (entry, _) = read(&[&one, &two, &plain]).unwrap().remove(0);
    assert_eq!((&entry.path[..], entry.uid, entry.gid), (&b"two"[..], 1000, 100));
    let long = [header("././@LongLink", b'L', 4).to_vec(), padded(b"gnu\0")].concat();
    let (entry, _) = read(&[&long, &one, &plain]).unwrap().remove(0);
    assert_eq!(entry.path, b"gnu");
}

#[test]
fn numbers_at_their_limits() {
    let plain = header("a", b'0', 0);
    let field = |key: &str, value: &[u8]| read(&[&pax(&[(key, value)]), &plain]).unwrap_err();
    assert!(matches!(field("size", b"18446744073709551615"), TarError::Field { field: "PAX size", .. }));
    assert!(matches!(field("size", b"9223372036854775807"), TarError::Truncated { .. }));
    assert!(matches!(field("uid", b"4294967295"), TarError::Field { field: "owner", .. }));
}

#[test]
fn an_old_directory_with_data() {
    let entries = read(&[&header("d/", b'0', 5), &padded(b"hello"), &header("a", b'0', 0)]).unwrap();
    assert_eq!(entries[0].0.kind, EntryKind::Directory);
    assert_eq!(entries[1].0.path, b"a");
}
