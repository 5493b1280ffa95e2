//! The HTTP API: routes, wire types, errors, streams. Nothing here knows of machines: what is asked for is the daemon's to do.
//!
//! The same tree is at `/v1` and `/api`, which differ in what a client may get wrong alone, see [`input::Wire`].

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
mod problem;
mod sandboxes;
mod session;
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
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde_json::{Value, json};
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer};

use crate::daemon::Daemon;
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
    Router::new()
        .merge(system())
        .nest("/v1", tree().layer(Extension(Wire::Strict)))
        .nest("/api", tree().layer(Extension(Wire::Lenient)))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(layers)
        .with_state(daemon)
}

fn tree() -> Router<Arc<Daemon>> {
    system()
        .route("/sandboxes", post(sandboxes::create).get(sandboxes::list))
        .route("/sandboxes/{id}", get(sandboxes::get).patch(sandboxes::change).delete(sandboxes::remove))
        .route("/sandboxes/{id}/start", post(sandboxes::start))
        .route("/sandboxes/{id}/stop", post(sandboxes::stop))
        .route("/sandboxes/{id}/pause", post(sandboxes::pause))
        .route("/sandboxes/{id}/resume", post(sandboxes::resume))
        .route("/sandboxes/{id}/stats", get(sandboxes::stats))
        .route("/sandboxes/{id}/logs", get(logs::logs))
        .route("/sandboxes/{id}/sleep", post(sandboxes::not_there_yet))
        .route("/sandboxes/{id}/wake", post(sandboxes::not_there_yet))
        .route("/sandboxes/{id}/public-urls", get(sandboxes::public_urls))
        .route("/sandboxes/{id}/exec", post(exec::exec))
        .route("/sandboxes/{id}/exec-stream", post(stream::exec))
        .route("/sandboxes/{id}/code", post(code::run))
        .route("/sandboxes/{id}/commands/run", post(commands::run))
        .route("/sandboxes/{id}/commands/list", get(commands::list))
        .route("/sandboxes/{id}/commands/wait", post(commands::wait))
        .route("/sandboxes/{id}/commands/kill", post(commands::kill))
        .route("/sandboxes/{id}/commands/attach", post(stream::attach))
        .merge(files::routes())
        .route("/sandboxes/{id}/pty", get(terminal::ephemeral))
        .route("/sandboxes/{id}/pty/sessions", get(terminal::list).post(terminal::create))
        .route("/sandboxes/{id}/pty/sessions/{session}", get(terminal::connect).delete(terminal::delete))
        .route("/sandboxes/{id}/pty/sessions/{session}/resize", post(terminal::resize))
        .route("/sandboxes/{id}/pty/sessions/{session}/buffer", get(terminal::buffer))
        .route("/sandboxes/{id}/pty/sessions/{session}/execute", post(terminal::execute))
        .route("/sandboxes/{id}/session-exec", post(terminal_exec::exec))
        .route("/sandboxes/{id}/session-exec-stream", post(terminal_exec::stream))
        .merge(images::routes())
        .route("/events", get(events::follow))
}

fn system() -> Router<Arc<Daemon>> {
    Router::new()
        .route("/healthz", get(async || Json(json!({ "status": "ok" }))))
        .route("/version", get(version))
        .route("/metrics", get(metrics))
}

async fn version(State(daemon): State<Arc<Daemon>>) -> Json<types::Version> {
    Json(types::Version {
        version: crate::version().to_owned(),
        pid: std::process::id(),
        home: daemon.config().home.value.display().to_string(),
    })
}

async fn metrics(State(daemon): State<Arc<Daemon>>) -> impl IntoResponse {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, OPEN_METRICS)], daemon.scrape())
}

/// The envelope of an answer.
fn success(message: &str, data: impl serde::Serialize) -> Json<Value> {
    Json(json!({ "status": "success", "message": message, "data": data }))
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
