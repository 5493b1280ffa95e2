//! Which names have led a guest to which address.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// The most pairs of a name and an address.
const MAX_PINS: usize = 4096;
/// The most names of one address: each flow to it is held against all of them.
const MAX_NAMES: usize = 32;
/// The shortest time. Programs look a name up and connect some time later, or keep what they have found for longer than they should.
const MIN_TTL: Duration = Duration::from_mins(5);
/// The longest.
const MAX_TTL: Duration = Duration::from_hours(24);

/// Names by address. Only the name that was asked for stands here, not those that it is an alias of: whoever owns an alias says what it
/// is an alias of, and could give any address to a name that is not theirs.
#[derive(Debug, Default)]
pub(super) struct Pins {
    expiry: BTreeMap<(IpAddr, String), Instant>,
}

impl Pins {
    /// `name` leads to `address` for `ttl` seconds.
    pub(super) fn add(&mut self, now: Instant, address: IpAddr, name: &str, ttl: u32) {
        let expires = now + Duration::from_secs(ttl.into()).clamp(MIN_TTL, MAX_TTL);
        let key = (address, name.to_owned());
        if let Some(known) = self.expiry.get_mut(&key) {
            *known = expires.max(*known);
            return;
        }
        if self.of(address).count() >= MAX_NAMES
            && let Some((name, _)) = self.of(address).min_by_key(|(_, expires)| *expires)
        {
            let first = (address, name.to_owned());
            self.expiry.remove(&first);
        }
        if self.expiry.len() >= MAX_PINS {
            self.shrink(now);
        }
        self.expiry.insert(key, expires);
    }

    /// The names that lead to `address`.
    pub(super) fn names(&self, now: Instant, address: IpAddr) -> impl Iterator<Item = &str> {
        self.of(address).filter(move |(_, expires)| *expires > now).map(|(name, _)| name)
    }

    fn of(&self, address: IpAddr) -> impl Iterator<Item = (&str, Instant)> {
        self.expiry
            .range((address, String::new())..)
            .take_while(move |((other, _), _)| *other == address)
            .map(|((_, name), expires)| (name.as_str(), *expires))
    }

    /// Drops what has expired, and where that is not enough, the quarter that expires first: a quarter, so that the search for it is
    /// not made for each name.
    fn shrink(&mut self, now: Instant) {
        self.expiry.retain(|_, expires| *expires > now);
        if self.expiry.len() < MAX_PINS {
            return;
        }
        let mut times: Vec<Instant> = self.expiry.values().copied().collect();
        times.sort_unstable();
        let (limit, mut left) = (times[MAX_PINS / 4], MAX_PINS / 4);
        self.expiry.retain(|_, expires| {
            let drop = *expires <= limit && left > 0;
            left -= usize::from(drop);
            !drop
        });
    }
}
