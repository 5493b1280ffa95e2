//! The HTTP API: routes, wire types, errors, streams. Nothing here knows of machines: what is asked for is the daemon's to do.
//!
//! The same tree is at `/v1` and `/api`, which differ in what a client may get wrong alone, see [`input::Wire`].

mod answers;
mod certificates;
mod code;
mod commands;
mod drain;
pub(crate) mod events;
mod exec;
pub(crate) mod files;
mod guard;
mod images;
mod input;
mod logs;
mod network;
mod openapi;
mod ports;
mod problem;
mod sandboxes;
mod session;
pub(crate) mod snapshots;
mod stream;
mod terminal;
mod terminal_exec;
mod text;
mod transfer;
mod typed;
pub(crate) mod types;
mod watch;
mod websocket;

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state, map_request};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json, Router};
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer};
use utoipa::OpenApi as _;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::daemon::Daemon;
use answers::{Envelope, Health};
use input::Wire;
use problem::Problem;

/// What an upgraded connection speaks: the frames of [`protocol`].
pub(crate) const EXEC_PROTOCOL: &str = "voidrun-exec";

/// All routes. Each request has to have its [`Connection`](crate::daemon::Connection) as an extension.
pub(crate) fn router(daemon: Arc<Daemon>) -> Router {
    let layers = ServiceBuilder::new()
        .layer(SetRequestIdLayer::x_request_id(RequestIds::default()))
        .layer(PropagateRequestIdLayer::x_request_id())
        .layer(from_fn_with_state(Arc::clone(&daemon), log))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(map_request(drain::body))
        .layer(from_fn(guard::guard));
    let (tree, document) = tree().split_for_parts();
    Router::new()
        .merge(Router::from(system()))
        .nest("/v1", tree.clone().layer(Extension(Wire::Strict)))
        .nest("/api", tree.layer(Extension(Wire::Lenient)))
        .layer(Extension(openapi::Served::new(&document)))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(layers)
        .with_state(daemon)
}

/// All that is described in the document: a route that is not cannot be added here.
fn tree() -> OpenApiRouter<Arc<Daemon>> {
    OpenApiRouter::with_openapi(openapi::Base::openapi())
        .merge(system())
        .routes(routes!(sandboxes::create, sandboxes::list))
        .routes(routes!(sandboxes::get, sandboxes::change, sandboxes::remove))
        .routes(routes!(sandboxes::start))
        .routes(routes!(sandboxes::stop))
        .routes(routes!(sandboxes::pause))
        .routes(routes!(sandboxes::resume))
        .routes(routes!(sandboxes::stats))
        .routes(routes!(logs::logs))
        .routes(routes!(network::denials))
        .routes(routes!(sandboxes::sleep))
        .routes(routes!(sandboxes::wake))
        .routes(routes!(snapshots::take))
        .routes(routes!(snapshots::list))
        .routes(routes!(snapshots::get, snapshots::remove))
        .routes(routes!(ports::public_urls))
        .routes(routes!(ports::list, ports::add))
        .routes(routes!(ports::remove))
        .routes(routes!(exec::exec))
        .routes(routes!(stream::exec))
        .routes(routes!(code::run))
        .routes(routes!(commands::run))
        .routes(routes!(commands::list))
        .routes(routes!(commands::wait))
        .routes(routes!(commands::kill))
        .routes(routes!(stream::attach))
        .merge(files::routes())
        .routes(routes!(terminal::ephemeral))
        .routes(routes!(terminal::list, terminal::create))
        .routes(routes!(terminal::connect, terminal::delete))
        .routes(routes!(terminal::resize))
        .routes(routes!(terminal::buffer))
        .routes(routes!(terminal::execute))
        .routes(routes!(terminal_exec::exec))
        .routes(routes!(terminal_exec::stream))
        .merge(images::routes())
        .routes(routes!(events::follow))
}

fn system() -> OpenApiRouter<Arc<Daemon>> {
    OpenApiRouter::new()
        .routes(routes!(health))
        .routes(routes!(version))
        .routes(routes!(metrics))
        .routes(routes!(openapi::serve))
}

/// Says that the daemon serves.
#[utoipa::path(
    get, path = "/healthz", operation_id = "getHealth", tag = "daemon",
    responses((status = 200, description = "It serves", body = Health))
)]
async fn health() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// Shows the daemon's release, process and store.
#[utoipa::path(
    get, path = "/version", operation_id = "getVersion", tag = "daemon",
    responses((status = 200, description = "The daemon", body = types::Version))
)]
async fn version(State(daemon): State<Arc<Daemon>>) -> Json<types::Version> {
    Json(types::Version {
        version: crate::version().to_owned(),
        pid: std::process::id(),
        home: daemon.config().home.value.display().to_string(),
    })
}

/// Shows what the daemon has counted, for Prometheus.
#[utoipa::path(
    get, path = "/metrics", operation_id = "getMetrics", tag = "daemon",
    responses((status = 200, description = "OpenMetrics", body = String, content_type = "application/openmetrics-text"))
)]
async fn metrics(State(daemon): State<Arc<Daemon>>) -> impl IntoResponse {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, OPEN_METRICS)], daemon.scrape().await)
}

/// The envelope of an answer.
fn success<T>(message: &'static str, data: T) -> Json<Envelope<T>> {
    Json(Envelope { status: "success", message, data })
}

async fn unknown(request: Request) -> Problem {
    let detail = format!("there is nothing at {} {}", request.method(), request.uri().path());
    Problem::new(StatusCode::NOT_FOUND, "noRoute", detail)
}

async fn wrong_method(request: Request) -> Problem {
    let detail = format!("{} is not done with {}", request.uri().path(), request.method());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "wrongMethod", detail)
}

#[allow(clippy::needless_pass_by_value, reason = "the layer's way")]
fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    tracing::error!(panic = text, "a request has ended in a panic");
    Problem::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "failed",
        "this is a fault in voidrun; the daemon's log tells more",
    )
    .into_response()
}

/// Counts it as well.
async fn log(State(daemon): State<Arc<Daemon>>, request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let id = request.extensions().get::<RequestId>().cloned();
    let began = Instant::now();
    let response = next.run(request).await;
    daemon.metrics().request(response.status());
    let id = id.as_ref().and_then(|id| id.header_value().to_str().ok()).unwrap_or_default();
    let (status, ms) = (response.status().as_u16(), began.elapsed().as_millis() as u64);
    if response.status().is_server_error() {
        tracing::warn!(request = id, %method, path, status, ms);
    } else {
        tracing::debug!(request = id, %method, path, status, ms);
    }
    response
}

/// Numbers from one on, behind the daemon's process: of use where its log is.
#[derive(Clone, Debug, Default)]
struct RequestIds(Arc<AtomicU64>);

impl MakeRequestId for RequestIds {
    fn make_request_id<B>(&mut self, _: &axum::http::Request<B>) -> Option<RequestId> {
        let number = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        HeaderValue::try_from(format!("{}-{number}", std::process::id())).ok().map(RequestId::new)
    }
}
