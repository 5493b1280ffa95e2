//! The device as a driver sees it, honest or not.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;

use rustix::event::epoll;
use rustix::fd::OwnedFd;
use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;

use super::*;
use crate::devices::driver::{Buffer, Driver, MEMORY};

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPP: u8 = VIRTIO_BLK_S_UNSUPP as u8;
const SECTORS: u64 = 64;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const NEXT: u16 = VRING_DESC_F_NEXT as u16;

struct Machine {
    block: Block,
    driver: Driver,
    epoll: OwnedFd,
    diff: File,
}

impl Machine {
    fn new() -> Self {
        Self::with(|driver| driver)
    }

    /// A disk whose sector N is full of the byte N.
    fn with(change: impl FnOnce(Driver) -> Driver) -> Self {
        let mut base = tempfile::tempfile().unwrap();
        for sector in 0..SECTORS {
            base.write_all(&[sector as u8; SECTOR as usize]).unwrap();
        }
        Self::over(base, change)
    }

    fn over(base: File, change: impl FnOnce(Driver) -> Driver) -> Self {
        let diff = tempfile::tempfile().unwrap();
        let mut block = Block::new(base, None, diff.try_clone().unwrap()).unwrap();
        let driver = change(Driver::new(&block.info()));
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        block.activate(driver.activate(), &Events::new(&epoll, 0)).unwrap();
        Self { block, driver, epoll, diff }
    }

    fn work(&mut self) -> Result<Vec<u32>, DeviceError> {
        self.block.notified(QUEUE, &Events::new(&self.epoll, 0))?;
        Ok(self.driver.taken(QUEUE))
    }

    /// One request: the status, the bytes that the driver is told of, and what was written before the status.
    fn ask(&mut self, kind: u32, sector: u64, out: &[u8], room: u32) -> (u8, u32, Vec<u8>) {
        let header = header(kind, sector);
        let mut buffers = vec![Buffer::Out(&header)];
        if !out.is_empty() {
            buffers.push(Buffer::Out(out));
        }
        buffers.push(Buffer::In(room));
        buffers.push(Buffer::In(1));
        let places = self.driver.offer(QUEUE, &buffers);
        let taken = self.work().unwrap();
        assert_eq!(taken.len(), 1);
        let data = self.driver.bytes(places[places.len() - 2], room as usize);
        (self.driver.bytes(places[places.len() - 1], 1)[0], taken[0], data)
    }

    fn sector(&mut self, sector: u64) -> Vec<u8> {
        let (status, len, data) = self.ask(VIRTIO_BLK_T_IN, sector, &[], SECTOR as u32);
        assert_eq!((status, len), (OK, SECTOR as u32 + 1));
        data
    }
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

fn segment(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
}

#[test]
fn the_configuration_is_what_the_driver_can_use() {
    let machine = Machine::new();
    let mut config = [0; 64];
    machine.block.config().read(0, &mut config);
    let word = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().unwrap());
    assert_eq!(u64::from_le_bytes(config[..8].try_into().unwrap()), SECTORS);
    assert_eq!([word(8), word(12), word(20)], [65536, 254, 4096]);
    assert_eq!([word(36), word(40), word(44), word(48), word(52)], [524_288, 1, 8, 524_288, 1]);
}

#[test]
fn what_is_written_is_read() {
    let mut machine = Machine::new();
    assert_eq!(machine.sector(9), [9; 512]);
    assert_eq!(machine.ask(VIRTIO_BLK_T_OUT, 9, &[0xee; 1024], 0), (OK, 1, vec![]));
    assert_eq!(machine.sector(8), [8; 512]);
    assert_eq!(machine.sector(9), [0xee; 512]);
    assert_eq!(machine.sector(10), [0xee; 512]);
    assert_eq!(machine.sector(11), [11; 512]);
    assert_eq!(machine.ask(VIRTIO_BLK_T_FLUSH, 0, &[], 0), (OK, 1, vec![]));
}

#[test]
fn discarded_and_zeroed_sectors_are_zero() {
    for (kind, flags) in
        [(VIRTIO_BLK_T_DISCARD, 0), (VIRTIO_BLK_T_WRITE_ZEROES, 0), (VIRTIO_BLK_T_WRITE_ZEROES, 1)]
    {
        let mut machine = Machine::new();
        assert_eq!(machine.ask(kind, 0, &segment(7, 10, flags), 0).0, OK);
        for sector in 0..SECTORS {
            let byte = if (7..17).contains(&sector) { 0 } else { sector as u8 };
            assert_eq!(machine.sector(sector), [byte; 512], "{sector}");
        }
    }
}

#[test]
fn the_identity_is_text_and_zeros() {
    let mut machine = Machine::new();
    let (status, len, id) = machine.ask(VIRTIO_BLK_T_GET_ID, 0, &[], 20);
    assert_eq!((status, len, &id[..]), (OK, 21, &b"voidrun\0\0\0\0\0\0\0\0\0\0\0\0\0"[..]));
    // Only what there is room for.
    assert_eq!(machine.ask(VIRTIO_BLK_T_GET_ID, 0, &[], 4), (OK, 5, b"void".to_vec()));
    assert_eq!(machine.ask(VIRTIO_BLK_T_GET_ID, 0, &[], 30).1, 20);
}

#[test]
fn how_the_bytes_are_spread_means_nothing() {
    let mut machine = Machine::new();
    let header = header(VIRTIO_BLK_T_IN, 3);
    let mut buffers: Vec<_> = header.iter().map(std::slice::from_ref).map(Buffer::Out).collect();
    buffers.extend([Buffer::In(1), Buffer::In(0), Buffer::In(700), Buffer::In(324)]);
    for indirect in [false, true] {
        let places = if indirect {
            machine.driver.offer_indirect(QUEUE, &buffers)
        } else {
            machine.driver.offer(QUEUE, &buffers)
        };
        assert_eq!(machine.work().unwrap(), [1025]);
        assert_eq!(machine.driver.bytes(places[16], 1), [3]);
        let data = machine.driver.bytes(places[18], 700);
        assert!(data[..511].iter().all(|&byte| byte == 3) && data[511..].iter().all(|&byte| byte == 4));
        let rest = machine.driver.bytes(places[19], 324);
        assert!(rest[..323].iter().all(|&byte| byte == 4));
        assert_eq!(rest[323], OK);
    }
}

#[test]
fn what_is_not_on_the_disk_is_an_error() {
    let zero_all = segment(0, MAX_ZERO_SECTORS + 1, 0);
    let past = segment(SECTORS - 1, 2, 0);
    let wraps = segment(u64::MAX, 1, 0);
    let cases: &[(u32, u64, &[u8], u32, u8)] = &[
        (VIRTIO_BLK_T_IN, SECTORS, &[], 512, IOERR),
        (VIRTIO_BLK_T_IN, SECTORS - 1, &[], 1024, IOERR),
        (VIRTIO_BLK_T_IN, u64::MAX / 512, &[], 512, IOERR),
        (VIRTIO_BLK_T_IN, u64::MAX, &[], 512, IOERR),
        (VIRTIO_BLK_T_IN, 0, &[], 511, IOERR),
        (VIRTIO_BLK_T_IN, 0, &[1], 512, IOERR),
        (VIRTIO_BLK_T_OUT, SECTORS, &[1; 512], 0, IOERR),
        (VIRTIO_BLK_T_OUT, u64::MAX, &[1; 512], 0, IOERR),
        (VIRTIO_BLK_T_OUT, 0, &[1; 513], 0, IOERR),
        (VIRTIO_BLK_T_OUT, 0, &[1; 512], 1, IOERR),
        (VIRTIO_BLK_T_DISCARD, 0, &zero_all, 0, IOERR),
        (VIRTIO_BLK_T_DISCARD, 0, &past, 0, IOERR),
        (VIRTIO_BLK_T_DISCARD, 0, &wraps, 0, IOERR),
        (VIRTIO_BLK_T_DISCARD, 0, &past[..15], 0, IOERR),
        (VIRTIO_BLK_T_WRITE_ZEROES, 0, &[0; 32], 0, IOERR),
        (11, 0, &segment(0, 1, 1), 0, UNSUPP),
        (VIRTIO_BLK_T_WRITE_ZEROES, 0, &segment(0, 1, 2), 0, UNSUPP),
        (2, 0, &[], 0, UNSUPP),
        (u32::MAX, 0, &[], 512, UNSUPP),
    ];
    let mut machine = Machine::new();
    for &(kind, sector, out, room, expected) in cases {
        let (status, len, data) = machine.ask(kind, sector, out, room);
        assert_eq!((status, len), (expected, u32::from(room == 0)), "{kind} {sector} {} {room}", out.len());
        assert!(data.iter().all(|&byte| byte == 0xa5), "an error wrote data");
    }
    // Nothing is read or written: good, and nothing happens.
    assert_eq!(machine.ask(VIRTIO_BLK_T_IN, SECTORS, &[], 0).0, OK);
    assert_eq!(machine.ask(VIRTIO_BLK_T_DISCARD, 0, &segment(SECTORS, 0, 0), 0).0, OK);
    for sector in 0..SECTORS {
        assert_eq!(machine.sector(sector), [sector as u8; 512]);
    }
}

#[test]
fn a_request_that_makes_no_sense_is_answered_where_there_is_a_status() {
    let mut machine = Machine::new();
    let head = machine.driver.place(Buffer::Out(&header(VIRTIO_BLK_T_IN, 0)));
    let cases: [&[(u64, u32, u16)]; 6] = [
        // No header; a short one.
        &[],
        &[(head.addr().0, 15, 0)],
        // Data that is not in memory, begins in it, or wraps around.
        &[(head.addr().0, 16, 0), (MEMORY, 512, WRITE)],
        &[(head.addr().0, 16, 0), (MEMORY - 511, 512, WRITE)],
        &[(head.addr().0, 16, 0), (u64::MAX - 100, 512, WRITE)],
        // The header after data.
        &[(head.addr().0 + 32, 512, WRITE), (head.addr().0, 16, 0)],
    ];
    for case in cases {
        let status = machine.driver.place(Buffer::In(1));
        // Every chain before has filled four slots of the table.
        let first = machine.block.active.as_ref().unwrap().save()[0].next_avail * 4;
        let mut chain = Vec::new();
        for (index, &(address, len, flags)) in case.iter().enumerate() {
            chain.push(Descriptor::new(address, len, flags | NEXT, first + index as u16 + 1));
        }
        chain.push(status);
        chain.resize(4, Descriptor::new(0, 0, 0, 0));
        machine.driver.offer_raw(QUEUE, &chain);
        let image = machine.driver.bytes(head.addr(), 1024);
        assert_eq!(machine.work().unwrap().len(), 1, "{case:?}");
        assert_eq!(machine.driver.bytes(status.addr(), 1), [IOERR], "{case:?}");
        let mut expected = image;
        let at = (status.addr().0 - head.addr().0) as usize;
        if at < expected.len() {
            expected[at] = IOERR;
        }
        assert_eq!(machine.driver.bytes(head.addr(), 1024), expected, "{case:?}");
    }
}

#[test]
fn a_chain_that_cannot_be_answered_ends_the_device() {
    type Break = fn(&mut Driver);
    let cases: &[(&str, Break)] = &[
        ("a loop", |driver| driver.offer_raw(QUEUE, &[Descriptor::new(0x40000, 16, NEXT, 0)])),
        ("a loop of what could be a status", |driver| {
            driver.offer_raw(QUEUE, &[Descriptor::new(0x40000, 1, NEXT | WRITE, 0)]);
        }),
        ("a next one out of the table", |driver| {
            driver.offer_raw(QUEUE, &[Descriptor::new(0x40000, 16, NEXT | WRITE, 256)]);
        }),
        ("a head out of the table", |driver| driver.offer_head(QUEUE, 256)),
        ("a status that is not writable", |driver| {
            driver.offer_raw(QUEUE, &[Descriptor::new(0x40000, 16, 0, 0)]);
        }),
        ("a status of no length", |driver| driver.offer_raw(QUEUE, &[Descriptor::new(0x40000, 0, WRITE, 0)])),
        ("a status out of memory", |driver| driver.offer_raw(QUEUE, &[Descriptor::new(MEMORY, 1, WRITE, 0)])),
        ("a status that wraps around", |driver| {
            driver.offer_raw(QUEUE, &[Descriptor::new(u64::MAX, 3, WRITE, 0)]);
        }),
        ("an indirect table in an indirect table", |driver| {
            let inner = driver.table(&[Descriptor::new(0x40000, 1, WRITE, 0)]);
            let outer = driver.table(&[inner]);
            driver.offer_raw(QUEUE, &[outer]);
        }),
        ("an indirect table that is cut", |driver| {
            let table = driver.table_of_bytes(&[Descriptor::new(0x40000, 1, WRITE, 0)], 15);
            driver.offer_raw(QUEUE, &[table]);
        }),
        ("an empty indirect table", |driver| {
            let table = driver.table_of_bytes(&[Descriptor::new(0x40000, 1, WRITE, 0)], 0);
            driver.offer_raw(QUEUE, &[table]);
        }),
        ("more descriptors than the queue has", |driver| {
            let many: Vec<_> =
                (0..300).map(|index| Descriptor::new(0x40000, 1, NEXT | WRITE, index as u16 + 1)).collect();
            let table = driver.table(&many);
            driver.offer_raw(QUEUE, &[table]);
        }),
        ("4 GiB", |driver| {
            let many = [
                Descriptor::new(0x40000, u32::MAX, NEXT, 1),
                Descriptor::new(0x40000, u32::MAX, NEXT, 2),
                Descriptor::new(0x40000, 1, WRITE, 0),
            ];
            let table = driver.table(&many);
            driver.offer_raw(QUEUE, &[table]);
        }),
    ];
    for (what, breaks) in cases {
        let mut machine = Machine::new();
        breaks(&mut machine.driver);
        assert!(machine.work().is_err(), "{what}");
        assert!(machine.driver.taken(QUEUE).is_empty(), "{what}");
    }
}

#[test]
fn a_queue_full_of_requests_is_done_at_once() {
    let mut machine = Machine::new();
    for sector in 0..SECTORS {
        machine.driver.offer(QUEUE, &[Buffer::Out(&header(VIRTIO_BLK_T_IN, sector)), Buffer::In(513)]);
    }
    assert_eq!(machine.work().unwrap(), [513; SECTORS as usize]);
    let interrupts = &machine.driver.interrupt.counters().interrupts;
    assert_eq!(interrupts.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[test]
fn a_driver_that_cannot_flush_gets_what_it_writes_flushed() {
    let mut machine = Machine::with(|driver| driver.without(VIRTIO_BLK_F_FLUSH));
    assert_eq!(machine.ask(VIRTIO_BLK_T_OUT, 0, &[1; 4096], 0).0, OK);
    assert!(!machine.block.disk.unsynced);
    let mut machine = Machine::new();
    assert_eq!(machine.ask(VIRTIO_BLK_T_OUT, 0, &[1; 4096], 0).0, OK);
    assert!(machine.block.disk.unsynced);
    machine.block.pause().unwrap();
    assert!(!machine.block.disk.unsynced);
}

#[test]
fn an_error_of_the_host_is_told_and_nothing_is_lost() {
    let mut machine = Machine::new();
    assert_eq!(machine.ask(VIRTIO_BLK_T_OUT, 0, &[1; 4096], 0).0, OK);
    // Behind the device's back the data of granule 0 is cut off.
    let len = machine.diff.metadata().unwrap().len();
    machine.diff.set_len(len - SECTORS * SECTOR).unwrap();
    let (status, ..) = machine.ask(VIRTIO_BLK_T_IN, 0, &[], 512);
    assert_eq!(status, IOERR);
    assert_eq!(machine.sector(8), [8; 512]);
    machine.diff.write_all_at(&[2; 4096], len - SECTORS * SECTOR).unwrap();
    assert_eq!(machine.sector(0), [2; 512]);
}

#[test]
fn a_state_of_another_disk_is_refused() {
    let mut machine = Machine::new();
    let state = machine.block.state();
    for other in [
        BlockState { size: state.size + 4096, ..state.clone() },
        BlockState { base_mark: state.base_mark ^ 1, ..state },
    ] {
        let error = machine.block.restore(State::Block(other), None, &Events::new(&machine.epoll, 0));
        assert!(matches!(error, Err(DeviceError::State { device: "block", .. })));
    }
}

#[test]
fn what_one_request_does_is_bounded() {
    let base = tempfile::tempfile().unwrap();
    base.set_len(1 << 30).unwrap();
    let mut machine = Machine::over(base, |driver| driver);
    for (count, expected) in [(MAX_ZERO_SECTORS, OK), (MAX_ZERO_SECTORS + 1, IOERR)] {
        assert_eq!(machine.ask(VIRTIO_BLK_T_DISCARD, 0, &segment(0, count, 0), 0).0, expected, "{count}");
    }
    // All segments are the same piece of memory; the first one is a sector longer the second time.
    for (more, expected) in [(0, OK), (SECTOR as u32, IOERR)] {
        let driver = &mut machine.driver;
        let (head, status) =
            (driver.place(Buffer::Out(&header(VIRTIO_BLK_T_IN, 0))), driver.place(Buffer::In(1)));
        let data = driver.place(Buffer::In(SIZE_MAX + SECTOR as u32)).addr().0;
        let mut chain = vec![Descriptor::new(head.addr().0, 16, NEXT, 1)];
        for index in 0..SEG_MAX {
            let len = if index == 0 { SIZE_MAX + more } else { SIZE_MAX };
            chain.push(Descriptor::new(data, len, NEXT | WRITE, index as u16 + 2));
        }
        chain.push(status);
        let table = driver.table(&chain);
        driver.offer_raw(QUEUE, &[table]);
        let expected_len = if expected == OK { MAX_DATA as u32 + 1 } else { 0 };
        assert_eq!(machine.work().unwrap(), [expected_len]);
        assert_eq!(machine.driver.bytes(status.addr(), 1), [expected]);
    }
}
