//! Writes tar layers entry by entry, in the dialects that image builders use, and in those that none should.
//!
//! Headers are filled by the `tar` crate; extended headers, sparse maps and everything else that it would not write are
//! made here byte by byte.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use tar::{EntryType, Header};

/// What an entry has besides its name and content.
#[derive(Clone)]
pub struct Meta {
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    /// Seconds and nanoseconds since 1970; the nanoseconds count upwards from the second, also before 1970.
    pub mtime: (i64, u32),
    /// Full name and value, as in `user.note`.
    pub xattrs: Vec<(&'static str, Vec<u8>)>,
}

impl Meta {
    pub fn mode(mode: u32) -> Self {
        Self { mode, uid: 0, gid: 0, mtime: (1_700_000_000, 0), xattrs: Vec::new() }
    }

    pub fn owner(self, uid: u64, gid: u64) -> Self {
        Self { uid, gid, ..self }
    }

    pub fn mtime(self, seconds: i64, nanoseconds: u32) -> Self {
        Self { mtime: (seconds, nanoseconds), ..self }
    }

    pub fn xattr(mut self, name: &'static str, value: impl Into<Vec<u8>>) -> Self {
        self.xattrs.push((name, value.into()));
        self
    }
}

/// How what does not fit into a header is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// POSIX.1-2001 extended headers.
    Pax,
    /// GNU tar's `L` and `K` entries; numbers in base 256.
    Gnu,
}

/// The four ways to write a sparse file.
#[derive(Clone, Copy, Debug)]
pub enum Sparse {
    OldGnu,
    Pax00,
    Pax01,
    Pax10,
}

/// A stretch of a sparse file that has data.
pub struct Stretch {
    pub offset: u64,
    pub data: Vec<u8>,
}

/// One layer, being written.
pub struct Layer {
    out: BufWriter<File>,
    path: PathBuf,
    pub dialect: Dialect,
    reader: Reader,
}

/// Who has to be able to read a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// Who knows all that is in use.
    Any,
    /// umoci 0.4.7 refuses what it does not know, so it gets the same files in a form that it does know.
    Umoci,
}

type Records = Vec<(String, Vec<u8>)>;

impl Layer {
    pub fn create(path: &Path, reader: Reader) -> Self {
        let out = BufWriter::new(File::create(path).unwrap());
        Self { out, path: path.to_path_buf(), dialect: Dialect::Pax, reader }
    }

    /// Ends the archive and returns its path.
    pub fn finish(mut self) -> PathBuf {
        self.raw(&[0; 1024]);
        self.out.flush().unwrap();
        self.path
    }

    pub fn dir(&mut self, name: impl AsRef<[u8]>, meta: &Meta) {
        self.entry(name.as_ref(), EntryType::Directory, b"", &[], meta);
    }

    pub fn file(&mut self, name: impl AsRef<[u8]>, content: impl AsRef<[u8]>, meta: &Meta) {
        self.entry(name.as_ref(), EntryType::Regular, b"", content.as_ref(), meta);
    }

    /// A file whose content is nobody's concern but tells where it comes from.
    pub fn touch(&mut self, name: &str) {
        self.file(
            name,
            format!("{name} of {}\n", self.path.file_name().unwrap().display()),
            &Meta::mode(0o644),
        );
    }

    pub fn symlink(&mut self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>, meta: &Meta) {
        self.entry(name.as_ref(), EntryType::Symlink, target.as_ref(), &[], meta);
    }

    /// `meta` has to be that of the target: a tar holds it twice.
    pub fn hard_link(&mut self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>, meta: &Meta) {
        self.entry(name.as_ref(), EntryType::Link, target.as_ref(), &[], meta);
    }

    pub fn fifo(&mut self, name: &str, meta: &Meta) {
        self.entry(name.as_bytes(), EntryType::Fifo, b"", &[], meta);
    }

    /// `kind` is `Char` or `Block`.
    pub fn device(&mut self, name: &str, kind: EntryType, major: u32, minor: u32, meta: &Meta) {
        let mut header = self.header(name.as_bytes(), kind, b"", 0, meta, Vec::new());
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        self.header_block(header);
    }

    /// Marks `name` of the layers below as deleted.
    pub fn whiteout(&mut self, name: &str) {
        let (parent, base) = name.rsplit_once('/').unwrap();
        self.file(format!("{parent}/.wh.{base}"), "", &Meta::mode(0o644));
    }

    /// Hides what `directory` has in the layers below.
    pub fn opaque(&mut self, directory: &str) {
        self.file(format!("{directory}/.wh..wh..opq"), "", &Meta::mode(0o644));
    }

    /// A header of the time before `ustar`: type NUL, where a slash at the end of the name makes a directory.
    pub fn v7(&mut self, name: &str, content: &[u8], meta: &Meta) {
        let mut header = Header::new_old();
        fill(&mut header, meta);
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(EntryType::new(0));
        header.set_size(content.len() as u64);
        self.header_block(header);
        self.body(content);
    }

    /// Records that hold for all entries that follow, as `git archive` writes.
    pub fn global(&mut self, key: &str, value: &str) {
        if self.reader == Reader::Umoci {
            return; // "unknown typeflag"
        }
        self.pax(EntryType::XGlobalHeader, &vec![(key.into(), value.into())]);
    }

    /// A file of `size` bytes that has data in `stretches` only.
    pub fn sparse(&mut self, name: &str, how: Sparse, size: u64, stretches: &[Stretch], meta: &Meta) {
        let map = || stretches.iter().map(|stretch| (stretch.offset, stretch.data.len() as u64));
        let mut data: Vec<u8> = stretches.iter().flat_map(|stretch| stretch.data.iter().copied()).collect();
        let number = |n: u64| n.to_string().into_bytes();
        let record = |key: &str, value: Vec<u8>| (format!("GNU.sparse.{key}"), value);
        let stand_in = format!("GNUSparseFile.1/{}", name.rsplit('/').next().unwrap());
        let how = match (how, self.reader) {
            // "unknown typeflag"
            (Sparse::OldGnu, Reader::Umoci) => Sparse::Pax10,
            (how, _) => how,
        };
        let (written_name, records) = match how {
            Sparse::OldGnu => return self.old_gnu_sparse(name, size, stretches, &data, meta),
            Sparse::Pax00 => {
                let mut records =
                    vec![record("size", number(size)), record("numblocks", number(stretches.len() as u64))];
                for (offset, length) in map() {
                    records.push(record("offset", number(offset)));
                    records.push(record("numbytes", number(length)));
                }
                (name, records)
            }
            Sparse::Pax01 => {
                let map: Vec<String> = map().map(|(offset, length)| format!("{offset},{length}")).collect();
                let records = vec![
                    record("size", number(size)),
                    record("numblocks", number(stretches.len() as u64)),
                    record("name", name.into()),
                    record("map", map.join(",").into()),
                ];
                (stand_in.as_str(), records)
            }
            Sparse::Pax10 => {
                let mut map: Vec<u8> = map()
                    .fold(format!("{}\n", stretches.len()), |map, (offset, length)| {
                        format!("{map}{offset}\n{length}\n")
                    })
                    .into();
                map.resize(map.len().next_multiple_of(512), 0);
                data.splice(0..0, map);
                let records = vec![
                    record("major", number(1)),
                    record("minor", number(0)),
                    record("name", name.into()),
                    record("realsize", number(size)),
                ];
                (stand_in.as_str(), records)
            }
        };
        let length = data.len() as u64;
        let header = self.header(written_name.as_bytes(), EntryType::Regular, b"", length, meta, records);
        self.header_block(header);
        self.body(&data);
    }

    /// Four stretches fit into the header, 21 into each block that follows.
    fn old_gnu_sparse(&mut self, name: &str, size: u64, stretches: &[Stretch], data: &[u8], meta: &Meta) {
        let dialect = std::mem::replace(&mut self.dialect, Dialect::Gnu);
        let mut header =
            self.header(name.as_bytes(), EntryType::GNUSparse, b"", data.len() as u64, meta, Vec::new());
        self.dialect = dialect;
        let pairs: Vec<[u8; 24]> = stretches
            .iter()
            .map(|stretch| {
                let mut pair = [0; 24];
                pair[..12].copy_from_slice(&octal(stretch.offset));
                pair[12..].copy_from_slice(&octal(stretch.data.len() as u64));
                pair
            })
            .collect();
        let (first, rest) = pairs.split_at(pairs.len().min(4));
        let block = header.as_mut_bytes();
        block[386..386 + first.len() * 24].copy_from_slice(first.as_flattened());
        block[482] = u8::from(!rest.is_empty());
        block[483..495].copy_from_slice(&octal(size));
        self.header_block(header);
        let mut chunks = rest.chunks(21).peekable();
        while let Some(chunk) = chunks.next() {
            let mut block = [0; 512];
            block[..chunk.len() * 24].copy_from_slice(chunk.as_flattened());
            block[504] = u8::from(chunks.peek().is_some());
            self.raw(&block);
        }
        self.body(data);
    }

    fn entry(&mut self, name: &[u8], kind: EntryType, link: &[u8], content: &[u8], meta: &Meta) {
        let header = self.header(name, kind, link, content.len() as u64, meta, Vec::new());
        self.header_block(header);
        self.body(content);
    }

    /// Writes what has to stand before the header (long names, extended records) and returns the header.
    fn header(
        &mut self,
        name: &[u8],
        kind: EntryType,
        link: &[u8],
        size: u64,
        meta: &Meta,
        mut records: Records,
    ) -> Header {
        let mut header = if self.dialect == Dialect::Gnu { Header::new_gnu() } else { Header::new_ustar() };
        fill(&mut header, meta);
        header.set_entry_type(kind);
        header.set_size(size);
        for (value, at, key, long) in
            [(name, 0, "path", EntryType::GNULongName), (link, 157, "linkpath", EntryType::GNULongLink)]
        {
            let fits = value.len().min(100);
            header.as_mut_bytes()[at..at + fits].copy_from_slice(&value[..fits]);
            if value.len() > 100 {
                match self.dialect {
                    Dialect::Pax => records.push((key.into(), value.into())),
                    Dialect::Gnu => self.gnu_long(long, value),
                }
            }
        }
        let (seconds, nanoseconds) = meta.mtime;
        if nanoseconds != 0 || (seconds < 0 && self.dialect == Dialect::Pax) {
            records.push(("mtime".into(), decimal(seconds, nanoseconds).into()));
        }
        for (name, value) in &meta.xattrs {
            records.push((format!("SCHILY.xattr.{name}"), value.clone()));
        }
        if self.dialect == Dialect::Pax {
            for (key, id) in [("uid", meta.uid), ("gid", meta.gid)] {
                if id > 0o7_777_777 {
                    records.push((key.into(), id.to_string().into()));
                }
            }
        }
        if !records.is_empty() {
            self.pax(EntryType::XHeader, &records);
        }
        header
    }

    fn pax(&mut self, kind: EntryType, records: &Records) {
        let mut body = Vec::new();
        for (key, value) in records {
            // The length counts itself.
            let rest = key.len() + value.len() + 3;
            let mut length = rest + rest.to_string().len();
            length = rest + length.to_string().len();
            write!(body, "{length} {key}=").unwrap();
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        let mut header = Header::new_ustar();
        fill(&mut header, &Meta::mode(0o644));
        header.as_mut_bytes()[..12].copy_from_slice(b"PaxHeaders/x");
        header.set_entry_type(kind);
        header.set_size(body.len() as u64);
        self.header_block(header);
        self.body(&body);
    }

    fn gnu_long(&mut self, kind: EntryType, value: &[u8]) {
        let mut header = Header::new_gnu();
        fill(&mut header, &Meta::mode(0o644));
        header.as_mut_bytes()[..13].copy_from_slice(b"././@LongLink");
        header.set_entry_type(kind);
        header.set_size(value.len() as u64 + 1);
        self.header_block(header);
        self.body(&[value, b"\0"].concat());
    }

    fn header_block(&mut self, mut header: Header) {
        header.set_cksum();
        self.raw(header.as_bytes());
    }

    fn body(&mut self, content: &[u8]) {
        self.raw(content);
        let padding = content.len().next_multiple_of(512) - content.len();
        self.raw(&[0; 512][..padding]);
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.out.write_all(bytes).unwrap();
    }
}

fn fill(header: &mut Header, meta: &Meta) {
    header.set_mode(meta.mode);
    header.set_uid(meta.uid);
    header.set_gid(meta.gid);
    if let Ok(seconds) = u64::try_from(meta.mtime.0) {
        header.set_mtime(seconds);
    } else {
        // Base 256, two's complement; a reader that knows `mtime` of an extended header prefers that.
        let field = &mut header.as_mut_bytes()[136..148];
        field.fill(0xff);
        field[4..].copy_from_slice(&meta.mtime.0.to_be_bytes());
    }
}

fn octal(number: u64) -> [u8; 12] {
    let mut field = [0; 12];
    if number < 1 << 33 {
        field[..11].copy_from_slice(format!("{number:011o}").as_bytes());
    } else {
        field[0] = 0x80;
        field[4..].copy_from_slice(&number.to_be_bytes());
    }
    field
}

/// A time as PAX writes it: sign and magnitude.
fn decimal(seconds: i64, nanoseconds: u32) -> String {
    let total = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    let sign = if total < 0 { "-" } else { "" };
    let magnitude = total.unsigned_abs();
    format!("{sign}{}.{:09}", magnitude / 1_000_000_000, magnitude % 1_000_000_000)
}
