//! A guest's network without root, tap or firewall rules: what a guest sends as Ethernet frames becomes what sockets of this process
//! send, and back. Nothing here knows KVM or virtio.
//!
//! ```text
//!   guest ══ frames ══▶ Engine::receive ─▶ policy ─▶ a flow: TCP, UDP, ICMP echo ──▶ sockets of the host
//!   guest ◀══ frames ═══════════ Wire ◀── Engine::run ◀── epoll ◀───────────────────┘
//!                                          └─ the gateway: ARP, neighbour discovery, DNS
//! ```
//!
//! One thread owns an [`engine::Engine`] and all that is in it: no locks. It never waits: it says by [`engine::Engine::fd`] when there is
//! something to do.

pub mod address;
pub mod dns;
pub mod engine;
mod name;
pub mod peek;
pub mod policy;
pub mod wire;
