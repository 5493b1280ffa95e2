//! The end of a machine, told by whoever sees it first.

use std::io;
use std::sync::{Arc, OnceLock};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::exit::ExitReason;

/// Why the machine ends. A clone is the same ending.
#[derive(Clone, Debug)]
pub(crate) struct Ending {
    reason: Arc<OnceLock<ExitReason>>,
    event: Arc<EventFd>,
}

impl Ending {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { reason: Arc::default(), event: Arc::new(EventFd::new(EFD_NONBLOCK)?) })
    }

    /// The machine is to end. The first reason counts.
    pub(crate) fn because(&self, reason: ExitReason) {
        if self.reason.set(reason).is_ok() {
            // Written once, it cannot overflow.
            let _ = self.event.write(1);
        }
    }

    pub(crate) fn reason(&self) -> Option<&ExitReason> {
        self.reason.get()
    }

    /// Readable once there is a reason.
    pub(crate) fn event(&self) -> &EventFd {
        &self.event
    }
}
