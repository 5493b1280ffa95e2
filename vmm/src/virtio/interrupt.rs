//! How a device reaches its driver.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// The interrupt line of one device. A clone is the same line.
#[derive(Clone, Debug)]
pub struct Interrupt {
    line: Arc<Line>,
}

#[derive(Debug)]
struct Line {
    /// InterruptStatus, register 0x60.
    status: AtomicU32,
    /// An irqfd of KVM.
    irqfd: EventFd,
    needs_reset: AtomicBool,
    counters: Counters,
}

/// What has gone between a device and its driver since the machine was started.
#[derive(Debug, Default)]
pub struct Counters {
    /// Notifications of queues, by the driver and by the device itself.
    pub notifications: AtomicU64,
    /// Interrupts raised.
    pub interrupts: AtomicU64,
}

impl Interrupt {
    /// A line that is not raised; its [`irqfd`](Self::irqfd) is still to be given to KVM.
    pub fn new() -> io::Result<Self> {
        let line = Line {
            status: AtomicU32::new(0),
            irqfd: EventFd::new(EFD_NONBLOCK)?,
            needs_reset: AtomicBool::new(false),
            counters: Counters::default(),
        };
        Ok(Self { line: Arc::new(line) })
    }

    /// The driver has used buffers to look at.
    pub fn queue(&self) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    /// The configuration has changed.
    pub fn config(&self) {
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    /// The driver has broken a queue: the device works no more until it is reset (section 2.1.2).
    pub fn needs_reset(&self) {
        self.line.needs_reset.store(true, Ordering::Release);
        self.config();
    }

    /// Whether [`needs_reset`](Self::needs_reset) was said since the last reset.
    pub fn reset_is_needed(&self) -> bool {
        self.line.needs_reset.load(Ordering::Acquire)
    }

    /// InterruptStatus as the driver reads it.
    pub fn status(&self) -> u32 {
        self.line.status.load(Ordering::Acquire)
    }

    /// InterruptACK.
    pub fn acknowledge(&self, bits: u32) {
        self.line.status.fetch_and(!bits, Ordering::AcqRel);
    }

    /// At a reset of the device, and with the saved value at a restore.
    pub fn set_status(&self, status: u32) {
        self.line.needs_reset.store(false, Ordering::Release);
        self.line.status.store(status, Ordering::Release);
    }

    /// What KVM turns into an interrupt.
    pub fn irqfd(&self) -> &EventFd {
        &self.line.irqfd
    }

    /// What has gone between the device and its driver.
    pub fn counters(&self) -> &Counters {
        &self.line.counters
    }

    fn raise(&self, bit: u32) {
        // The status first: the driver may read it before write() returns.
        self.line.status.fetch_or(bit, Ordering::AcqRel);
        self.line.counters.interrupts.fetch_add(1, Ordering::Relaxed);
        // The counter of an eventfd overflows only after 2^64 - 2 unread signals, and then the interrupt is pending anyhow.
        let _ = self.line.irqfd.write(1);
    }
}
