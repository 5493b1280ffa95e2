//! What happens to a file, or in a directory, by inotify(7).
//!
//! The kernel watches one directory at a time. A file is watched by way of its directory, so that one that replaces it is seen; a
//! tree by a watch of every directory in it. What the kernel's queue does not hold while the host does not read is lost, and
//! the loss is told.

use super::{MAX_PATH, absolute, wrong};
use crate::failure;
use crate::stream::{Stream, StreamError};
use protocol::{Error, ErrorCode, FileEvent, FileEventKind, FrameType};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The directories of one watch.
const MAX_DIRECTORIES: usize = 8192;

/// Of the events that one read gives, in bytes.
const BUFFER: usize = 16 << 10;

/// The two halves of a move follow each other; with the second missing after so long, it went elsewhere.
const OTHER_HALF: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// Events that wait to be sent, all of one event of the kernel: what is in a directory that has appeared.
const MAX_TOLD: usize = 4096;

/// What files are called while they come.
const TEMPORARY: &[u8] = b".voidrun-";

/// Tells of what happens until the host has gone.
pub(super) fn watch(
    stream: &Stream,
    path: &str,
    recursive: bool,
    ignore_hidden: bool,
) -> Result<(), StreamError> {
    let mut watch = match Watch::new(path, recursive, ignore_hidden) {
        Ok(watch) => watch,
        Err(error) => return stream.message(&error),
    };
    stream.mark(FrameType::Done)?;
    let Ok(inotify) = watch.inotify.try_clone() else { return Err(StreamError::Broken(Errno::MFILE)) };
    let mut buffer = [MaybeUninit::uninit(); BUFFER];
    let mut reader = Reader::new(inotify, &mut buffer);
    loop {
        let told = watch.told.drain(..);
        for event in told {
            stream.message(&event)?;
        }
        if watch.over {
            return stream.mark(FrameType::DataEnd);
        }
        match reader.next() {
            Ok(event) => {
                let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()));
                watch.event(event.wd(), event.events(), event.cookie(), name);
            }
            Err(Errno::AGAIN) => {
                let limit = watch.moved.is_some().then_some(&OTHER_HALF);
                let mut fds =
                    [PollFd::new(&watch.inotify, PollFlags::IN), PollFd::new(stream, PollFlags::RDHUP)];
                let ready = poll(&mut fds, limit);
                let gone = !fds[1].revents().is_empty();
                match ready {
                    _ if gone => return Err(StreamError::Ended),
                    Ok(0) => watch.moved_away(),
                    Ok(_) | Err(Errno::INTR) => (),
                    Err(error) => return Err(StreamError::Broken(error)),
                }
            }
            Err(Errno::INTR) => (),
            Err(error) => return Err(StreamError::Broken(error)),
        }
    }
}

#[allow(clippy::struct_excessive_bools, reason = "what the host has chosen, and what was told")]
struct Watch {
    inotify: OwnedFd,
    /// What is watched.
    root: PathBuf,
    /// If that is a file: the one name that counts.
    only: bool,
    device: u64,
    recursive: bool,
    ignore_hidden: bool,
    directories: HashMap<i32, PathBuf>,
    /// The first half of a move.
    moved: Option<Moved>,
    /// Events that the host is to be told of.
    told: Vec<FileEvent>,
    /// That not every directory is watched was told.
    incomplete: bool,
    over: bool,
}

struct Moved {
    cookie: u32,
    path: PathBuf,
    is_dir: bool,
}

impl Watch {
    fn new(path: &str, recursive: bool, ignore_hidden: bool) -> Result<Self, Error> {
        let path = absolute(path)?.components().as_path();
        let metadata = path.metadata().map_err(|error| wrong(path, super::content::of_io(&error)))?;
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)
            .map_err(|errno| failure(ErrorCode::Internal, "inotify", errno))?;
        let mut watch = Self {
            inotify,
            root: path.to_owned(),
            only: !metadata.is_dir(),
            device: metadata.dev(),
            recursive: recursive && metadata.is_dir(),
            ignore_hidden,
            directories: HashMap::new(),
            moved: None,
            told: Vec::new(),
            incomplete: false,
            over: false,
        };
        let first = if watch.only { path.parent().unwrap_or(path) } else { path };
        watch.add(first, false).map_err(|errno| wrong(first, errno))?;
        if watch.recursive {
            watch.add_below(first, false);
        }
        Ok(watch)
    }

    fn add(&mut self, path: &Path, itself: bool) -> Result<(), Errno> {
        if self.directories.len() == MAX_DIRECTORIES {
            return Err(Errno::NOSPC);
        }
        let mut flags = WatchFlags::CREATE
            | WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::EXCL_UNLINK
            | WatchFlags::ONLYDIR;
        flags.set(WatchFlags::DONT_FOLLOW, itself);
        let number = inotify::add_watch(&self.inotify, path, flags)?;
        self.directories.insert(number, path.to_owned());
        Ok(())
    }

    /// Watches what is below a directory. With `new`, what is found there is told: it may have come before the watch.
    fn add_below(&mut self, path: &Path, new: bool) {
        let mut waiting = vec![path.to_owned()];
        while let Some(directory) = waiting.pop() {
            // What has gone in the meantime is told by other events.
            for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.as_os_str().len() >= MAX_PATH {
                    continue;
                }
                if new {
                    self.tell(FileEventKind::Created, &path, None);
                }
                let below = entry.metadata().is_ok_and(|found| found.is_dir() && found.dev() == self.device);
                if below && !self.is_left_out(&path) && self.add_or_tell(&path) {
                    waiting.push(path);
                }
            }
        }
    }

    /// Watches a directory. One that cannot be watched is told of once.
    fn add_or_tell(&mut self, path: &Path) -> bool {
        match self.add(path, true) {
            Ok(()) => return true,
            Err(Errno::NOSPC | Errno::NOMEM) if !self.incomplete => {
                self.incomplete = true;
                let root = self.root.clone();
                self.tell(FileEventKind::Overflow, &root, None);
            }
            Err(_) => (),
        }
        false
    }

    fn is_left_out(&self, path: &Path) -> bool {
        self.ignore_hidden && path.file_name().is_some_and(|name| name.as_bytes().starts_with(b"."))
    }

    fn event(&mut self, number: i32, what: ReadFlags, cookie: u32, name: Option<&OsStr>) {
        if what.contains(ReadFlags::QUEUE_OVERFLOW) {
            let root = self.root.clone();
            return self.tell(FileEventKind::Overflow, &root, None);
        }
        // What comes between the halves of a move is the end of waiting for the second.
        if !(what.contains(ReadFlags::MOVED_TO) && self.moved.as_ref().is_some_and(|m| m.cookie == cookie)) {
            self.moved_away();
        }
        if what.contains(ReadFlags::IGNORED) {
            self.directories.remove(&number);
            return;
        }
        let Some(directory) = self.directories.get(&number) else { return };
        let Some(name) = name else {
            // The first directory is nobody's entry.
            let first = directory == &self.root || self.only;
            if first && what.intersects(ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF) {
                let root = self.root.clone();
                self.tell(FileEventKind::Deleted, &root, None);
                self.over = true;
            }
            return;
        };
        let path = directory.join(name);
        if self.only && path != self.root && !what.intersects(ReadFlags::MOVED_TO | ReadFlags::MOVED_FROM) {
            return;
        }
        let is_dir = what.contains(ReadFlags::ISDIR);
        if what.contains(ReadFlags::MOVED_FROM) {
            self.moved = Some(Moved { cookie, path, is_dir });
        } else if what.contains(ReadFlags::MOVED_TO) {
            self.moved_here(&path, is_dir);
        } else if what.contains(ReadFlags::CREATE) {
            self.tell(FileEventKind::Created, &path, None);
            self.enter(&path, is_dir, true);
        } else if what.contains(ReadFlags::DELETE) {
            self.tell(FileEventKind::Deleted, &path, None);
        } else if what.contains(ReadFlags::MODIFY) {
            self.tell(FileEventKind::Modified, &path, None);
        } else if what.contains(ReadFlags::ATTRIB) {
            self.tell(FileEventKind::Chmod, &path, None);
        }
    }

    fn enter(&mut self, path: &Path, is_dir: bool, new: bool) {
        if self.recursive && is_dir && !self.is_left_out(path) && self.add_or_tell(path) {
            self.add_below(path, new);
        }
    }

    /// The second half of a move, or something from outside.
    fn moved_here(&mut self, path: &Path, is_dir: bool) {
        match self.moved.take() {
            Some(from) if !is_temporary(&from.path) => {
                self.tell(FileEventKind::Renamed, path, Some(&from.path));
                if is_dir {
                    self.renamed(&from.path, path);
                }
            }
            _ => {
                self.tell(FileEventKind::Created, path, None);
                self.enter(path, is_dir, true);
            }
        }
    }

    /// What was moved has not come back under another name.
    fn moved_away(&mut self) {
        let Some(Moved { path, is_dir, .. }) = self.moved.take() else { return };
        self.tell(FileEventKind::Deleted, &path, None);
        if is_dir {
            let gone: Vec<i32> = self.below(&path);
            for number in gone {
                self.directories.remove(&number);
                let _ = inotify::remove_watch(&self.inotify, number);
            }
        }
    }

    fn renamed(&mut self, from: &Path, to: &Path) {
        for number in self.below(from) {
            if let Some(path) = self.directories.get_mut(&number)
                && let Ok(rest) = path.strip_prefix(from)
            {
                *path = if rest.as_os_str().is_empty() { to.to_owned() } else { to.join(rest) };
            }
        }
    }

    fn below(&self, path: &Path) -> Vec<i32> {
        let below = self.directories.iter().filter(|(_, directory)| directory.starts_with(path));
        below.map(|(number, _)| *number).collect()
    }

    fn tell(&mut self, kind: FileEventKind, path: &Path, old_path: Option<&Path>) {
        let counts = !self.only || path == self.root || old_path == Some(&self.root);
        if is_temporary(path) || !counts {
            return;
        }
        if self.told.len() > MAX_TOLD {
            return;
        }
        let (kind, path, old_path) = if self.told.len() == MAX_TOLD {
            (FileEventKind::Overflow, &*self.root, None)
        } else {
            (kind, path, old_path)
        };
        let changed = matches!(kind, FileEventKind::Created | FileEventKind::Modified);
        let size = if changed { path.symlink_metadata().ok().map(|metadata| metadata.len()) } else { None };
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let event = FileEvent {
            kind,
            path: text(path),
            old_path: old_path.map(text),
            size,
            time_ms: now.as_millis() as u64,
        };
        self.told.push(event);
    }
}

fn is_temporary(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_bytes().starts_with(TEMPORARY))
}
