//! A thread that devices live on.
//!
//! ```text
//!   vCPU threads ── QueueNotify: KVM writes the ioeventfd ──▶ epoll ─┐
//!   transports ──── activate, deactivate ──▶ channel + wake eventfd ─┼─▶ worker thread, owner of its devices
//!   main thread ─── pause, save, restore, resume ──▶ the same ───────┘
//! ```
//!
//! Commands are answered, and the caller waits: a driver that has reset a device must not see it at work, and a machine
//! that is saved must stand still. The worker waits for no other thread of the process, so that this cannot lock up.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::thread::JoinHandle;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fd::OwnedFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Setting, State};
use crate::virtio::{Active, Device, DeviceError, Events, Interrupt, Saved};

/// Token of the wake eventfd; devices count from 0.
const WAKE: u64 = u64::MAX;
/// Set in the token of a queue's notifier; the rest is the queue's index.
const NOTIFIER: u32 = 1 << 31;

/// A thread that devices live on; see the module. Ends, with its devices, when this is dropped.
#[derive(Debug)]
pub struct Worker {
    commands: Option<Sender<Command>>,
    wake: EventFd,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Command {
    Activate { device: usize, active: Box<Active>, done: Done<()> },
    Deactivate { device: usize, done: Done<()> },
    Pause { done: Done<()> },
    Resume { done: Done<()> },
    Configure { device: usize, setting: Setting, done: Done<()> },
    Save { device: usize, done: SyncSender<Saved> },
    Restore { device: usize, state: State, active: Option<Box<Active>>, done: Done<()> },
}

type Done<T> = SyncSender<Result<T, DeviceError>>;

/// The worker is gone: it has ended with an error of the host, or panicked.
fn gone() -> DeviceError {
    DeviceError::Host { what: "the devices' thread has ended", source: io::ErrorKind::BrokenPipe.into() }
}

impl Worker {
    /// Starts a thread called `name` with `devices`, which are addressed by their index from now on. `prepare` runs first, on
    /// that thread: it takes from it what it does not need.
    ///
    /// # Errors
    /// The host has no descriptors or threads left, or `prepare` failed.
    pub fn spawn(
        name: &str,
        devices: Vec<Box<dyn Device>>,
        prepare: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wake = EventFd::new(EFD_NONBLOCK)?;
        epoll::add(&epoll, borrow(&wake), EventData::new_u64(WAKE), EventFlags::IN)?;
        let (commands, received) = mpsc::channel();
        let (ready, prepared) = mpsc::sync_channel(1);
        let devices = devices.into_iter().map(|device| Place { device, active: None }).collect();
        let own = Loop { devices, epoll, wake: wake.try_clone()?, commands: received, paused: false };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let result = prepare();
            let go_on = result.is_ok();
            let _ = ready.send(result);
            if go_on {
                own.run();
            }
        })?;
        prepared.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))?;
        Ok(Self { commands: Some(commands), wake, thread: Some(thread) })
    }

    /// The driver of `device` is ready.
    pub fn activate(&self, device: usize, active: Active) -> Result<(), DeviceError> {
        self.ask(|done| Command::Activate { device, active: Box::new(active), done })?
    }

    /// The driver has reset `device`.
    pub fn deactivate(&self, device: usize) -> Result<(), DeviceError> {
        self.ask(|done| Command::Deactivate { device, done })?
    }

    /// Pauses all devices. No vCPU may run.
    pub fn pause(&self) -> Result<(), DeviceError> {
        self.ask(|done| Command::Pause { done })?
    }

    /// Resumes all devices.
    pub fn resume(&self) -> Result<(), DeviceError> {
        self.ask(|done| Command::Resume { done })?
    }

    /// Changes something about `device`, paused or not: it holds when this returns.
    pub fn configure(&self, device: usize, setting: Setting) -> Result<(), DeviceError> {
        self.ask(|done| Command::Configure { device, setting, done })?
    }

    /// The state of the paused `device`.
    pub fn save(&self, device: usize) -> Result<Saved, DeviceError> {
        self.ask(|done| Command::Save { device, done })
    }

    /// Gives `device`, which is new, a saved state; it is paused then, as are all devices of the worker.
    pub fn restore(&self, device: usize, state: State, active: Option<Active>) -> Result<(), DeviceError> {
        self.ask(|done| Command::Restore { device, state, active: active.map(Box::new), done })?
    }

    fn ask<T>(&self, command: impl FnOnce(SyncSender<T>) -> Command) -> Result<T, DeviceError> {
        let (done, answer) = mpsc::sync_channel(1);
        let commands = self.commands.as_ref().ok_or_else(gone)?;
        commands.send(command(done)).map_err(|_| gone())?;
        // An eventfd that cannot take another signal is readable already.
        let _ = self.wake.write(1);
        answer.recv().map_err(|_| gone())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.commands = None;
        let _ = self.wake.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the thread owns.
struct Loop {
    devices: Vec<Place>,
    epoll: OwnedFd,
    wake: EventFd,
    commands: Receiver<Command>,
    paused: bool,
}

struct Place {
    device: Box<dyn Device>,
    /// What the device does not keep for the worker: there while it is active.
    active: Option<Notified>,
}

struct Notified {
    notifiers: Vec<Arc<EventFd>>,
    interrupt: Interrupt,
}

impl Loop {
    fn run(mut self) {
        let mut events = Vec::with_capacity(64);
        loop {
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                // Not with a valid epoll descriptor; whoever asks next learns that the thread is gone.
                Err(_) => return,
            }
            if events.iter().any(|event| event.data.u64() == WAKE) {
                let _ = self.wake.read();
                if self.obey().is_err() {
                    return;
                }
            }
            for event in &events {
                // A command may have paused the worker, and what is ready stays so.
                if self.paused || event.data.u64() == WAKE {
                    continue;
                }
                let (device, token) = ((event.data.u64() >> 32) as usize, event.data.u64() as u32);
                self.handle(device, token, event.flags);
            }
        }
    }

    /// Carries out the commands there are. While the worker is paused it waits for the next one here.
    fn obey(&mut self) -> Result<(), mpsc::RecvError> {
        loop {
            let command = if self.paused {
                self.commands.recv()?
            } else {
                match self.commands.try_recv() {
                    Ok(command) => command,
                    Err(mpsc::TryRecvError::Empty) => return Ok(()),
                    Err(mpsc::TryRecvError::Disconnected) => return Err(mpsc::RecvError),
                }
            };
            // Nobody waits for the answer when the asking thread has been ended.
            match command {
                Command::Activate { device, active, done } => {
                    let _ = done.send(self.activate(device, *active));
                }
                Command::Deactivate { device, done } => {
                    self.deactivate(device);
                    let _ = done.send(Ok(()));
                }
                Command::Configure { device, setting, done } => {
                    let _ = done.send(self.configure(device, setting));
                }
                Command::Pause { done } => {
                    self.paused = true;
                    let _ = done.send(self.devices.iter_mut().try_for_each(|place| place.device.pause()));
                }
                Command::Resume { done } => {
                    self.paused = false;
                    let _ = done.send(self.resume());
                }
                Command::Save { device, done } => {
                    let _ = done.send(self.devices[device].device.save());
                }
                Command::Restore { device, state, active, done } => {
                    self.paused = true;
                    let _ = done.send(self.restore(device, state, active.map(|active| *active)));
                }
            }
        }
    }

    fn handle(&mut self, device: usize, token: u32, flags: EventFlags) {
        let events = Events::new(&self.epoll, device as u32);
        let place = &mut self.devices[device];
        let Some(active) = &place.active else { return };
        let result = if token & NOTIFIER == 0 {
            place.device.ready(token, flags, &events)
        } else {
            let queue = (token & !NOTIFIER) as usize;
            // It counts how often it was written; nothing is there when the queue is looked at without a notification.
            let count = active.notifiers[queue].read().unwrap_or(0);
            active.interrupt.counters().notifications.fetch_add(count, Ordering::Relaxed);
            place.device.notified(queue, &events)
        };
        if result.is_err() {
            self.give_up(device);
        }
    }

    /// The driver has broken `device`: nothing is done until it resets it.
    fn give_up(&mut self, device: usize) {
        let interrupt = self.devices[device].active.as_ref().map(|active| active.interrupt.clone());
        self.deactivate(device);
        if let Some(interrupt) = interrupt {
            interrupt.needs_reset();
        }
    }

    fn activate(&mut self, device: usize, active: Active) -> Result<(), DeviceError> {
        self.watch(device, &active)?;
        let queues = active.queues.len();
        let events = Events::new(&self.epoll, device as u32);
        if let Err(error) = self.devices[device].device.activate(active, &events) {
            self.give_up(device);
            return Err(error);
        }
        self.look_at_queues(device, queues);
        Ok(())
    }

    fn deactivate(&mut self, device: usize) {
        let events = Events::new(&self.epoll, device as u32);
        let place = &mut self.devices[device];
        if let Some(active) = place.active.take() {
            for notifier in &active.notifiers {
                let _ = epoll::delete(&self.epoll, borrow(notifier));
            }
            place.device.deactivate(&events);
        }
    }

    fn configure(&mut self, device: usize, setting: Setting) -> Result<(), DeviceError> {
        let events = Events::new(&self.epoll, device as u32);
        let place = &mut self.devices[device];
        place.device.configure(setting, &events)?;
        let queues = place.active.as_ref().map_or(0, |active| active.notifiers.len());
        if !self.paused {
            self.look_at_queues(device, queues);
        }
        Ok(())
    }

    fn restore(&mut self, device: usize, state: State, active: Option<Active>) -> Result<(), DeviceError> {
        if let Some(active) = &active {
            self.watch(device, active)?;
        }
        let events = Events::new(&self.epoll, device as u32);
        self.devices[device].device.restore(state, active, &events)
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        for device in 0..self.devices.len() {
            let events = Events::new(&self.epoll, device as u32);
            let place = &mut self.devices[device];
            let Some(active) = &place.active else { continue };
            let queues = active.notifiers.len();
            place.device.resume(&events)?;
            self.look_at_queues(device, queues);
        }
        Ok(())
    }

    /// A notification may have been lost: between DRIVER_OK and the activation, or with the process that was saved.
    fn look_at_queues(&mut self, device: usize, queues: usize) {
        for queue in 0..queues {
            self.handle(device, NOTIFIER | queue as u32, EventFlags::IN);
        }
    }

    fn watch(&mut self, device: usize, active: &Active) -> Result<(), DeviceError> {
        let events = Events::new(&self.epoll, device as u32);
        for (queue, notifier) in active.notifiers.iter().enumerate() {
            events
                .add(borrow(notifier), NOTIFIER | queue as u32, EventFlags::IN)
                .map_err(|source| DeviceError::Host { what: "waiting for a queue", source })?;
        }
        let notifiers = active.notifiers.clone();
        self.devices[device].active = Some(Notified { notifiers, interrupt: active.interrupt.clone() });
        Ok(())
    }
}

/// An eventfd of `vmm_sys_util` knows only the raw kind of descriptor.
pub(crate) fn borrow(event: &EventFd) -> rustix::fd::BorrowedFd<'_> {
    use std::os::fd::AsRawFd as _;
    // SAFETY: the descriptor is open for as long as `event` is borrowed.
    unsafe { rustix::fd::BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
