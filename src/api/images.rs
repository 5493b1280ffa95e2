//! `/images`: shown, removed, and got from registries and out of archives, which tell of their progress line by line.
//!
//! A line is a JSON object with the member `event`. Those of progress may be lost where a client reads slowly; the last one is
//! `done` or `error`. What fails before the first line is an answer of its own.

use std::io::{self, Read};
use std::sync::Arc;

use axum::Json;
use axum::body::Body as Content;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::{Buf as _, Bytes};
use http_body_util::BodyExt as _;
use rootfs_builder::image::Platform;
use rootfs_builder::progress::Event;
use rootfs_builder::reference::{LocalName, NameError};
use rootfs_builder::source::{Format, Input, Local, Source, Stream};
use rootfs_builder::store::StoreError;
use serde::Deserialize;
use tokio::sync::mpsc::{Receiver, channel};
use tokio::time::timeout;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answers::{Envelope, Images, Progress, RemovedImage};
use super::input::{Body, Parameters};
use super::openapi::Binary;
use super::problem::Problem;
use super::success;
use super::transfer::{IDLE, PIECES};
use crate::daemon::{Daemon, DaemonError, Wanted, chain};
use crate::images::View;

/// Lines that wait for a client.
const WAITING: usize = 64;

pub(super) fn routes() -> OpenApiRouter<Arc<Daemon>> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(show, remove))
        .routes(routes!(show_by_name))
        .routes(routes!(pull))
        .routes(routes!(import))
}

/// An image of a registry.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = PullImage)]
struct Pull {
    /// As `voidrun images pull` takes it: python:3.12.
    reference: String,
    /// Which of a multi-platform image, as linux/arm64; this machine's where it is absent.
    #[serde(default)]
    platform: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Import {
    /// What the image is to be called.
    #[param(value_type = String)]
    name: LocalName,
}

type Answer<T> = Result<Json<Envelope<T>>, Problem>;
type Reference = Result<Path<String>, PathRejection>;

/// Lists the images of the store.
#[utoipa::path(
    get, path = "/images", operation_id = "listImages", tag = "images",
    responses((status = 200, description = "All of them", body = Images))
)]
async fn list(State(daemon): State<Arc<Daemon>>) -> Result<Json<Images>, Problem> {
    let (images, damaged) = daemon.images().await?;
    Ok(Json(Images { status: "success", message: "images", data: images, damaged }))
}

/// Shows an image.
#[utoipa::path(
    get, path = "/images/{*reference}", operation_id = "getImage", tag = "images",
    responses((status = 200, description = "The image", body = Envelope<View>))
)]
async fn show(State(daemon): State<Arc<Daemon>>, reference: Reference) -> Answer<View> {
    let image = daemon.show_image(text(reference)?).await.map_err(missing)?;
    Ok(success("image", image))
}

/// Shows an image, also one whose name is that of a route.
#[utoipa::path(
    get, path = "/images/name/{*reference}", operation_id = "getImageByName", tag = "images",
    responses((status = 200, description = "The image", body = Envelope<View>))
)]
async fn show_by_name(daemon: State<Arc<Daemon>>, reference: Reference) -> Answer<View> {
    show(daemon, reference).await
}

/// Removes an image.
///
/// One that a sandbox or a snapshot is made of stays (409), unless it has another name.
#[utoipa::path(
    delete, path = "/images/{*reference}", operation_id = "removeImage", tag = "images",
    responses(
        (
            status = 200,
            description = "Its name is gone, and what nothing else needs",
            body = Envelope<RemovedImage>
        )
    )
)]
async fn remove(State(daemon): State<Arc<Daemon>>, reference: Reference) -> Answer<RemovedImage> {
    let removed = daemon.remove_image(text(reference)?).await.map_err(missing)?;
    let freed_bytes = removed.iter().map(|removal| removal.freed_bytes).sum();
    Ok(success("image removed", RemovedImage { removed, freed_bytes }))
}

fn text(reference: Reference) -> Result<String, Problem> {
    reference.map(|Path(text)| text).map_err(|e| Problem::bad_request(e.body_text()))
}

/// Here an image is what was asked for, not a part of what was wanted.
fn missing(error: DaemonError) -> Problem {
    match error {
        DaemonError::Store(StoreError::NotFound(_)) | DaemonError::ImageName(NameError::DefaultImage) => {
            Problem::new(StatusCode::NOT_FOUND, "imageNotFound", chain(&error))
        }
        error => error.into(),
    }
}

/// Gets an image from a registry. It ends with its client.
#[utoipa::path(
    post, path = "/images/pull", operation_id = "pullImage", tag = "images",
    request_body = Pull,
    responses(
        (
            status = 200,
            description = "A `Progress` in each line; the last is `done` or `error`",
            body = String,
            content_type = "application/x-ndjson"
        )
    )
)]
async fn pull(State(daemon): State<Arc<Daemon>>, Body(body): Body<Pull>) -> Result<Response, Problem> {
    let platform = body.platform.map(|platform| platform.parse::<Platform>());
    let platform = platform.transpose().map_err(|wrong| Problem::field("platform", wrong))?;
    let source = Source::parse(&body.reference, |text| daemon.name_of_image(Some(text)));
    let source = source.map_err(|wrong| Problem::field("reference", chain(&wrong)))?;
    if let Source::Local(local) = &source {
        let wrong = format!("{local} is not in a registry: `POST /images/import` takes an archive");
        return Err(Problem::field("reference", wrong));
    }
    answer(daemon, Wanted { source, name: None, platform }).await
}

/// Makes an image of an archive: the body, of any size, as `docker save` writes it or an OCI layout.
#[utoipa::path(
    post, path = "/images/import", operation_id = "importImage", tag = "images",
    params(Import),
    request_body(content = inline(Binary), content_type = "application/x-tar"),
    responses(
        (
            status = 200,
            description = "A `Progress` in each line; the last is `done` or `error`",
            body = String,
            content_type = "application/x-ndjson"
        )
    )
)]
async fn import(
    State(daemon): State<Arc<Daemon>>,
    Parameters(Import { name }): Parameters<Import>,
    request: Request,
) -> Result<Response, Problem> {
    let input = Input::Stream(Stream::new(Archive::of(request.into_body())));
    let source = Source::Local(Local { input, format: Format::Any, tag: None });
    answer(daemon, Wanted { source, name: Some(name), platform: None }).await
}

/// Begins, and answers when there is something to tell. It is ended when the client goes.
async fn answer(daemon: Arc<Daemon>, wanted: Wanted) -> Result<Response, Problem> {
    let (sender, mut receiver) = channel::<Result<Bytes, Problem>>(WAITING);
    tokio::spawn(async move {
        let progress = |event: Event| {
            // Counts are absolute: the next line makes up for one that does not fit.
            let _ = sender.try_send(Ok(line(&Progress::Step(event))));
        };
        let result = tokio::select! {
            result = daemon.pull(wanted, &progress) => result,
            () = sender.closed() => return,
        };
        let last = match result {
            Ok(got) => Ok(line(&Progress::Done { event: "done", got: Box::new(got) })),
            Err(error) => Err(Problem::from(error)),
        };
        // Nothing is to be done for a client that does not take it.
        let _ = timeout(IDLE, sender.send(last)).await;
    });
    let first = receiver.recv().await.ok_or_else(|| Problem::from(DaemonError::Ending))??;
    let rest = ReceiverStream::new(receiver).map(|next| {
        next.unwrap_or_else(|problem| line(&Progress::Error { event: "error", problem: problem.document() }))
    });
    let lines = tokio_stream::once(first).chain(rest).map(Ok::<_, std::convert::Infallible>);
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson"), (header::CACHE_CONTROL, "no-cache")];
    Ok((headers, Content::from_stream(lines)).into_response())
}

fn line(value: &Progress) -> Bytes {
    // Nothing in it is what JSON cannot say.
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

/// A body for a thread that reads, no faster than that does.
struct Archive {
    pieces: Receiver<io::Result<Bytes>>,
    piece: Bytes,
}

impl Archive {
    fn of(mut body: Content) -> Self {
        let (sender, pieces) = channel(PIECES);
        tokio::spawn(async move {
            loop {
                let next = tokio::select! {
                    next = timeout(IDLE, body.frame()) => next,
                    () = sender.closed() => return,
                };
                let piece = match next {
                    Ok(None) => return,
                    Ok(Some(Ok(frame))) => Ok(frame.into_data().unwrap_or_default()),
                    Ok(Some(Err(error))) => Err(io::Error::other(error)),
                    Err(_) => Err(io::ErrorKind::TimedOut.into()),
                };
                let failed = piece.is_err();
                if sender.send(piece).await.is_err() || failed {
                    return;
                }
            }
        });
        Self { pieces, piece: Bytes::new() }
    }
}

impl Read for Archive {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let count = self.piece.len().min(out.len());
        self.piece.copy_to_slice(&mut out[..count]);
        Ok(count)
    }
}
