//! Published ports. This daemon makes the listeners and hands them to the processes of the machines, where they live on
//! without it; which there are, a process that somebody else has started is asked.

use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use vmm::control::Client;
use vmm::spec::{MAX_PORTS, Transport};

use super::error::DaemonError;
use super::events::Kind;
use super::sandbox::Sandbox;
use super::state::State;
use super::{Daemon, chain};
use crate::sandbox::{Handle, Listener, Port, PortError};

/// What cannot be done where a listener cannot be handed over.
const PUBLISH: &str = "publish a port of";
const LIST: &str = "list the ports of";
/// The states in which there is a machine that has listeners.
const UP: [State; 2] = [State::Running, State::Paused];

/// A port of a sandbox.
#[derive(Clone, Debug)]
pub(crate) struct PortView {
    pub(crate) port: Port,
    /// Whether somebody listens for it now.
    pub(crate) published: bool,
}

impl Daemon {
    /// Listens for all ports of a sandbox whose turn we have. What was picked is in its record afterwards.
    pub(super) async fn listen(&self, sandbox: &Arc<Sandbox>) -> Result<Vec<Listener>, DaemonError> {
        let wanted = sandbox.record().ports.clone();
        let bound = wanted.iter().map(|port| self.listen_for(sandbox, port));
        let listeners = bound.collect::<Result<Vec<_>, _>>()?;
        let ports: Vec<Port> = listeners.iter().map(|listener| listener.port.clone()).collect();
        if ports != wanted {
            sandbox.record().ports = ports;
            sandbox.write_record().await?;
        }
        Ok(listeners)
    }

    fn listen_for(&self, sandbox: &Sandbox, port: &Port) -> Result<Listener, DaemonError> {
        let error = match Listener::bind(port) {
            Err(PortError::Taken { transport, address }) => {
                let others = self.table().all();
                let has_it = |other: &&Arc<Sandbox>| {
                    other.id() != sandbox.id()
                        && other.status().is_up()
                        && other.record().ports.iter().any(|one| one.collides(port))
                };
                if let Some(other) = others.iter().find(has_it) {
                    return Err(DaemonError::PortOf { address, name: other.name() });
                }
                PortError::Taken { transport, address }
            }
            result => return result.map_err(|source| DaemonError::Port { name: sandbox.name(), source }),
        };
        Err(DaemonError::Port { name: sandbox.name(), source: error })
    }

    /// Publishes one more port; of a sandbox that does not run from its next start on. Returns it with what was picked.
    pub(crate) async fn add_port(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        port: Port,
    ) -> Result<PortView, DaemonError> {
        let (daemon, sandbox) = (Arc::clone(self), Arc::clone(sandbox));
        self.to_its_end(async move { daemon.add_port_now(&sandbox, port).await }).await
    }

    async fn add_port_now(&self, sandbox: &Arc<Sandbox>, port: Port) -> Result<PortView, DaemonError> {
        let _turn = sandbox.turn.lock().await;
        let handle = sandbox.machine_to_tell(PUBLISH)?;
        {
            let record = sandbox.record();
            if record.ports.len() >= MAX_PORTS {
                return Err(DaemonError::TooManyPorts { limit: MAX_PORTS, name: record.name.clone() });
            }
            if record.ports.iter().any(|one| one.collides(&port)) {
                return Err(DaemonError::PortOf { address: port.host, name: record.name.clone() });
            }
        }
        let (port, published) = match &handle {
            Some(handle) => {
                let listener = self.listen_for(sandbox, &port)?;
                let port = listener.port.clone();
                if let Err(error) = sandbox.hand_over(handle, listener).await {
                    // It may have been taken, and the answer lost.
                    let _ = sandbox.close_port(handle, port.place()).await;
                    return Err(error);
                }
                (port, true)
            }
            // One is picked all the same, so that it has a name; whether it is free then, the start shows.
            None if port.picked => (self.listen_for(sandbox, &port)?.port, false),
            None => (port, false),
        };
        sandbox.record().ports.push(port.clone());
        if let Err(error) = sandbox.write_record().await {
            sandbox.record().ports.retain(|one| *one != port);
            if let Some(handle) = &handle {
                // What stays is closed by the next daemon.
                let _ = sandbox.close_port(handle, port.place()).await;
            }
            return Err(error);
        }
        sandbox.tell(Kind::Changed, None);
        Ok(PortView { port, published })
    }

    /// Closes the sockets at a port of this machine; what is connected by TCP stays so. Returns what they were.
    pub(crate) async fn remove_port(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        host_port: u16,
    ) -> Result<Vec<PortView>, DaemonError> {
        let sandbox = Arc::clone(sandbox);
        self.to_its_end(async move {
            let _turn = sandbox.turn.lock().await;
            let handle = sandbox.machine_to_tell("remove a port of")?;
            let before = sandbox.record().ports.clone();
            let is_it = |port: &Port| port.host.port() == host_port;
            let gone: Vec<Port> = before.iter().filter(|port| is_it(port)).cloned().collect();
            if gone.is_empty() {
                return Err(DaemonError::NoPort { port: host_port, name: sandbox.name() });
            }
            // First, since it can be asked for again: nothing that the record does not tell of may listen on.
            if let Some(handle) = &handle {
                for port in &gone {
                    sandbox.close_port(handle, port.place()).await?;
                }
            }
            sandbox.record().ports.retain(|port| !is_it(port));
            if let Err(error) = sandbox.write_record().await {
                sandbox.record().ports = before;
                return Err(error);
            }
            sandbox.tell(Kind::Changed, None);
            Ok(gone.into_iter().map(|port| PortView { port, published: false }).collect())
        })
        .await
    }
}

impl Sandbox {
    /// The machine, if there is one; an error where there is one that cannot be told of a change. The turn is the caller's.
    pub(super) fn machine_to_tell(&self, action: &'static str) -> Result<Option<Arc<Handle>>, DaemonError> {
        if self.record().removed {
            return Err(self.wrong_state(action));
        }
        match self.state() {
            State::Stopped | State::Failed | State::Sleeping => self.is_not_lost().map(|()| None),
            _ => self.machine(action, &UP).map(Some),
        }
    }

    /// Hands a listener to the process of the machine.
    async fn hand_over(&self, handle: &Arc<Handle>, listener: Listener) -> Result<(), DaemonError> {
        let add = move |client: &mut Client| client.add_port(listener.socket.as_fd(), listener.target);
        self.control(PUBLISH, handle, add).await
    }

    /// Has the process of the machine close a socket.
    async fn close_port(
        &self,
        handle: &Arc<Handle>,
        (transport, address): (Transport, SocketAddr),
    ) -> Result<(), DaemonError> {
        let close = move |client: &mut Client| client.remove_port(transport, address);
        self.control("remove a port of", handle, close).await
    }

    /// Its ports, as they are in its record, and which of them its machine has a listener for.
    pub(crate) async fn ports(&self) -> Result<Vec<PortView>, DaemonError> {
        let there = match self.machine(LIST, &UP) {
            Ok(handle) => self.control(LIST, &handle, Client::ports).await?,
            Err(_) => Vec::new(),
        };
        let ports = self.record().ports.clone();
        let view = |port: Port| PortView { published: there.contains(&port.place()), port };
        Ok(ports.into_iter().map(view).collect())
    }

    /// Makes a machine that was found have the ports of the record, in the background: whoever was at changing them may have been
    /// killed in the middle of it.
    pub(super) fn find_ports(self: &Arc<Self>) {
        let sandbox = Arc::clone(self);
        tokio::spawn(async move {
            let _turn = sandbox.turn.lock().await;
            let Ok(handle) = sandbox.machine(LIST, &UP) else { return };
            let there = match sandbox.control(LIST, &handle, Client::ports).await {
                Ok(there) => there,
                Err(error) => {
                    tracing::debug!(sandbox = sandbox.id(), error = %chain(&error), "its ports are not known");
                    return;
                }
            };
            let wanted = sandbox.record().ports.clone();
            for place in there.iter().copied().filter(|one| wanted.iter().all(|port| port.place() != *one)) {
                tracing::info!(sandbox = sandbox.id(), address = %place.1, "is published no more");
                let _ = sandbox.close_port(&handle, place).await;
            }
            for port in wanted.iter().filter(|port| !there.contains(&port.place())) {
                let named = |source| DaemonError::Port { name: sandbox.name(), source };
                // With its very number: nobody would learn of another one.
                let published = match Listener::bind(&Port { picked: false, ..port.clone() }) {
                    Ok(listener) => sandbox.hand_over(&handle, listener).await,
                    Err(error) => Err(named(error)),
                };
                if let Err(error) = published {
                    tracing::warn!(sandbox = sandbox.id(), error = %chain(&error), "a port is not published");
                }
            }
        });
    }
}
