//! The contract of [`Device`](crate::virtio::Device), kept by every device: one test over all of them, on the worker that
//! they live on.
//!
//! A device adds itself as a [`Subject`] and a test of one line.

use std::io::Write as _;
use std::os::unix::net::UnixStream;

use rustix::net::{AddressFamily, SocketType};

use super::driver::{Buffer, Driver};
use super::{Balloon, Block, Net, Rng, Vsock, Worker};
use crate::virtio::{Device, Saved};

/// A device as this test sees it.
struct Subject {
    /// A new device; those after the first stand for the one in the process that restores.
    new: Box<dyn FnMut() -> Box<dyn Device>>,
    /// A queue whose buffers the device answers at once.
    queue: usize,
    /// A chain that it answers.
    request: Vec<Buffer<'static>>,
    /// Whether `request` is answered rightly by so many bytes, with these in the first buffer that is written.
    right: fn(u32, &[u8]) -> bool,
}

#[test]
fn rng() {
    keeps_the_contract(Subject {
        new: Box::new(|| Box::new(Rng::new())),
        queue: 0,
        request: vec![Buffer::In(64)],
        right: |len, bytes| len == 64 && bytes.iter().any(|&byte| byte != 0xa5),
    });
}

#[test]
fn balloon() {
    keeps_the_contract(Subject {
        new: Box::new(|| Box::new(Balloon::new())),
        queue: 2,
        // A report of less than a huge page: it is taken, and nothing happens.
        request: vec![Buffer::In(4096)],
        right: |len, bytes| len == 0 && bytes.iter().all(|&byte| byte == 0xa5),
    });
}

#[test]
fn block() {
    let mut base = tempfile::tempfile().unwrap();
    base.write_all(&[7; 8192]).unwrap();
    let diff = tempfile::tempfile().unwrap();
    let new = move || -> Box<dyn Device> {
        Box::new(Block::new(base.try_clone().unwrap(), None, diff.try_clone().unwrap()).unwrap())
    };
    keeps_the_contract(Subject {
        new: Box::new(new),
        queue: 0,
        // VIRTIO_BLK_T_IN of 1024 bytes at sector 0.
        request: vec![Buffer::Out(&[0; 16]), Buffer::In(1024), Buffer::In(1)],
        right: |len, bytes| len == 1025 && bytes.iter().all(|&byte| byte == 7),
    });
}

#[test]
fn vsock() {
    let new = || -> Box<dyn Device> {
        // Nobody connects to a socket without a name.
        let listener = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        let (_, ready) = UnixStream::pair().unwrap();
        Box::new(Vsock::new(3, listener.into(), ready).unwrap())
    };
    keeps_the_contract(Subject {
        new: Box::new(new),
        queue: 1,
        // A packet of nobody: it is taken, and nothing is written to what a packet to send has no use for.
        request: vec![Buffer::Out(&[0; 44]), Buffer::In(1)],
        right: |len, bytes| len == 0 && bytes == [0xa5],
    });
}

#[test]
fn net() {
    let new = || -> Box<dyn Device> {
        let journal = super::net::Denials::default().journal();
        Box::new(Net::new(::net::engine::Engine::new(::net::engine::Config::default(), journal).unwrap()))
    };
    keeps_the_contract(Subject {
        new: Box::new(new),
        queue: 1,
        // A frame of no protocol: it is taken, and nothing is written to what a frame to send has no use for.
        request: vec![Buffer::Out(&[0; 72]), Buffer::In(1)],
        right: |len, bytes| len == 0 && bytes == [0xa5],
    });
}

fn keeps_the_contract(mut subject: Subject) {
    let device = (subject.new)();
    let info = device.info();
    assert!(info.queues.iter().all(|size| size.is_power_of_two()), "{}", info.name);
    let mut driver = Driver::new(&info);
    let worker = spawn(device);

    // Not active: nothing of its queues is saved, and nothing is done with them.
    worker.pause().unwrap();
    assert_eq!(worker.save(0).unwrap().queues, None);
    worker.resume().unwrap();
    let before = driver.offer(subject.queue, &subject.request);
    driver.notify(subject.queue);
    barrier(&worker);
    assert!(driver.taken(subject.queue).is_empty());

    // What was made available before DRIVER_OK is seen, and so is what comes later.
    worker.activate(0, driver.activate()).unwrap();
    let lengths = driver.wait(subject.queue);
    subject.check(&driver, &before, &lengths);
    let work = subject.offer(&mut driver);
    driver.notify(subject.queue);
    let lengths = driver.wait(subject.queue);
    subject.check(&driver, &work, &lengths);

    // Paused: it stands still, and saves the same again and again.
    worker.pause().unwrap();
    let saved = worker.save(0).unwrap();
    let while_paused = subject.offer(&mut driver);
    let image = driver.image();
    driver.notify(subject.queue);
    barrier_while_paused(&worker);
    assert_eq!(worker.save(0).unwrap(), saved);
    assert!(driver.image() == image, "{} touched memory while it was paused", info.name);
    let json = serde_json::to_string(&saved).unwrap();
    assert_eq!(serde_json::from_str::<Saved>(&json).unwrap(), saved);
    drop(worker);
    assert!(driver.image() == image, "{} touched memory when it was dropped", info.name);

    // Another process, with the same memory: the notification is lost with the first one.
    let _ = driver.notifiers[subject.queue].read();
    let restored = spawn((subject.new)());
    let queues = saved.queues.clone().unwrap();
    restored.restore(0, saved.device.clone(), Some(driver.restore(&queues))).unwrap();
    assert_eq!(restored.save(0).unwrap(), saved);
    assert!(driver.image() == image, "{} touched memory when it was restored", info.name);
    restored.resume().unwrap();
    let lengths = driver.wait(subject.queue);
    subject.check(&driver, &while_paused, &lengths);
    let work = subject.offer(&mut driver);
    driver.notify(subject.queue);
    let lengths = driver.wait(subject.queue);
    subject.check(&driver, &work, &lengths);

    // Reset by the driver: its memory is its own again.
    restored.deactivate(0).unwrap();
    subject.offer(&mut driver);
    let image = driver.image();
    driver.notify(subject.queue);
    barrier(&restored);
    assert!(driver.image() == image, "{} touched memory after a reset", info.name);
    restored.pause().unwrap();
    assert_eq!(restored.save(0).unwrap().queues, None, "{} keeps queues after a reset", info.name);
    restored.resume().unwrap();

    // And it can begin again, with another memory.
    let mut driver = Driver::new(&info);
    restored.activate(0, driver.activate()).unwrap();
    let work = subject.offer(&mut driver);
    driver.notify(subject.queue);
    let lengths = driver.wait(subject.queue);
    subject.check(&driver, &work, &lengths);

    // A state of another device is refused.
    let other = if info.name == "rng" {
        super::State::Block(super::BlockState { size: 0, base_mark: 0 })
    } else {
        super::State::Rng(super::RngState {})
    };
    assert!(spawn((subject.new)()).restore(0, other, None).is_err());
}

impl Subject {
    fn offer(&self, driver: &mut Driver) -> Vec<vm_memory::GuestAddress> {
        driver.offer(self.queue, &self.request)
    }

    fn check(&self, driver: &Driver, places: &[vm_memory::GuestAddress], lengths: &[u32]) {
        let (place, len) = places
            .iter()
            .zip(&self.request)
            .find_map(|(place, buffer)| match buffer {
                Buffer::In(len) => Some((*place, *len as usize)),
                Buffer::Out(_) => None,
            })
            .unwrap();
        let bytes = driver.bytes(place, len);
        assert!(lengths.len() == 1 && (self.right)(lengths[0], &bytes), "{lengths:?}, {bytes:x?}");
    }
}

fn spawn(device: Box<dyn Device>) -> Worker {
    Worker::spawn("contract", vec![device], || Ok(())).unwrap()
}

/// Returns when the worker has seen every notification that was made before.
fn barrier(worker: &Worker) {
    // The command may be taken before the notification that came in with it, but the second one is not.
    worker.pause().unwrap();
    worker.resume().unwrap();
    worker.pause().unwrap();
    worker.resume().unwrap();
}

/// The same, for a worker that is paused: it answers, and what it does not do now it will not do later.
fn barrier_while_paused(worker: &Worker) {
    worker.pause().unwrap();
}
