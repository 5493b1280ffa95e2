use super::*;
use proptest::prelude::*;

/// Every entry of an archive with its content.
fn read(archive: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let mut reader = Reader::new(archive);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next()? {
        let mut content = Vec::new();
        let mut piece = [0; 100];
        loop {
            match reader.read(&mut piece)? {
                0 => break,
                count => content.extend_from_slice(&piece[..count]),
            }
        }
        entries.push((entry, content));
    }
    Ok(entries)
}

fn write(entries: &[(Entry, Vec<u8>)]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (entry, content) in entries {
        archive.extend(header(entry));
        archive.extend(content);
        archive.resize(archive.len().next_multiple_of(BLOCK), 0);
    }
    archive.resize(archive.len() + 2 * BLOCK, 0);
    archive
}

fn entry() -> impl Strategy<Value = (Entry, Vec<u8>)> {
    let name = prop_oneof!["[a-z/]{1,300}", "[a-zäö]{95,105}", "x{980,1000}"].prop_map(String::into_bytes);
    let kind = prop::sample::select(vec![Kind::File, Kind::Directory, Kind::Symlink, Kind::HardLink]);
    let content = prop::collection::vec(any::<u8>(), 0..1500);
    (kind, name.clone(), name, 0..0o10_000u32, any::<[u32; 2]>(), 0..1u64 << 40, content).prop_map(
        |(kind, path, link, mode, [uid, gid], mtime, mut content)| {
            let link = if matches!(kind, Kind::Symlink | Kind::HardLink) { link } else { Vec::new() };
            if kind != Kind::File {
                content.clear();
            }
            let size = content.len() as u64;
            (Entry { kind, path, link, mode, uid, gid, mtime, size }, content)
        },
    )
}

proptest! {
    #[test]
    fn what_is_written_is_read(entries in prop::collection::vec(entry(), 0..6)) {
        prop_assert_eq!(read(&write(&entries)).unwrap(), entries);
    }

    /// The tar crate as a second opinion.
    #[test]
    fn another_reader_agrees(entries in prop::collection::vec(entry(), 0..6)) {
        let archive = write(&entries);
        let mut archive = tar::Archive::new(archive.as_slice());
        let mut count = 0;
        for (theirs, (ours, content)) in archive.entries().unwrap().zip(&entries) {
            let mut theirs = theirs.unwrap();
            prop_assert_eq!(&*theirs.path_bytes(), &ours.path[..]);
            prop_assert_eq!(theirs.link_name_bytes().unwrap_or_default().to_vec(), ours.link.clone());
            prop_assert_eq!(theirs.header().mode().unwrap(), ours.mode);
            prop_assert_eq!(theirs.header().uid().unwrap(), u64::from(ours.uid));
            prop_assert_eq!(theirs.header().mtime().unwrap(), ours.mtime);
            let mut read = Vec::new();
            theirs.read_to_end(&mut read).unwrap();
            prop_assert_eq!(&read, content);
            count += 1;
        }
        prop_assert_eq!(count, entries.len());
    }

    #[test]
    fn garbage_is_an_error(mut bytes in prop::collection::vec(any::<u8>(), 1..2000)) {
        // A block of zeros would be an end.
        bytes[0] |= 1;
        prop_assert!(read(&bytes).is_err());
    }

    #[test]
    fn damage_never_panics(
        entries in prop::collection::vec(entry(), 1..3),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        length in any::<prop::sample::Index>(),
    ) {
        let mut archive = write(&entries);
        let at = at.index(archive.len());
        archive[at] = byte;
        archive.truncate(length.index(archive.len() + 1));
        // Whatever comes of it, it is no more than there was.
        if let Ok(read) = read(&archive) {
            prop_assert!(read.iter().map(|(_, content)| content.len()).sum::<usize>() <= archive.len());
        }
    }
}

/// What another writer makes: GNU's long names, and a directory told by its slash.
#[test]
fn gnu_long_names() {
    let mut builder = tar::Builder::new(Vec::new());
    let long = "d/".repeat(100) + "file";
    let mut header = tar::Header::new_gnu();
    header.set_size(3);
    header.set_mode(0o4755);
    builder.append_data(&mut header, &long, &b"abc"[..]).unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, "link", &long).unwrap();
    let entries = read(&builder.into_inner().unwrap()).unwrap();
    assert_eq!(entries[0].0.path, long.as_bytes());
    assert_eq!((entries[0].0.mode, entries[0].1.as_slice()), (0o4755, &b"abc"[..]));
    assert_eq!((entries[1].0.kind, entries[1].0.link.as_slice()), (Kind::Symlink, long.as_bytes()));
}

#[test]
fn what_is_not_unpacked_is_named() {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Block);
    header.set_size(0);
    builder.append_data(&mut header, "disk", &b""[..]).unwrap();
    let error = read(&builder.into_inner().unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "disk: entries of type '4' are not unpacked");

    let file = Entry {
        kind: Kind::File,
        path: b"hole".to_vec(),
        link: Vec::new(),
        mode: 0,
        uid: 0,
        gid: 0,
        mtime: 0,
        size: 0,
    };
    let mut archive = block(b'x', b"pax", b"", 0, [0, 0], 22, 0).to_vec();
    archive.extend(b"22 GNU.sparse.major=1\n");
    archive.resize(2 * BLOCK, 0);
    archive.extend(super::header(&file));
    assert_eq!(read(&archive).unwrap_err().to_string(), "hole: entries of type 'S' are not unpacked");
}

#[test]
fn large_numbers() {
    for value in [0, 0o7_777_777, 1 << 33, u64::from(u32::MAX)] {
        let entry = Entry {
            kind: Kind::Directory,
            path: b"d".to_vec(),
            link: Vec::new(),
            mode: 0o755,
            uid: value as u32,
            gid: value as u32,
            mtime: value,
            size: 0,
        };
        assert_eq!(read(&write(&[(entry.clone(), Vec::new())])).unwrap()[0].0, entry);
    }
}
