//! Servers and connections that fail, on a schedule: the pull ends right, or with the error that fits.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use rootfs_builder::image::Platform;
use rootfs_builder::registry::{Reference, Registry, RegistryError};

use crate::content::{Content, Image, noise};
use crate::server::{Ending, Reply, Request, Server};
use crate::{Events, client, config, reference, within};

const SIZE: usize = 2_000_000;

/// What goes wrong with an answer.
#[derive(Clone)]
enum Fault {
    None,
    Status(u16, Option<String>),
    Ending(Ending),
    /// The byte at this place of the answer is another one.
    Corrupt(usize),
    IgnoreRange,
    /// The same, and the connection drops after so many bytes.
    IgnoreRangeAndDrop(usize),
    /// A range, but not the one that was asked for.
    WrongRange,
    /// More bytes than the blob has.
    TooLong,
    /// The same, without saying so beforehand.
    TooLongUnannounced,
}

fn retry_after(status: u16, wait: &str) -> Fault {
    Fault::Status(status, Some(wait.into()))
}

fn answer(content: &Content, request: &Request, fault: &Fault) -> Reply {
    let mut reply = content.reply(request);
    match fault {
        Fault::None => {}
        Fault::Status(status, wait) => {
            reply = Reply::new(*status, r#"{"errors":[{"code":"X","message":"on purpose"}]}"#);
            if let Some(wait) = wait {
                reply = reply.header("Retry-After", wait);
            }
        }
        Fault::Ending(ending) => reply.ending = *ending,
        Fault::Corrupt(at) => reply.body[*at] ^= 1,
        Fault::IgnoreRange | Fault::IgnoreRangeAndDrop(_) => {
            let mut whole = request.clone();
            whole.headers.retain(|(name, _)| name != "range");
            reply = content.reply(&whole);
            if let Fault::IgnoreRangeAndDrop(n) = fault {
                reply.ending = Ending::Drop(*n);
            }
        }
        Fault::WrongRange => {
            for (name, value) in &mut reply.headers {
                if name == "Content-Range" {
                    *value = format!("bytes 0-{}/{SIZE}", SIZE - 1);
                }
            }
        }
        Fault::TooLong => reply.body.extend_from_slice(b"more"),
        Fault::TooLongUnannounced => {
            reply.body.extend_from_slice(&noise(9, 100_000));
            reply.ending = Ending::Truncate(usize::MAX);
        }
    }
    reply
}

/// A registry with one image, whose answers about the layer (or, with `manifests`, about the tag) have these faults, one after the other.
async fn registry(image: &Image, manifests: bool, faults: &[Fault]) -> Server {
    let content = Content::of("app", "1", image);
    let place = if manifests { "/v2/app/manifests/1".into() } else { layer_path(image) };
    let faults: Mutex<VecDeque<Fault>> = Mutex::new(faults.iter().cloned().collect());
    Server::start(move |request| {
        let fault = (request.path == place).then(|| faults.lock().unwrap().pop_front()).flatten();
        answer(&content, request, &fault.unwrap_or(Fault::None))
    })
    .await
}

fn layer_path(image: &Image) -> String {
    format!("/v2/app/blobs/{}", image.layer().digest)
}

/// What a file holds.
fn bytes(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

async fn pull(
    client: &Registry,
    app: &Reference,
    image: &Image,
    part: &File,
    events: &Events,
) -> Result<(), RegistryError> {
    client.blob(app, &image.layer(), part, &|event| events.take(event)).await
}

/// Pulls a layer through faults; it has to arrive. The bytes that were sent with each answer, and the ranges asked for.
async fn survives(faults: &[Fault], before: &[u8]) -> (Vec<usize>, Vec<usize>, Events) {
    let image = Image::new(1, SIZE);
    let server = registry(&image, false, faults).await;
    let (part, events) = (tempfile::tempfile().unwrap(), Events::default());
    part.write_all_at(before, 0).unwrap();
    let app = reference(&server.host(), "app:1");
    pull(&client(), &app, &image, &part, &events).await.unwrap();
    assert!(bytes(&part) == image.layer);
    let seen = server.seen();
    let ranges = seen.iter().map(|(request, _)| request.range_start().unwrap_or(0)).collect();
    (seen.iter().map(|(_, sent)| *sent).collect(), ranges, events)
}

/// Pulls a layer that cannot arrive. The error, and what the part holds afterwards.
async fn fails(faults: &[Fault]) -> (RegistryError, Vec<u8>) {
    let image = Image::new(1, SIZE);
    let server = registry(&image, false, faults).await;
    let part = tempfile::tempfile().unwrap();
    let app = reference(&server.host(), "app:1");
    let error = pull(&client(), &app, &image, &part, &Events::default()).await.unwrap_err();
    assert!(error.to_string().contains(&server.host()), "{error}");
    (error, bytes(&part))
}

#[tokio::test]
async fn dropped_connections_are_resumed() {
    within(async {
        let drop = |n| Fault::Ending(Ending::Drop(n));
        let faults = [drop(500_000), drop(0), Fault::Ending(Ending::Nothing), drop(700_000)];
        let (sent, ranges, events) = survives(&faults, &[]).await;
        // Each byte is sent once, unless the client had not read it before the connection ended.
        assert_eq!(ranges.len(), 5);
        assert!(ranges.is_sorted() && ranges[1] > 0, "{ranges:?}");
        assert!(sent.iter().sum::<usize>() <= SIZE + 200_000, "{sent:?}");
        assert_eq!(events.retries().len(), 4);
    })
    .await;
}

#[tokio::test]
async fn progress_renews_the_patience() {
    within(async {
        // Many more faults than attempts.
        let faults = vec![Fault::Ending(Ending::Drop(150_000)); 12];
        let (_, ranges, _) = survives(&faults, &[]).await;
        assert_eq!(ranges.len(), 13);
    })
    .await;
}

#[tokio::test]
async fn a_trickle_is_no_progress() {
    within(async {
        let (error, part) = fails(&vec![Fault::Ending(Ending::Drop(10)); 100]).await;
        assert!(matches!(error, RegistryError::Connection { .. }), "{error:?}");
        // What has come can be continued from.
        assert!(part.len() <= 40 && Image::new(1, SIZE).layer.starts_with(&part));
    })
    .await;
}

#[tokio::test]
async fn what_is_there_is_not_fetched_again() {
    within(async {
        let image = Image::new(1, SIZE);
        let (sent, ranges, _) = survives(&[], &image.layer[..1_900_000]).await;
        assert_eq!((sent, ranges), (vec![100_000], vec![1_900_000]));
        // All of it: only verified.
        let (sent, _, _) = survives(&[], &image.layer).await;
        assert_eq!(sent, [0; 0]);
    })
    .await;
}

#[tokio::test]
async fn a_bad_beginning_is_thrown_away() {
    within(async {
        let (sent, ranges, _) = survives(&[], &noise(7, 1_000_000)).await;
        assert_eq!((sent, ranges), (vec![1_000_000, SIZE], vec![1_000_000, 0]));
        // Longer than the blob, and as long as it.
        for length in [SIZE + 1, SIZE] {
            assert_eq!(survives(&[], &noise(7, length)).await.0, [SIZE]);
        }
    })
    .await;
}

#[tokio::test]
async fn a_server_without_ranges_starts_over() {
    within(async {
        let drop = Fault::Ending(Ending::Drop(1_000_000));
        let (sent, _, _) = survives(&[drop, Fault::IgnoreRange], &[]).await;
        assert_eq!(sent, [1_000_000, SIZE]);
        // It says 416 to a range that is fine, or gives another one.
        let before = &Image::new(1, SIZE).layer[..1000];
        let (_, ranges, _) = survives(&[Fault::Status(416, None)], before).await;
        assert_eq!(ranges, [1000, 0]);
        let (_, ranges, _) = survives(&[Fault::WrongRange], before).await;
        assert_eq!(ranges, [1000, 0]);
    })
    .await;
}

#[tokio::test]
async fn a_server_that_never_gets_to_the_end_is_given_up() {
    within(async {
        // Each time most of it, each time from the start.
        let (error, _) = fails(&vec![Fault::IgnoreRangeAndDrop(1_800_000); 100]).await;
        assert!(matches!(error, RegistryError::Connection { .. }), "{error:?}");
    })
    .await;
}

#[tokio::test]
async fn truncated_bodies_are_resumed() {
    within(async {
        let (sent, ranges, _) = survives(&[Fault::Ending(Ending::Truncate(800_000))], &[]).await;
        assert_eq!((sent, ranges), (vec![800_000, 1_200_000], vec![0, 800_000]));
    })
    .await;
}

#[tokio::test]
async fn corrupt_bytes_never_pass() {
    within(async {
        // In the middle, in the last byte, and in a resumed rest.
        let (sent, _, _) = survives(&[Fault::Corrupt(1_000_000), Fault::Corrupt(SIZE - 1)], &[]).await;
        assert_eq!(sent, [SIZE; 3]);
        let drop = Fault::Ending(Ending::Drop(1_000_000));
        survives(&[drop, Fault::Corrupt(5)], &[]).await;
        // At the source.
        let (error, part) = fails(&vec![Fault::Corrupt(0); 100]).await;
        assert!(matches!(error, RegistryError::DigestMismatch { .. }), "{error:?}");
        assert!(part.is_empty());
    })
    .await;
}

#[tokio::test]
async fn nothing_is_written_beyond_the_size() {
    within(async {
        survives(&[Fault::TooLong, Fault::TooLongUnannounced], &[]).await;
        for fault in [Fault::TooLong, Fault::TooLongUnannounced] {
            let (error, part) = fails(&vec![fault; 100]).await;
            assert!(matches!(error, RegistryError::TooLarge { .. }), "{error:?}");
            assert!(part.is_empty());
        }
    })
    .await;
}

#[tokio::test]
async fn busy_servers_are_waited_for() {
    within(async {
        let statuses = [500, 502, 503];
        let (_, _, events) = survives(&statuses.map(|s| Fault::Status(s, None)), &[]).await;
        assert_eq!(events.retries().len(), 3);
        // As long as it asks for, but not longer than the policy's two seconds.
        let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_hours(1));
        let (_, _, events) = survives(&[retry_after(429, "0"), retry_after(503, &date)], &[]).await;
        let waits: Vec<u64> = events.retries().into_iter().map(|(_, ms)| ms).collect();
        assert_eq!(waits, [0, 2000]);
        let (error, _) = fails(&vec![Fault::Status(504, None); 9]).await;
        assert!(matches!(error, RegistryError::Status { status: 504, .. }), "{error:?}");
        let (error, _) = fails(&vec![retry_after(429, "0"); 9]).await;
        assert!(error.to_string().contains("voidrun login"), "{error}");
        assert!(matches!(error, RegistryError::RateLimited { presented: false, .. }), "{error:?}");
    })
    .await;
}

#[tokio::test]
async fn silence_has_a_deadline() {
    within(async {
        let mut config = config();
        config.retry.read_timeout = Duration::from_millis(200);
        config.retry.attempts = 2;
        let image = Image::new(1, SIZE);
        let app = |server: &Server| reference(&server.host(), "app:1");
        let stall = |n| Fault::Ending(Ending::Stall(n));
        // In the middle of a body: resumed.
        let server = registry(&image, false, &[stall(300_000)]).await;
        let (part, events) = (tempfile::tempfile().unwrap(), Events::default());
        let client = Registry::new(config).unwrap();
        pull(&client, &app(&server), &image, &part, &events).await.unwrap();
        assert_eq!(server.seen()[1].0.range_start(), Some(300_000));
        // Always.
        let server = registry(&image, true, &[stall(0), stall(0)]).await;
        let error = client.resolve(&app(&server), &Platform::host(), &|_| {}).await.unwrap_err();
        assert!(matches!(error, RegistryError::Timeout { .. }), "{error:?}");
    })
    .await;
}

#[tokio::test]
async fn documents_are_tried_again_and_never_wrong() {
    within(async {
        let image = Image::new(1, 10);
        let resolve = async |faults: &[Fault]| {
            let server = registry(&image, true, faults).await;
            let resolved =
                client().resolve(&reference(&server.host(), "app:1"), &Platform::host(), &|_| {}).await;
            (resolved, server.seen().len())
        };
        let faults =
            [Fault::Corrupt(9), Fault::Ending(Ending::Drop(50)), Fault::Ending(Ending::Truncate(50))];
        let (resolved, requests) = resolve(&faults).await;
        assert_eq!((resolved.unwrap().1, requests), (image.manifest.clone(), 4));
        let (resolved, _) = resolve(&vec![Fault::Corrupt(9); 9]).await;
        assert!(matches!(resolved, Err(RegistryError::DigestMismatch { .. })));
        // What will not change is not asked again.
        let (resolved, requests) = resolve(&[Fault::Status(400, None)]).await;
        assert!(matches!(resolved, Err(RegistryError::Status { status: 400, .. })) && requests == 1);
    })
    .await;
}

#[tokio::test]
async fn parallel_layers_share_a_client() {
    within(async {
        let images: Vec<Image> = (0..8).map(|seed| Image::new(seed, 300_000)).collect();
        let mut content = Content::default();
        for image in &images {
            content.blob("app", &image.layer);
        }
        let turn = Mutex::new(0);
        let server = Server::start(move |request| {
            let mut turn = turn.lock().unwrap();
            *turn += 1;
            let fault = if *turn % 2 == 0 { Fault::Ending(Ending::Drop(100_000)) } else { Fault::None };
            answer(&content, request, &fault)
        })
        .await;
        let client = client();
        let mut pulls = tokio::task::JoinSet::new();
        for image in images {
            let (client, app) = (client.clone(), reference(&server.host(), "app:1"));
            pulls.spawn(async move {
                let part = tempfile::tempfile().unwrap();
                client.blob(&app, &image.layer(), &part, &|_| {}).await.unwrap();
                assert!(bytes(&part) == image.layer);
            });
        }
        while let Some(pulled) = pulls.join_next().await {
            pulled.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn a_full_disk_is_not_the_registrys_fault() {
    within(async {
        let image = Image::new(1, SIZE);
        let server = registry(&image, false, &[]).await;
        let full = File::options().read(true).write(true).open("/dev/full").unwrap();
        let app = reference(&server.host(), "app:1");
        let error = pull(&client(), &app, &image, &full, &Events::default()).await.unwrap_err();
        assert!(matches!(error, RegistryError::Part { .. }), "{error:?}");
        assert!(crate::chain(&error).contains("No space left"), "{}", crate::chain(&error));
        assert_eq!(server.seen().len(), 1);
    })
    .await;
}
