//! Mirrors are tried first, and make nothing worse.

use rootfs_builder::image::Platform;
use rootfs_builder::registry::{Registry, RegistryError};

use crate::content::{Content, Image};
use crate::real::RealRegistry;
use crate::server::{Reply, Server};
use crate::{Events, config, reference, within};

fn client(origin: &str, mirrors: &[&str]) -> Registry {
    let mut config = config();
    config.mirrors.insert(origin.into(), mirrors.iter().map(ToString::to_string).collect());
    Registry::new(config).unwrap()
}

/// Where nobody listens.
fn nowhere() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

async fn pull(client: &Registry, host: &str, image: &Image, events: &Events) -> Result<(), RegistryError> {
    let app = reference(host, "app:1");
    let progress = |event| events.take(event);
    let (manifest, _) = client.resolve(&app, &Platform::host(), &progress).await?;
    client.document(&app, &manifest.config, &progress).await?;
    let part = tempfile::tempfile().unwrap();
    client.blob(&app, &manifest.layers[0], &part, &progress).await?;
    assert_eq!(manifest.digest, image.digest());
    Ok(())
}

#[tokio::test]
async fn the_first_that_has_it() {
    within(async {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let image = Image::new(1, 200_000);
        let full = RealRegistry::start(dir.path(), "");
        full.push("app", "1", &image).await;
        let empty = RealRegistry::start(other.path(), "");
        let down = nowhere();
        // Down, without the image, and with it; the registry itself is not needed.
        let events = Events::default();
        let client = client("registry.invalid", &[&down, &empty.host, &full.host]);
        pull(&client, "registry.invalid", &image, &events).await.unwrap();
        let reasons: Vec<String> = events.retries().into_iter().map(|(reason, _)| reason).collect();
        // The one that is down is asked once, the empty one for each of the three.
        assert_eq!(reasons.iter().filter(|reason| reason.contains(&down)).count(), 1, "{reasons:?}");
        assert_eq!(reasons.iter().filter(|reason| reason.contains(&empty.host)).count(), 3, "{reasons:?}");
    })
    .await;
}

#[tokio::test]
async fn the_registry_itself_is_the_last() {
    within(async {
        let image = Image::new(1, 200_000);
        let content = Content::of("app", "1", &image);
        let origin = Server::start(move |request| content.reply(request)).await;
        for status in [401, 403, 404, 429, 500, 200] {
            let mirror = Server::start(move |_| Reply::new(status, "what is this?")).await;
            let mirrored = client(&origin.host(), &[&mirror.host()]);
            let pulled = pull(&mirrored, &origin.host(), &image, &Events::default()).await;
            // A mirror that answers with nonsense to a tag cannot be told from a registry that has nonsense.
            assert_eq!(pulled.is_ok(), status != 200, "{status}: {pulled:?}");
        }
        // Of errors, the registry's own counts.
        let unknown = client("registry.invalid", &[&nowhere()]);
        let error = pull(&unknown, "registry.invalid", &image, &Events::default()).await.unwrap_err();
        assert!(matches!(error, RegistryError::UnknownHost { .. }), "{error:?}");
    })
    .await;
}

#[tokio::test]
async fn a_blob_that_one_began_another_ends() {
    within(async {
        let image = Image::new(1, 1_000_000);
        let (content, rest) = (Content::of("app", "1", &image), Content::of("app", "1", &image));
        let mirror = Server::start(move |request| {
            let reply = content.reply(request);
            match request.range_start() {
                _ if !request.path.contains("/blobs/") => reply,
                None => reply.ending(crate::server::Ending::Truncate(400_000)),
                Some(_) => Reply::new(404, ""),
            }
        })
        .await;
        let origin = Server::start(move |request| rest.reply(request)).await;
        let part = tempfile::tempfile().unwrap();
        let client = client(&origin.host(), &[&mirror.host()]);
        client.blob(&reference(&origin.host(), "app:1"), &image.layer(), &part, &|_| {}).await.unwrap();
        let (request, sent) = &origin.seen()[0];
        assert_eq!((request.range_start(), *sent), (Some(400_000), 600_000));
    })
    .await;
}

#[tokio::test]
async fn damage_at_a_mirror_is_made_good() {
    within(async {
        let image = Image::new(1, 100_000);
        let content = Content::of("app", "1", &image);
        let bad = content.clone();
        let mirror = Server::start(move |request| {
            let mut reply = bad.reply(request);
            reply.body.iter_mut().take(1).for_each(|byte| *byte ^= 1);
            reply
        })
        .await;
        let origin = Server::start(move |request| content.reply(request)).await;
        let client = client(&origin.host(), &[&mirror.host()]);
        pull(&client, &origin.host(), &image, &Events::default()).await.unwrap();
    })
    .await;
}
