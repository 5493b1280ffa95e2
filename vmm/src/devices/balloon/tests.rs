//! Reports as a driver makes them, honest or not.

use std::ops::Range;

use proptest::prelude::*;
use rustix::event::epoll;
use rustix::fd::OwnedFd;
use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::devices::driver::{Buffer, Driver};

const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const MIB: u64 = 1 << 20;
const HUGE: u64 = 2 * MIB;
/// In MiB. The first two are neighbours; queues and buffers are in the first of them.
const REGIONS: [Range<u64>; 3] = [0..8, 8..14, 16..20];

struct Machine {
    balloon: Balloon,
    driver: Driver,
    epoll: OwnedFd,
}

impl Machine {
    /// RAM of which no byte is zero from 2 MiB on.
    fn new() -> Self {
        let mut balloon = Balloon::new();
        let mut driver = Driver::new(&balloon.info());
        let regions =
            REGIONS.map(|mib| (GuestAddress(mib.start * MIB), ((mib.end - mib.start) * MIB) as usize));
        driver.memory = Arc::new(GuestMemoryMmap::from_ranges(&regions).unwrap());
        for page in pages() {
            driver.memory.write_slice(&vec![7; HUGE as usize], GuestAddress(page * HUGE)).unwrap();
        }
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        balloon.activate(driver.activate(), &Events::new(&epoll, 0)).unwrap();
        Self { balloon, driver, epoll }
    }

    /// What the driver is told of the chains in a queue.
    fn work(&mut self, queue: usize) -> Vec<u32> {
        self.balloon.notified(queue, &Events::new(&self.epoll, 0)).unwrap();
        self.driver.taken(queue)
    }

    /// The huge pages that have been given back, each as a whole or not at all.
    fn given(&self) -> Vec<u64> {
        let is_given = |page: &u64| {
            let bytes = self.driver.bytes(GuestAddress(page * HUGE), HUGE as usize);
            assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a part of the huge page {page}");
            bytes[0] == 0
        };
        pages().filter(is_given).collect()
    }
}

/// The huge pages that a driver may give back.
fn pages() -> impl Iterator<Item = u64> {
    (1..10).filter(|page| *page != 7)
}

fn range(address: u64, len: u64) -> Descriptor {
    Descriptor::new(address, len as u32, WRITE, 0)
}

/// As one chain in a table of its own.
fn chain(ranges: &[Descriptor]) -> Vec<Descriptor> {
    let (last, others) = ranges.split_last().unwrap();
    let next = (1..).zip(others);
    let next = next.map(|(next, it)| Descriptor::new(it.addr().0, it.len(), it.flags() | NEXT, next));
    next.chain([*last]).collect()
}

#[test]
fn whole_huge_pages_are_given_back() {
    let mut machine = Machine::new();
    let report = [range(2 * MIB, HUGE), range(4 * MIB + 4096, 4 * MIB), range(9 * MIB, 5 * MIB)];
    machine.driver.offer_raw(REPORTING, &chain(&report));
    machine.driver.offer_raw(REPORTING, &[range(16 * MIB, 4 * MIB)]);
    assert_eq!(machine.work(REPORTING), [0, 0]);
    assert_eq!(machine.given(), [1, 3, 5, 6, 8, 9]);
    // They are the guest's again when it uses them, and can be given back again.
    for _ in 0..2 {
        machine.driver.memory.write_slice(&vec![7; HUGE as usize], GuestAddress(HUGE)).unwrap();
        assert_eq!(machine.given(), [3, 5, 6, 8, 9]);
        machine.driver.offer_raw(REPORTING, &[range(HUGE, HUGE)]);
        assert_eq!(machine.work(REPORTING), [0]);
        assert_eq!(machine.given(), [1, 3, 5, 6, 8, 9]);
    }
}

#[test]
fn everything_else_stays() {
    let mut machine = Machine::new();
    let reports = [
        range(4 * MIB, 0),
        range(4 * MIB + 1, HUGE),
        range(4 * MIB, HUGE - 1),
        // The device may only read it.
        Descriptor::new(4 * MIB, HUGE as u32, 0, 0),
        // Over the end of a region: into the next one, into the hole, out of the RAM.
        range(6 * MIB, 4 * MIB),
        range(12 * MIB, 4 * MIB),
        range(18 * MIB, 4 * MIB),
        range(4 * MIB, u32::MAX.into()),
        // In none.
        range(14 * MIB, HUGE),
        range(20 * MIB, HUGE),
        range(u64::MAX, HUGE),
        range(u64::MAX - HUGE + 1, HUGE),
        range(u64::MAX - 2 * HUGE, u32::MAX.into()),
    ];
    for report in reports {
        machine.driver.offer_raw(REPORTING, &[report]);
        assert_eq!(machine.work(REPORTING), [0], "{report:?}");
        assert!(machine.given().is_empty(), "{report:?}");
    }
}

#[test]
fn no_more_ranges_than_a_driver_has() {
    let mut machine = Machine::new();
    let mut report = vec![range(4 * MIB, HUGE); RANGES.into()];
    report.push(range(10 * MIB, HUGE));
    let table = machine.driver.table(&chain(&report));
    machine.driver.offer_raw(REPORTING, &[table]);
    // A chain without an end.
    let slot = 1;
    machine.driver.offer_raw(REPORTING, &[Descriptor::new(12 * MIB, HUGE as u32, WRITE | NEXT, slot)]);
    assert_eq!(machine.work(REPORTING), [0, 0]);
    assert_eq!(machine.given(), [2, 6]);
}

/// Nobody has asked for pages: what a driver gives stays as it is, and what it takes it has.
#[test]
fn nothing_is_inflated() {
    let mut machine = Machine::new();
    let numbers: Vec<u8> = (512_u32..5120).flat_map(u32::to_le_bytes).collect();
    for queue in [0, 1] {
        machine.driver.offer(queue, &[Buffer::Out(&numbers)]);
        machine.driver.offer(queue, &[Buffer::In(4096), Buffer::In(1)]);
        machine.driver.offer_raw(queue, &[Descriptor::new(u64::MAX, u32::MAX, 0, 0)]);
        assert_eq!(machine.work(queue), [0, 0, 0]);
    }
    assert!(machine.given().is_empty());
    let config = machine.balloon.config();
    config.write_from_driver(4, &[1; 4]);
    let mut bytes = [1; 12];
    config.read(0, &mut bytes);
    assert_eq!(bytes, [0; 12]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn only_what_is_reported(
        ranges in prop::collection::vec((2_u64..24, -1_i64..2, 0_u64..8, -1_i64..2, any::<bool>()), 1..6),
    ) {
        let mut machine = Machine::new();
        let near = |mib: u64, beside: i64| (mib * MIB).saturating_add_signed(beside);
        let (mut report, mut given) = (Vec::new(), Vec::new());
        for (start, before, len, more, writable) in ranges {
            let (start, len) = (near(start, before), near(len, more));
            report.push(Descriptor::new(start, len as u32, if writable { WRITE } else { 0 }, 0));
            let whole = start.div_ceil(HUGE)..(start + len) / HUGE;
            let is_within = |mib: &Range<u64>| mib.start * MIB <= whole.start * HUGE && whole.end * HUGE <= mib.end * MIB;
            if writable && REGIONS.iter().any(is_within) {
                given.extend(whole);
            }
        }
        machine.driver.offer_raw(REPORTING, &chain(&report));
        prop_assert_eq!(machine.work(REPORTING), [0]);
        given.sort_unstable();
        given.dedup();
        prop_assert_eq!(machine.given(), given);
    }
}
