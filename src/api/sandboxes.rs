//! `/sandboxes`: made, shown, changed, removed, and their states.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body as Content;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use futures_util::StreamExt as _;
use futures_util::stream::once;
use net::policy::Mode;
use vmm::spec::{Cpus, MemoryMib};

use super::answers::{Envelope, Id, Meta, Sandboxes};
use super::input::{Body, Parameters, Target};
use super::problem::Problem;
use super::types::{Change, Create, ListParameters, Sandbox, Stop};
use super::{certificates, network, success};
use crate::daemon::{Changes, Connection, Daemon, GRACE, ImageWanted, New, Page, Stats};
use crate::sandbox::Access;

const PAGE: usize = 50;
const LARGEST_PAGE: usize = 1000;
/// Of all variables, names and values; a command takes 2 MiB with its arguments.
const MAX_ENV: usize = 1 << 20;
/// More than this a kernel does not take, with what we say to it (COMMAND_LINE_SIZE).
const MAX_CMDLINE: usize = 1024;
/// Of a disk, in MiB: what ext4 can have.
const MIN_DISK: u64 = 8;
const MAX_DISK: u64 = (16 << 20) - 1;
const MAX_LABELS: usize = 64;
const MAX_LABEL: usize = 256;
/// A hundred years, in seconds.
const LONGEST: u64 = 100 * 366 * 24 * 3600;

type Answer<T> = Result<Json<Envelope<T>>, Problem>;

/// Makes a sandbox and starts it.
#[utoipa::path(
    post, path = "/sandboxes", operation_id = "createSandbox", tag = "sandboxes",
    request_body = Create,
    responses((status = 201, description = "The sandbox, which runs", body = Envelope<Sandbox>))
)]
pub(super) async fn create(
    State(daemon): State<Arc<Daemon>>,
    Extension(connection): Extension<Connection>,
    Body(body): Body<Create>,
) -> Result<Response, Problem> {
    if body.kernel.is_some() && connection.key().is_some() {
        return Err(Problem::field(
            "kernel",
            "a file of this machine can be named over the Unix socket alone",
        ));
    }
    let policy = match &body.from_snapshot {
        Some(name) if !daemon.snapshot(name.clone()).await?.record.network => Mode::None.into(),
        _ => daemon.config().network.value.policy(),
    };
    let network = Access { policy, ..Access::default() };
    let new = wanted(body, network)?;
    let created =
        |sandbox: &crate::daemon::Sandbox| success("sandbox created", Sandbox::from(sandbox.view()));
    if !new.ephemeral {
        let sandbox = daemon.create(new).await?;
        return Ok((StatusCode::CREATED, created(&sandbox)).into_response());
    }
    let owned = daemon.create_owned(new).await?;
    let Json(answer) = created(owned.sandbox());
    // The client that goes drops the rest of the answer, and the sandbox with it.
    let rest = async move {
        owned.sandbox().released().await;
        "\n".to_owned()
    };
    // Nothing in it is what JSON cannot say.
    let answer = serde_json::to_string(&answer).unwrap_or_default() + "\n";
    let answer = once(ready(answer)).chain(once(rest)).map(Ok::<_, Infallible>);
    let kind = [(header::CONTENT_TYPE, "application/json")];
    Ok((StatusCode::CREATED, kind, Content::from_stream(answer)).into_response())
}

/// What the daemon understands of a request; `network` is what a sandbox may reach of which nothing is said.
fn wanted(body: Create, network: Access) -> Result<New, Problem> {
    let range = |min: u64, max: u64, unit: &str| format!("is not between {min} and {max}{unit}");
    if body.from_snapshot.is_some() {
        // What the snapshot says of it.
        let given = [
            ("image", body.image.is_some()),
            ("diskMB", body.disk_mb.is_some()),
            ("kernel", body.kernel.is_some()),
            ("kernelArgs", body.kernel_args.is_some()),
            ("pull", body.pull.is_some()),
            ("warm", body.warm.is_some()),
        ];
        if let Some((field, _)) = given.iter().find(|(_, given)| *given) {
            return Err(Problem::field(field, "the snapshot (fromSnapshot) decides that"));
        }
    }
    if body.mounts.is_some_and(|mounts| !mounts.is_empty()) {
        return Err(Problem::not_implemented("mounts"));
    }
    let cpus = body.cpu.map(|cpu| {
        let valid = u8::try_from(cpu).ok().and_then(|cpu| Cpus::try_from(cpu).ok());
        valid.ok_or_else(|| Problem::field("cpu", format!("{cpu} {}", range(1, Cpus::MAX.into(), ""))))
    });
    let memory = body.mem.map(|mem| {
        let valid = u32::try_from(mem).ok().and_then(|mem| MemoryMib::try_from(mem).ok());
        let range = range(MemoryMib::MIN.into(), MemoryMib::MAX.into(), " MiB");
        valid.ok_or_else(|| Problem::field("mem", format!("{mem} {range}")))
    });
    let time = |field: &str, seconds: Option<u64>| match seconds.filter(|seconds| *seconds > 0) {
        Some(seconds) if seconds > LONGEST => {
            Err(Problem::field(field, format!("{seconds} {}", range(0, LONGEST, " s"))))
        }
        seconds => Ok(seconds.map(|seconds| seconds * 1000)),
    };
    let (ttl_ms, idle_ms) = (time("ttl", body.ttl)?, time("idleTimeout", body.idle_timeout)?);
    let ephemeral = body.ephemeral.unwrap_or_default();
    let auto_sleep = body.auto_sleep.unwrap_or_default();
    if ephemeral && auto_sleep {
        return Err(Problem::field("autoSleep", "an ephemeral sandbox does not sleep"));
    }
    if !ephemeral && (body.kernel.is_some() || body.kernel_args.is_some()) {
        return Err(Problem::field("kernel", "only an ephemeral sandbox has another than the daemon's"));
    }
    if body.kernel.as_ref().is_some_and(|kernel| !kernel.is_absolute()) {
        return Err(Problem::field("kernel", "expected an absolute path"));
    }
    let cmdline = body.kernel_args.unwrap_or_default();
    if cmdline.len() > MAX_CMDLINE || cmdline.chars().any(char::is_control) {
        return Err(Problem::field(
            "kernelArgs",
            format!("expected at most {MAX_CMDLINE} bytes in one line"),
        ));
    }
    let size = body.disk_mb.map(|mib| {
        let range = range(MIN_DISK, MAX_DISK, " MiB");
        let valid = (MIN_DISK..=MAX_DISK).contains(&mib).then_some(mib << 20);
        valid.ok_or_else(|| Problem::field("diskMB", format!("{mib} {range}")))
    });
    let size = size.transpose()?;
    let job = body.job.map(|job| {
        if ephemeral || job.stdin == Some(true) {
            let field = if ephemeral { "job" } else { "job.stdin" };
            return Err(Problem::field(field, "a job runs without a client: there is nobody to serve it"));
        }
        super::exec::checked(job, 0.0)
    });
    let removes = body.auto_remove.unwrap_or_default();
    if removes && job.is_none() {
        return Err(Problem::field("autoRemove", "needs a job, at whose end the sandbox is removed"));
    }
    let env = body.env_vars.unwrap_or_default();
    super::exec::check_env("envVars", env.iter().map(|(name, value)| (name, value.as_str())))?;
    let length: usize = env.iter().map(|(name, value)| name.len() + value.len()).sum();
    if length > MAX_ENV {
        return Err(Problem::field("envVars", format!("{length} bytes, where {MAX_ENV} are allowed")));
    }
    let ports = super::ports::wanted(body.ports.unwrap_or_default())?;
    let network = network::access(body.network.unwrap_or_default(), network)?;
    Ok(New {
        name: body.name,
        image: ImageWanted { name: body.image, size, pull: body.pull.unwrap_or_default() },
        snapshot: body.from_snapshot,
        warm: body.warm,
        cpus: cpus.transpose()?,
        memory: memory.transpose()?,
        env,
        network,
        hosts: network::hosts(body.hosts.unwrap_or_default())?,
        ca_certificates: body.ca_certificates.as_deref().map(certificates::checked).transpose()?,
        labels: checked(body.labels.unwrap_or_default())?,
        ttl_ms,
        idle_ms,
        auto_sleep,
        ephemeral,
        kernel: body.kernel,
        cmdline,
        ports,
        job: job.transpose()?,
        removes,
    })
}

/// Labels that can be asked for by `labels=k=v,...`.
pub(super) fn checked(labels: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Problem> {
    if labels.len() > MAX_LABELS {
        return Err(Problem::field(
            "labels",
            format!("{} of them, where {MAX_LABELS} are allowed", labels.len()),
        ));
    }
    for (key, value) in &labels {
        let short = key.len().max(value.len()) <= MAX_LABEL;
        let plain = |text: &str| !text.contains([',', '=']) && !text.chars().any(char::is_control);
        if key.is_empty() || !short || !plain(key) || !plain(value) {
            let key: String = key.chars().take(50).collect();
            let wrong = format!(
                "{key:?}: expected a key and a value of at most {MAX_LABEL} bytes without ',', '=' and control characters"
            );
            return Err(Problem::field("labels", wrong));
        }
    }
    Ok(labels)
}

/// Lists sandboxes, the oldest first.
#[utoipa::path(
    get, path = "/sandboxes", operation_id = "listSandboxes", tag = "sandboxes",
    params(ListParameters),
    responses((status = 200, description = "A page of sandboxes", body = Sandboxes))
)]
pub(super) async fn list(
    State(daemon): State<Arc<Daemon>>,
    Parameters(parameters): Parameters<ListParameters>,
) -> Result<Json<Sandboxes>, Problem> {
    let number = parameters.page.unwrap_or(1);
    let limit = parameters.limit.unwrap_or(PAGE);
    if number == 0 {
        return Err(Problem::field("page", "0: pages are counted from 1"));
    }
    if !(1..=LARGEST_PAGE).contains(&limit) {
        return Err(Problem::field("limit", format!("{limit} is not between 1 and {LARGEST_PAGE}")));
    }
    let labels = selector(parameters.labels.as_deref().unwrap_or_default())?;
    let (views, total) = daemon.list(&labels, Page { number, limit });
    let data: Vec<Sandbox> = views.into_iter().map(Sandbox::from).collect();
    let meta = Meta { page: number, limit, total, total_pages: total.div_ceil(limit) };
    Ok(Json(Sandboxes { status: "success", message: "sandboxes", data, meta }))
}

/// Labels that are asked for, as `k=v,k2=v2`.
pub(super) fn selector(text: &str) -> Result<Vec<(String, String)>, Problem> {
    let pairs = text.split(',').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| match pair.split_once('=') {
            Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
            None => Err(Problem::field("labels", format!("{pair:?}: expected k=v,k2=v2"))),
        })
        .collect()
}

/// Shows a sandbox.
#[utoipa::path(
    get, path = "/sandboxes/{id}", operation_id = "getSandbox", tag = "sandboxes",
    responses((status = 200, description = "The sandbox", body = Envelope<Sandbox>))
)]
pub(super) async fn get(Target(sandbox): Target) -> Json<Envelope<Sandbox>> {
    success("sandbox", Sandbox::from(sandbox.view()))
}

/// Gives a sandbox another name, other labels, or another network policy, at once.
#[utoipa::path(
    patch, path = "/sandboxes/{id}", operation_id = "changeSandbox", tag = "sandboxes",
    request_body = Change,
    responses((status = 200, description = "The sandbox as it is now", body = Envelope<Sandbox>))
)]
pub(super) async fn change(
    State(daemon): State<Arc<Daemon>>,
    Target(sandbox): Target,
    Body(body): Body<Change>,
) -> Answer<Sandbox> {
    let labels = body.labels.map(checked).transpose()?;
    let network = body.network.map(network::change).transpose()?;
    daemon.change(&sandbox, Changes { name: body.name, labels, network }).await?;
    Ok(success("sandbox changed", Sandbox::from(sandbox.view())))
}

/// Ends and removes a sandbox, with its disk.
#[utoipa::path(
    delete, path = "/sandboxes/{id}", operation_id = "removeSandbox", tag = "sandboxes",
    responses(
        (
            status = 200,
            description = "It is gone; what it took is given back in the background",
            body = Envelope<Id>
        )
    )
)]
pub(super) async fn remove(State(daemon): State<Arc<Daemon>>, Target(sandbox): Target) -> Answer<Id> {
    let id = sandbox.id().to_owned();
    daemon.remove(sandbox).await?;
    Ok(success("sandbox removed", Id { id }))
}

/// Starts a sandbox that is stopped or failed.
#[utoipa::path(
    post, path = "/sandboxes/{id}/start", operation_id = "startSandbox", tag = "sandboxes",
    responses((status = 200, description = "The sandbox, which runs", body = Envelope<Sandbox>))
)]
pub(super) async fn start(State(daemon): State<Arc<Daemon>>, Target(sandbox): Target) -> Answer<Sandbox> {
    daemon.start(&sandbox).await?;
    Ok(success("sandbox started", Sandbox::from(sandbox.view())))
}

/// Ends the machine of a sandbox; its disk is kept.
#[utoipa::path(
    post, path = "/sandboxes/{id}/stop", operation_id = "stopSandbox", tag = "sandboxes",
    request_body = Stop,
    responses((status = 200, description = "The sandbox, which has no machine", body = Envelope<Sandbox>))
)]
pub(super) async fn stop(
    State(daemon): State<Arc<Daemon>>,
    Target(sandbox): Target,
    Body(body): Body<Stop>,
) -> Answer<Sandbox> {
    const LONGEST_GRACE: u64 = 3600;
    let grace = body.timeout.map_or(GRACE, Duration::from_secs);
    if grace > Duration::from_secs(LONGEST_GRACE) {
        return Err(Problem::field("timeout", format!("more than {LONGEST_GRACE} s")));
    }
    daemon.stop(&sandbox, grace).await?;
    Ok(success("sandbox stopped", Sandbox::from(sandbox.view())))
}

/// Lets a sandbox stand still; its memory is kept.
#[utoipa::path(
    post, path = "/sandboxes/{id}/pause", operation_id = "pauseSandbox", tag = "sandboxes",
    responses((status = 200, description = "The sandbox, which stands still", body = Envelope<Sandbox>))
)]
pub(super) async fn pause(State(daemon): State<Arc<Daemon>>, Target(sandbox): Target) -> Answer<Sandbox> {
    daemon.pause(&sandbox).await?;
    Ok(success("sandbox paused", Sandbox::from(sandbox.view())))
}

/// Lets a paused sandbox go on.
#[utoipa::path(
    post, path = "/sandboxes/{id}/resume", operation_id = "resumeSandbox", tag = "sandboxes",
    responses((status = 200, description = "The sandbox, which runs", body = Envelope<Sandbox>))
)]
pub(super) async fn resume(State(daemon): State<Arc<Daemon>>, Target(sandbox): Target) -> Answer<Sandbox> {
    daemon.resume(&sandbox).await?;
    Ok(success("sandbox resumed", Sandbox::from(sandbox.view())))
}

/// Tells what the machine of a sandbox has cost since it was started.
#[utoipa::path(
    get, path = "/sandboxes/{id}/stats", operation_id = "getStatistics", tag = "sandboxes",
    responses((status = 200, description = "Counters and times", body = Envelope<Stats>))
)]
pub(super) async fn stats(Target(sandbox): Target) -> Answer<Stats> {
    Ok(success("statistics", sandbox.stats().await?))
}

/// Writes the memory of a sandbox to the disk and ends its machine: it takes no memory then. Streams to it end, what runs in it goes
/// on when it wakes.
#[utoipa::path(
    post, path = "/sandboxes/{id}/sleep", operation_id = "sleepSandbox", tag = "sandboxes",
    responses((status = 200, description = "The sandbox, which sleeps", body = Envelope<Sandbox>))
)]
pub(super) async fn sleep(State(daemon): State<Arc<Daemon>>, Target(sandbox): Target) -> Answer<Sandbox> {
    daemon.sleep(&sandbox).await?;
    Ok(success("sandbox sleeps", Sandbox::from(sandbox.view())))
}

/// Lets a sandbox go on where it fell asleep.
#[utoipa::path(
    post, path = "/sandboxes/{id}/wake", operation_id = "wakeSandbox", tag = "sandboxes",
    responses((status = 200, description = "The sandbox, which runs", body = Envelope<Sandbox>))
)]
pub(super) async fn wake(State(daemon): State<Arc<Daemon>>, Target(sandbox): Target) -> Answer<Sandbox> {
    daemon.wake(&sandbox).await?;
    Ok(success("sandbox woken", Sandbox::from(sandbox.view())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::{Network, Port, PortProtocol};

    fn label(key: &str, value: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(key.to_owned(), value.to_owned())])
    }

    fn wanted_of(body: Create) -> Result<New, Problem> {
        wanted(body, Access::default())
    }

    #[test]
    fn what_is_refused_and_what_is_taken() {
        let port = Port {
            protocol: PortProtocol::Tcp,
            port: 80,
            host_address: None,
            host_port: Some(8080),
            url: None,
        };
        for body in [
            Create { cpu: Some(33), ..Create::default() },
            Create { cpu: Some(0), ..Create::default() },
            Create { mem: Some(127), ..Create::default() },
            Create { mem: Some(1 << 40), ..Create::default() },
            Create { ttl: Some(u64::MAX), ..Create::default() },
            Create { idle_timeout: Some(u64::MAX), ..Create::default() },
            Create { ports: Some(vec![port.clone(); 2]), ..Create::default() },
            Create {
                network: Some(Network { host_ports: Some(vec![0]), ..Network::default() }),
                ..Create::default()
            },
            Create { auto_sleep: Some(true), ephemeral: Some(true), ..Create::default() },
            Create { from_snapshot: Some("a".into()), image: Some("b".into()), ..Create::default() },
            Create { from_snapshot: Some("a".into()), disk_mb: Some(1 << 10), ..Create::default() },
            Create { kernel: Some("/vmlinux".into()), ..Create::default() },
            Create { kernel: Some("vmlinux".into()), ephemeral: Some(true), ..Create::default() },
            Create { kernel_args: Some("a\nb".into()), ephemeral: Some(true), ..Create::default() },
            Create { env_vars: Some(label("A=B", "")), ..Create::default() },
            Create { labels: Some(label("a", "b,c")), ..Create::default() },
        ] {
            assert!(wanted_of(body.clone()).is_err(), "{body:?}");
        }
        let new = wanted_of(Create {
            cpu: Some(2),
            mem: Some(512),
            ttl: Some(3),
            idle_timeout: Some(0),
            auto_sleep: Some(false),
            ports: Some(vec![port.clone(), Port { protocol: PortProtocol::Udp, ..port }]),
            labels: Some(label("env", "prod")),
            ..Create::default()
        });
        let new = new.unwrap();
        assert_eq!(
            (new.cpus.unwrap().get(), new.memory.unwrap().bytes(), new.ttl_ms, new.idle_ms),
            (2, 512 << 20, Some(3000), None)
        );
        assert_eq!(new.ports[0].to_string(), "127.0.0.1:8080->80");
        assert_eq!(new.ports[1].to_string(), "127.0.0.1:8080->80/udp");
        assert_eq!(wanted_of(Create { ttl: Some(0), ..Create::default() }).unwrap().ttl_ms, None);
    }

    #[test]
    fn selectors() {
        assert_eq!(selector("").unwrap(), []);
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(selector("a=b,c=").unwrap(), [pair("a", "b"), pair("c", "")]);
        assert!(selector("a").is_err());
    }
}
