//! `/sandboxes/{id}/ports`: ports of sandboxes that this machine reaches.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::Json;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use vmm::spec::MAX_PORTS;

use super::answers::{Envelope, PublicUrl};
use super::input::{Body, Target};
use super::problem::Problem;
use super::success;
use super::types::{Port, PortProtocol};
use crate::daemon::{Daemon, Sandbox};
use crate::sandbox::{self, Port as Wanted};

type Answer<T> = Result<Json<Envelope<T>>, Problem>;

/// The sandbox and the port of this machine of a path.
pub(super) struct Place(Arc<Sandbox>, u16);

impl FromRequestParts<Arc<Daemon>> for Place {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, daemon: &Arc<Daemon>) -> Result<Self, Problem> {
        let path = Path::<(String, u16)>::from_request_parts(parts, daemon).await;
        let Path((key, port)) = path.map_err(|e| Problem::bad_request(e.body_text()))?;
        Ok(Self(daemon.find(&key)?, port))
    }
}

/// What the daemon understands of the ports of a new sandbox.
pub(super) fn wanted(ports: Vec<Port>) -> Result<Vec<Wanted>, Problem> {
    if ports.len() > MAX_PORTS {
        let wrong = format!("{} of them, where {MAX_PORTS} are allowed", ports.len());
        return Err(Problem::field("ports", wrong));
    }
    let ports = ports.into_iter().enumerate();
    let ports: Vec<Wanted> =
        ports.map(|(index, port)| one(&format!("ports[{index}]."), &port)).collect::<Result<_, _>>()?;
    for (index, port) in ports.iter().enumerate() {
        if ports[..index].iter().any(|other| other.collides(port)) {
            return Err(Problem::field(&format!("ports[{index}]"), format!("{} is there twice", port.host)));
        }
    }
    Ok(ports)
}

/// One port, whose fields are called by `prefix` and their names.
fn one(prefix: &str, port: &Port) -> Result<Wanted, Problem> {
    let protocol = match port.protocol {
        PortProtocol::Http => sandbox::PortProtocol::Http,
        PortProtocol::Tcp => sandbox::PortProtocol::Tcp,
        PortProtocol::Udp => sandbox::PortProtocol::Udp,
    };
    if port.port == 0 {
        return Err(Problem::field(&format!("{prefix}port"), "0 is not between 1 and 65535"));
    }
    let address = port.host_address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let host_port = port.host_port.unwrap_or_default();
    Ok(Wanted {
        protocol,
        guest: port.port,
        host: SocketAddr::new(address, host_port),
        picked: host_port == 0,
    })
}

/// Lists the ports of a sandbox.
///
/// Those with a `url` are published at this moment, as the machine itself says.
#[utoipa::path(
    get, path = "/sandboxes/{id}/ports", operation_id = "listPorts", tag = "ports",
    responses((status = 200, description = "Its ports", body = Envelope<Vec<Port>>))
)]
pub(super) async fn list(Target(sandbox): Target) -> Answer<Vec<Port>> {
    Ok(success("ports", sandbox.ports().await?.into_iter().map(Port::from).collect()))
}

/// Publishes a port of a sandbox.
///
/// Of one that does not run from its next start on.
#[utoipa::path(
    post, path = "/sandboxes/{id}/ports", operation_id = "addPort", tag = "ports",
    request_body = Port,
    responses((status = 201, description = "The port, with what was picked", body = Envelope<Port>))
)]
pub(super) async fn add(
    State(daemon): State<Arc<Daemon>>,
    Target(sandbox): Target,
    Body(body): Body<Port>,
) -> Result<(StatusCode, Json<Envelope<Port>>), Problem> {
    let added = daemon.add_port(&sandbox, one("", &body)?).await?;
    Ok((StatusCode::CREATED, success("port published", added.into())))
}

/// Publishes a port no more.
///
/// What is connected by TCP stays so. The port is named by that of this machine, at whatever address and by whatever protocol.
#[utoipa::path(
    delete, path = "/sandboxes/{id}/ports/{hostPort}", operation_id = "removePort", tag = "ports",
    responses((status = 200, description = "What it was", body = Envelope<Vec<Port>>))
)]
pub(super) async fn remove(
    State(daemon): State<Arc<Daemon>>,
    Place(sandbox, port): Place,
) -> Answer<Vec<Port>> {
    let removed = daemon.remove_port(&sandbox, port).await?;
    Ok(success("port removed", removed.into_iter().map(Port::from).collect()))
}

/// Shows where the published ports of a sandbox are reached.
#[utoipa::path(
    get, path = "/sandboxes/{id}/public-urls", operation_id = "listPublicUrls", tag = "ports",
    responses((status = 200, description = "An address for each", body = Envelope<Vec<PublicUrl>>))
)]
pub(super) async fn public_urls(Target(sandbox): Target) -> Answer<Vec<PublicUrl>> {
    let ports = sandbox.ports().await?.into_iter().map(Port::from);
    let urls = ports.filter_map(|Port { port, url, .. }| Some(PublicUrl { port, url: url? }));
    Ok(success("public URLs", urls.collect()))
}
