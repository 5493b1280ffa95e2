//! The registers of virtio over MMIO (section 4.2). They are read and written on vCPU threads.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio as register;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Active, ConfigSpace, Device, DeviceError, Info, Interrupt, QueueState, Saved};
use crate::GuestMemory;
use crate::devices::Worker;

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
/// Not the legacy interface.
const VERSION: u32 = 2;
/// Without a meaning to drivers; "VR", little-endian.
const VENDOR: u32 = 0x5256;
/// Where the device's own configuration begins.
const CONFIG: u64 = 0x100;

/// The order in which a driver has to set the status bits (section 3.1.1).
const ORDER: [u32; 4] = [
    VIRTIO_CONFIG_S_ACKNOWLEDGE,
    VIRTIO_CONFIG_S_DRIVER,
    VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_DRIVER_OK,
];

/// What the driver sees of one device, and where the device is.
#[derive(Debug)]
pub struct Transport {
    info: Info,
    config: Arc<ConfigSpace>,
    place: Place,
    memory: GuestMemory,
    interrupt: Interrupt,
    notifiers: Vec<Arc<EventFd>>,
    registers: Registers,
    /// As the driver has set them up; at DRIVER_OK the device gets queues like them.
    queues: Vec<Queue>,
}

/// Where a device lives: a worker, and its index there.
#[derive(Clone, Debug)]
pub struct Place {
    /// The thread.
    pub worker: Arc<Worker>,
    /// The position in the list that the worker was made with.
    pub index: usize,
}

/// What a driver can find out of a device before it is ready.
#[derive(Debug)]
pub struct Face {
    info: Info,
    config: Arc<ConfigSpace>,
}

impl Face {
    /// The face of a device that is going to be moved to its worker.
    pub fn of(device: &dyn Device) -> Self {
        Self { info: device.info(), config: device.config() }
    }

    /// The device's ID (section 5).
    pub fn id(&self) -> u32 {
        self.info.id
    }
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
struct Registers {
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
}

/// A transport and its device as they are saved.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct TransportState {
    registers: Registers,
    interrupt_status: u32,
    queues: Vec<QueueState>,
    device: Saved,
}

impl Transport {
    /// The registers of a device after a reset.
    ///
    /// # Errors
    /// The process has no descriptors left, or the device asks for a queue size that is no power of two.
    pub fn new(face: Face, place: Place, memory: GuestMemory) -> Result<Self, DeviceError> {
        let host = |source| DeviceError::Host { what: "creating an eventfd", source };
        let mut notifiers = Vec::new();
        for _ in face.info.queues {
            notifiers.push(Arc::new(EventFd::new(EFD_NONBLOCK).map_err(host)?));
        }
        let interrupt = Interrupt::new().map_err(host)?;
        let queues = face.info.queues.iter().map(|size| Queue::new(*size)).collect::<Result<_, _>>()?;
        let Face { info, config } = face;
        let registers = Registers::default();
        Ok(Self { info, config, place, memory, interrupt, notifiers, registers, queues })
    }

    /// What the device is.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// To be joined to the device's interrupt line.
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// One for each queue, to be written by KVM when the driver writes the queue's index to QueueNotify.
    pub fn notifiers(&self) -> &[Arc<EventFd>] {
        &self.notifiers
    }

    /// The driver reads `data.len()` bytes at `offset`. What cannot be read is zero.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset >= CONFIG {
            self.config.read(offset - CONFIG, data);
        } else if let Ok(word) = <&mut [u8; 4]>::try_from(data) {
            // Only aligned words are defined (section 4.2.2.2).
            *word = self.read_register(offset as u32).to_le_bytes();
        }
    }

    /// The driver writes `data` at `offset`. What it may not write is left as it is.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        if offset >= CONFIG {
            self.config.write_from_driver(offset - CONFIG, data);
        } else if let Ok(word) = data.try_into() {
            self.write_register(offset as u32, u32::from_le_bytes(word));
        }
    }

    /// The paused device with its registers.
    ///
    /// # Errors
    /// The device's thread has ended.
    pub fn save(&self) -> Result<TransportState, DeviceError> {
        Ok(TransportState {
            registers: self.registers,
            interrupt_status: self.interrupt.status(),
            queues: self.queues.iter().map(QueueState::from).collect(),
            device: self.place.worker.save(self.place.index)?,
        })
    }

    /// Takes over what [`save`](Self::save) gave, with a new device; it is paused then.
    ///
    /// # Errors
    /// The state is of another device, or not sound.
    pub fn restore(&mut self, state: TransportState) -> Result<(), DeviceError> {
        let wrong = |why: String| DeviceError::State { device: self.info.name, why };
        if state.registers.driver_features & !self.offered() != 0 {
            return Err(wrong("the driver has features that are not offered".into()));
        }
        let queues = self.restored_queues(&state.queues)?;
        let active = match &state.device.queues {
            None => None,
            Some(saved) => {
                let queues = self.restored_queues(saved)?;
                Some(self.active(queues, state.registers.driver_features))
            }
        };
        self.place.worker.restore(self.place.index, state.device.device, active)?;
        self.registers = state.registers;
        self.queues = queues;
        self.interrupt.set_status(state.interrupt_status);
        Ok(())
    }

    fn restored_queues(&self, saved: &[QueueState]) -> Result<Vec<Queue>, DeviceError> {
        let wrong = |why: String| DeviceError::State { device: self.info.name, why };
        if saved.len() != self.info.queues.len() {
            return Err(wrong(format!("{} queues instead of {}", saved.len(), self.info.queues.len())));
        }
        let mut queues = Vec::new();
        for (saved, max_size) in saved.iter().zip(self.info.queues) {
            if saved.max_size != *max_size {
                return Err(wrong(format!("a queue of {} instead of {max_size}", saved.max_size)));
            }
            let queue = Queue::try_from(*saved).map_err(|e| wrong(e.to_string()))?;
            if queue.ready() && !queue.is_valid(&*self.memory) {
                return Err(wrong("a queue outside of guest RAM".into()));
            }
            queues.push(queue);
        }
        Ok(queues)
    }

    fn offered(&self) -> u64 {
        self.info.features | 1 << VIRTIO_F_VERSION_1
    }

    fn read_register(&self, offset: u32) -> u32 {
        let queue = self.queues.get(self.registers.queue_sel as usize);
        match offset {
            register::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            register::VIRTIO_MMIO_VERSION => VERSION,
            register::VIRTIO_MMIO_DEVICE_ID => self.info.id,
            register::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            register::VIRTIO_MMIO_DEVICE_FEATURES => match self.registers.device_features_sel {
                0 => self.offered() as u32,
                1 => (self.offered() >> 32) as u32,
                _ => 0,
            },
            register::VIRTIO_MMIO_QUEUE_NUM_MAX => queue.map_or(0, |queue| u32::from(queue.max_size())),
            register::VIRTIO_MMIO_QUEUE_READY => queue.map_or(0, |queue| u32::from(queue.ready())),
            register::VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.status(),
            register::VIRTIO_MMIO_STATUS => self.status(),
            // There is no shared memory: its length and base read as all ones (section 4.2.2.1).
            register::VIRTIO_MMIO_SHM_LEN_LOW
            | register::VIRTIO_MMIO_SHM_LEN_HIGH
            | register::VIRTIO_MMIO_SHM_BASE_LOW
            | register::VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            register::VIRTIO_MMIO_CONFIG_GENERATION => self.config.generation(),
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u32, value: u32) {
        let registers = &mut self.registers;
        match offset {
            register::VIRTIO_MMIO_DEVICE_FEATURES_SEL => registers.device_features_sel = value,
            register::VIRTIO_MMIO_DRIVER_FEATURES_SEL => registers.driver_features_sel = value,
            register::VIRTIO_MMIO_DRIVER_FEATURES => self.accept_features(value),
            register::VIRTIO_MMIO_QUEUE_SEL => registers.queue_sel = value,
            register::VIRTIO_MMIO_QUEUE_NOTIFY => {
                // Comes here only with a width or an index that KVM does not answer.
                if let Some(notifier) = self.notifiers.get(value as usize) {
                    let _ = notifier.write(1);
                }
            }
            register::VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.acknowledge(value),
            register::VIRTIO_MMIO_STATUS => self.set_status(value),
            _ => self.write_queue_register(offset, value),
        }
    }

    fn accept_features(&mut self, value: u32) {
        let negotiating = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;
        if self.registers.status != negotiating {
            return;
        }
        let features = &mut self.registers.driver_features;
        match self.registers.driver_features_sel {
            0 => *features = *features & !0xffff_ffff | u64::from(value),
            1 => *features = *features & 0xffff_ffff | u64::from(value) << 32,
            // There are no features beyond bit 63: with one of them FEATURES_OK has to be refused.
            _ if value != 0 => self.registers.status |= VIRTIO_CONFIG_S_FAILED,
            _ => {}
        }
    }

    /// Queues are set up between FEATURES_OK and DRIVER_OK (section 3.1.1).
    fn write_queue_register(&mut self, offset: u32, value: u32) {
        let setup = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK;
        let Some(queue) = self.queues.get_mut(self.registers.queue_sel as usize) else { return };
        if self.registers.status != setup {
            return;
        }
        match offset {
            register::VIRTIO_MMIO_QUEUE_READY => queue.set_ready(value == 1),
            // A ready queue stays as it is (section 4.2.2.2).
            _ if queue.ready() => {}
            register::VIRTIO_MMIO_QUEUE_NUM => queue.set_size(u16::try_from(value).unwrap_or(0)),
            register::VIRTIO_MMIO_QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
            register::VIRTIO_MMIO_QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
            register::VIRTIO_MMIO_QUEUE_AVAIL_LOW => queue.set_avail_ring_address(Some(value), None),
            register::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => queue.set_avail_ring_address(None, Some(value)),
            register::VIRTIO_MMIO_QUEUE_USED_LOW => queue.set_used_ring_address(Some(value), None),
            register::VIRTIO_MMIO_QUEUE_USED_HIGH => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    fn status(&self) -> u32 {
        let needs_reset = if self.interrupt.reset_is_needed() { VIRTIO_CONFIG_S_NEEDS_RESET } else { 0 };
        self.registers.status | needs_reset
    }

    fn set_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        let old = self.registers.status;
        if value & VIRTIO_CONFIG_S_FAILED != 0 {
            self.registers.status |= VIRTIO_CONFIG_S_FAILED;
        }
        // Bits are set one after the other and never cleared; a step that is out of turn is not taken.
        let Some(next) = ORDER.into_iter().find(|bit| old & bit == 0) else { return };
        if old & VIRTIO_CONFIG_S_FAILED != 0 || value & next == 0 || value & old != old {
            return;
        }
        match next {
            VIRTIO_CONFIG_S_FEATURES_OK if !self.features_are_good() => {}
            VIRTIO_CONFIG_S_DRIVER_OK => {
                self.registers.status |= next;
                self.activate();
            }
            _ => self.registers.status |= next,
        }
    }

    fn features_are_good(&self) -> bool {
        let accepted = self.registers.driver_features;
        accepted & !self.offered() == 0 && accepted & 1 << VIRTIO_F_VERSION_1 != 0
    }

    fn activate(&mut self) {
        let event_idx = self.registers.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        for queue in &mut self.queues {
            queue.set_event_idx(event_idx);
        }
        let configured: Vec<QueueState> = self.queues.iter().map(QueueState::from).collect();
        let activated = self.restored_queues(&configured).and_then(|queues| {
            let active = self.active(queues, self.registers.driver_features);
            self.place.worker.activate(self.place.index, active)
        });
        if activated.is_err() {
            self.interrupt.needs_reset();
        }
    }

    fn active(&self, queues: Vec<Queue>, features: u64) -> Active {
        Active {
            memory: self.memory.clone(),
            queues,
            notifiers: self.notifiers.clone(),
            features,
            interrupt: self.interrupt.clone(),
        }
    }

    fn reset(&mut self) {
        // When it returns the device touches no buffer any more: the driver may use the memory for something else.
        // A worker that is gone touches nothing either.
        let _ = self.place.worker.deactivate(self.place.index);
        for queue in &mut self.queues {
            queue.reset();
        }
        self.registers = Registers::default();
        self.interrupt.set_status(0);
    }
}
