//! What a sandbox may reach while its machine runs, and who tells it names.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use net::engine::Limits;
use net::policy::Mode;
use tokio::time::MissedTickBehavior;
use vmm::control::{Client, ControlError, Status};
use vmm::devices::net::NumberedDenial;

use super::error::DaemonError;
use super::sandbox::Sandbox;
use super::state::State;
use super::{Daemon, chain};
use crate::sandbox::{Access, Handle, resolvers};

/// States with a machine whose process can be asked.
pub(super) const UP: [State; 2] = [State::Running, State::Paused];

/// A machine says within this time what its network has done.
const TOLD: Duration = Duration::from_secs(1);
/// So often it looks whether the host has other name servers.
const LOOK: Duration = Duration::from_secs(5);

/// Tells machines who the host's name servers are, at first and when they change: a machine's process opens no file. Goes on until
/// it is dropped.
pub(super) async fn follow_resolvers(daemon: Arc<Daemon>) {
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known = None;
    loop {
        look.tick().await;
        let Ok(Ok(servers)) = tokio::task::spawn_blocking(resolvers).await else { continue };
        if known.as_ref() == Some(&servers) {
            continue;
        }
        let sandboxes = daemon.table().all();
        for sandbox in sandboxes {
            if let Err(error) = sandbox.ask_names_of(servers.clone()).await {
                tracing::warn!(sandbox = sandbox.id(), error = %chain(&error), "knows the host's old name servers alone");
            }
        }
        known = Some(servers);
    }
}

/// A machine's network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Device {
    Limited,
    /// Of an earlier build, whose machines tell of it with their metrics alone.
    Unlimited,
}

/// The network of a machine, if it has one.
fn network_of(client: &mut Client) -> Result<Option<Device>, ControlError> {
    if client.status()?.network.is_some() {
        return Ok(Some(Device::Limited));
    }
    Ok(client.metrics()?.network.map(|_| Device::Unlimited))
}

impl Sandbox {
    /// Has the machine, if there is one with a network, ask these name servers from now on.
    async fn ask_names_of(&self, servers: Vec<SocketAddr>) -> Result<(), DaemonError> {
        let action = "tell the name servers to";
        let Ok(handle) = self.machine(action, &UP) else { return Ok(()) };
        self.control(action, &handle, |client| {
            if network_of(client)?.is_some() { client.set_resolvers(servers) } else { Ok(()) }
        })
        .await
    }

    /// Has the machine, if there is one, hold to this from now on.
    pub(super) async fn enforce(&self, Access { policy, limits }: Access) -> Result<(), DaemonError> {
        let action = "change the network of";
        if self.state() == State::Sleeping {
            return self.can_have(policy.mode()).await;
        }
        let Some(handle) = self.machine_to_tell(action)? else { return Ok(()) };
        let wanted = policy.mode() != Mode::None;
        let done = self.control(action, &handle, move |client| {
            let device = network_of(client)?;
            if let Some(device) = device {
                client.set_network(policy)?;
                // One of an earlier build has no limits, nor a word for them.
                if device == Device::Limited || limits != Limits::default() {
                    client.set_limits(limits)?;
                }
            }
            Ok(device.is_some())
        });
        // One that was started without a network has no device for it.
        if done.await? || !wanted { Ok(()) } else { Err(DaemonError::NoNetwork(self.name())) }
    }

    /// Makes a machine that was found hold to the policy and the limits of the record, and ask the host's name servers of now, in the background:
    /// whoever was at changing them may have been killed in the middle of it.
    pub(super) fn find_network(self: &Arc<Self>) {
        let sandbox = Arc::clone(self);
        tokio::spawn(async move {
            let _turn = sandbox.turn.lock().await;
            let network = sandbox.record().access();
            let told = sandbox.enforce(network).await;
            let told = match tokio::task::spawn_blocking(resolvers).await {
                Ok(Ok(servers)) => told.and(sandbox.ask_names_of(servers).await),
                _ => told,
            };
            if let Err(error) = told {
                tracing::warn!(sandbox = sandbox.id(), error = %chain(&error), "its network may be another than its record says");
            }
        });
    }

    /// Counts what the network of a machine has done since that was counted last. A machine that does not say it in time is counted later.
    pub(super) async fn count_network(&self, handle: &Arc<Handle>) {
        let status = tokio::time::timeout(TOLD, self.control("measure", handle, Client::status)).await;
        if let Ok(Ok(Status { network: Some(network), .. })) = status {
            self.metrics.network(handle, network);
        }
    }

    /// What it was denied since its machine was started, behind the one with the number `after`.
    pub(crate) async fn denials(&self, after: u64) -> Result<Vec<NumberedDenial>, DaemonError> {
        let action = "tell what was denied to";
        let handle = self.machine(action, &UP)?;
        self.control(action, &handle, move |client| client.denials(after)).await
    }
}
