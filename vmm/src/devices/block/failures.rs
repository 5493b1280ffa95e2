//! What the host has failed at, told to whoever looks for the reason of a guest's I/O errors.

use std::io::{self, Write as _};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};

const ACTIONS: [&str; 4] = ["reading", "writing", "flushing", "zeroing"];

/// What was told already. Each action is told once: how often something fails is in the guest's hands.
#[derive(Debug, Default)]
pub(super) struct Failures {
    told: [bool; ACTIONS.len()],
}

impl Failures {
    /// A request of this kind (VIRTIO_BLK_T_...) has failed: tells it on standard error, which is the machine's log. Gives
    /// the status for the driver.
    pub(super) fn status(&mut self, kind: u32, error: &io::Error) -> u8 {
        if error.raw_os_error() == Some(libc::EOPNOTSUPP) {
            // A guest that learns that zeroing is unsupported writes zeros instead.
            return VIRTIO_BLK_S_UNSUPP as u8;
        }
        if let Some(line) = self.line(kind, error) {
            // Nothing is to be done when nobody reads it.
            let _ = writeln!(io::stderr(), "voidrun vmm: {line}");
        }
        VIRTIO_BLK_S_IOERR as u8
    }

    fn line(&mut self, kind: u32, error: &io::Error) -> Option<String> {
        // The disk's own word for a range that is not on it, which is the driver's mistake.
        let by_driver = error.kind() == io::ErrorKind::InvalidInput && error.raw_os_error().is_none();
        let action = match kind {
            VIRTIO_BLK_T_IN => 0,
            VIRTIO_BLK_T_OUT => 1,
            VIRTIO_BLK_T_FLUSH => 2,
            _ => 3,
        };
        if by_driver || std::mem::replace(&mut self.told[action], true) {
            return None;
        }
        let action = ACTIONS[action];
        Some(format!(
            "{action} the disk failed, and the guest has an I/O error: {error}; told only this time"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_action_is_told_once_and_a_drivers_mistake_never() {
        let mut failures = Failures::default();
        let full = || io::Error::from_raw_os_error(libc::ENOSPC);
        let mistake = io::Error::new(io::ErrorKind::InvalidInput, "beyond the end of the disk");
        assert_eq!(failures.line(VIRTIO_BLK_T_OUT, &mistake), None);
        let line = failures.line(VIRTIO_BLK_T_OUT, &full()).unwrap();
        assert!(line.starts_with("writing the disk failed") && line.contains("No space left"), "{line}");
        assert_eq!(failures.line(VIRTIO_BLK_T_OUT, &full()), None);
        assert!(failures.line(VIRTIO_BLK_T_IN, &io::ErrorKind::UnexpectedEof.into()).is_some());
        assert!(failures.line(VIRTIO_BLK_T_FLUSH, &full()).is_some());
        assert_eq!(failures.status(VIRTIO_BLK_T_OUT, &full()), VIRTIO_BLK_S_IOERR as u8);
        let no_holes = io::Error::from_raw_os_error(libc::EOPNOTSUPP);
        assert_eq!(failures.status(VIRTIO_BLK_T_OUT, &no_holes), VIRTIO_BLK_S_UNSUPP as u8);
    }
}
