//! All connections of the device: by token, by ports, and whose turn it is.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::connection::Connection;

/// The most connections there may be.
pub(super) const MAX_CONNECTIONS: usize = 1023;
/// Of these, so many are not for clients of published ports, who may be anybody.
pub(super) const RESERVED: usize = 128;
/// The most resets that wait for receive buffers. A driver that asks for more of them without taking any loses them.
pub(super) const MAX_RESETS: usize = 2 * MAX_CONNECTIONS;
/// Tokens of connections, and the host's ports of those that a client of the host has opened. Clear of the ports that
/// programs listen on, and of the worker's own tokens.
pub(super) const TOKENS: Range<u32> = 1 << 30..1 << 31;

/// The two ports of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pair {
    /// The port on the host.
    pub host: u32,
    /// The port in the guest.
    pub guest: u32,
}

/// A connection that the guest is to forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reset {
    /// Its ports.
    pub pair: Pair,
    /// The socket type, as the guest has named it: 1 for a stream.
    pub kind: u16,
}

/// The connections, each with its token.
#[derive(Debug)]
pub(super) struct Connections {
    all: BTreeMap<u32, Connection>,
    /// Of those that the guest knows, or is about to know.
    by_pair: BTreeMap<Pair, u32>,
    /// Who may have a packet for the guest, in order; nobody is in it twice.
    turns: VecDeque<u32>,
    resets: VecDeque<Reset>,
    next_token: u32,
}

impl Connections {
    pub(super) fn new() -> Self {
        Self {
            all: BTreeMap::new(),
            by_pair: BTreeMap::new(),
            turns: VecDeque::new(),
            resets: VecDeque::new(),
            next_token: TOKENS.start,
        }
    }

    /// Whether clients of published ports have to wait for others to go: the rest is for commands, and for the end of the machine.
    pub(super) fn is_full_for_ports(&self) -> bool {
        self.all.len() >= MAX_CONNECTIONS - RESERVED
    }

    pub(super) fn is_full(&self) -> bool {
        self.all.len() >= MAX_CONNECTIONS
    }

    /// A token that no connection has. The last one comes again only after 2^30 others.
    pub(super) fn token(&mut self) -> u32 {
        loop {
            let token = self.next_token;
            self.next_token = if token + 1 == TOKENS.end { TOKENS.start } else { token + 1 };
            if !self.all.contains_key(&token) {
                return token;
            }
        }
    }

    pub(super) fn next_token(&self) -> u32 {
        self.next_token
    }

    pub(super) fn insert(&mut self, token: u32, connection: Connection) {
        self.all.insert(token, connection);
    }

    /// From now on packets with these ports are for the connection.
    pub(super) fn name(&mut self, token: u32, pair: Pair) {
        self.by_pair.insert(pair, token);
    }

    /// The guest has forgotten the connection, which stays for what its client has not read yet.
    pub(super) fn forget_pair(&mut self, pair: Pair) {
        self.by_pair.remove(&pair);
    }

    pub(super) fn find(&self, pair: Pair) -> Option<u32> {
        self.by_pair.get(&pair).copied()
    }

    pub(super) fn get_mut(&mut self, token: u32) -> Option<&mut Connection> {
        self.all.get_mut(&token)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Connection)> {
        self.all.iter().map(|(&token, connection)| (token, connection))
    }

    pub(super) fn remove(&mut self, token: u32) -> Option<Connection> {
        let connection = self.all.remove(&token)?;
        if connection.queued {
            self.turns.retain(|&other| other != token);
        }
        if let Some(pair) = connection.pair()
            && self.by_pair.get(&pair) == Some(&token)
        {
            self.by_pair.remove(&pair);
        }
        Some(connection)
    }

    /// Gives the connection a turn if it may have a packet for the guest.
    pub(super) fn queue(&mut self, token: u32) {
        if let Some(connection) = self.all.get_mut(&token)
            && connection.wants_turn()
            && !std::mem::replace(&mut connection.queued, true)
        {
            self.turns.push_back(token);
        }
    }

    /// Whose turn it is.
    pub(super) fn turn(&mut self) -> Option<u32> {
        let token = self.turns.pop_front()?;
        if let Some(connection) = self.all.get_mut(&token) {
            connection.queued = false;
        }
        Some(token)
    }

    /// Whether there is anything for the guest, as far as is known without asking the sockets.
    pub(super) fn any_turn(&self) -> bool {
        !self.turns.is_empty() || !self.resets.is_empty()
    }

    /// Tells whether there is room for it.
    #[must_use]
    pub(super) fn push_reset(&mut self, reset: Reset) -> bool {
        let room = self.resets.len() < MAX_RESETS;
        if room {
            self.resets.push_back(reset);
        }
        room
    }

    pub(super) fn pop_reset(&mut self) -> Option<Reset> {
        self.resets.pop_front()
    }

    pub(super) fn resets(&self) -> impl Iterator<Item = Reset> {
        self.resets.iter().copied()
    }

    /// The resets of a saved device, and where its ports have come to.
    pub(super) fn restore(&mut self, next_token: u32, resets: Vec<Reset>) {
        self.next_token = next_token;
        self.resets = resets.into();
    }

    /// Closes all, and forgets what the guest was to be told.
    pub(super) fn clear(&mut self) {
        let next_token = self.next_token;
        *self = Self { next_token, ..Self::new() };
    }
}
