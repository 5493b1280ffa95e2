//! What the policy has to say of a flow after it has begun.

use super::super::Core;
use super::super::is_gateway;
use super::super::packet::{Packet, Unreachable};
use super::Tcp;
use super::flow::{Flow, Key, Peer, Stage};
use crate::peek::{MAX_PEEK, Peek, server_name};
use crate::policy::{Destination, Protocol, Verdict};

/// The rule by which ports of the gateway are denied.
pub(super) const HOST_PORT: &str = "hostPorts: not this port";

impl Tcp {
    /// Ends the flows that the policy does not allow any more.
    pub(in super::super) fn police(&mut self, core: &mut Core) {
        let slots: Vec<usize> = self.flows.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            let flow = &mut self.flows[slot];
            let Some(rule) = forbids(core, flow) else { continue };
            let name = flow.server_name.clone().or_else(|| flow.names.first().cloned());
            core.deny("tcp", flow.key.destination(), name, rule);
            self.abort(core, slot);
        }
    }

    /// Ends a flow at both ends.
    fn abort(&mut self, core: &mut Core, slot: usize) {
        let flow = &mut self.flows[slot];
        if let Stage::Connecting { syn } = &flow.stage {
            let syn = syn.clone();
            flow.reset_host();
            self.remove(slot);
            if let Some(packet) = Packet::parse(&syn) {
                core.unreachable(&packet, Unreachable::Prohibited);
            }
        } else {
            flow.abort();
            self.make_ready(slot);
        }
    }

    /// Looks for the server's name in what the guest has sent.
    pub(super) fn name(&mut self, core: &mut Core, slot: usize) {
        let flow = &mut self.flows[slot];
        let (key, own, ended) = (flow.key, flow.own, flow.guest_ended);
        let Some(guest) = &mut flow.guest else { return };
        let socket = guest.socket();
        let whole = socket.recv_queue() >= MAX_PEEK.min(socket.recv_capacity());
        let Ok(first) = socket.peek(MAX_PEEK) else { return };
        if first.is_empty() && !ended {
            return;
        }
        let name = match server_name(first) {
            Peek::Name(name) => Some(name),
            Peek::Incomplete if !whole && !ended => return,
            Peek::Incomplete | Peek::None => None,
        };
        let unnamed = core.policy.decide_server_name(None, &destination(&key, own));
        // Where a name is what allows it, it has to be one that leads to this very address: anybody can write any.
        let known = name.as_ref().is_none_or(|name| flow.names.contains(name)) || unnamed.is_ok();
        match core.policy.decide_server_name(name.as_deref(), &destination(&key, own)) {
            Ok(()) if known => {
                flow.server_name = name;
                flow.stage = Stage::Open;
                flow.deadline = None;
            }
            Ok(()) => {
                let rule = "allow: the server name does not lead to this address".to_owned();
                core.deny("tcp", key.destination(), name, rule);
                flow.abort();
            }
            Err(rule) => {
                core.deny("tcp", key.destination(), name, rule);
                flow.abort();
            }
        }
    }

    /// Ends a flow that has not shown a name in time.
    pub(super) fn deny_unnamed(&mut self, core: &mut Core, slot: usize) {
        let flow = &mut self.flows[slot];
        let rule = core
            .policy
            .decide_server_name(None, &destination(&flow.key, flow.own))
            .err()
            .unwrap_or_else(|| "the connection shows no server name in time".into());
        core.deny("tcp", flow.key.destination(), flow.names.first().cloned(), rule);
        flow.abort();
    }
}

pub(super) fn destination(key: &Key, own: bool) -> Destination {
    Destination { protocol: Protocol::Tcp, address: key.address, port: key.port, own }
}

/// The rule by which the policy forbids what `flow` does.
fn forbids(core: &Core, flow: &mut Flow) -> Option<String> {
    if !matches!(flow.peer, Peer::Host(_)) {
        return None;
    }
    if is_gateway(flow.key.address) {
        return (!core.policy.host_port(flow.key.port)).then(|| HOST_PORT.into());
    }
    let destination = destination(&flow.key, flow.own);
    match core.policy.decide(&destination, &flow.names) {
        Verdict::Allow => {
            flow.to_be_named = false;
            if matches!(flow.stage, Stage::Naming) {
                flow.stage = Stage::Open;
            }
            None
        }
        Verdict::Deny { rule } => Some(rule),
        // What is still to come will be looked at; of what has been there nobody knows any more.
        Verdict::AllowNamed if matches!(flow.stage, Stage::Naming | Stage::Connecting { .. }) => {
            flow.to_be_named = true;
            None
        }
        Verdict::AllowNamed => {
            core.policy.decide_server_name(flow.server_name.as_deref(), &destination).err()
        }
    }
}
