//! Servers that mean harm, and places that are not there.

use std::sync::{Arc, OnceLock};

use rootfs_builder::image::{Digest, MAX_DOCUMENT, Platform};
use rootfs_builder::registry::{Registry, RegistryError};

use crate::content::{Content, INDEX, Image, MANIFEST, descriptor, index};
use crate::server::{Ending, Reply, Request, Server};
use crate::{client, config, reference, within};

async fn resolve(server: &Server) -> RegistryError {
    client().resolve(&reference(&server.host(), "app:1"), &Platform::host(), &|_| {}).await.unwrap_err()
}

/// A server that gives one answer to everything, but says who it is.
async fn always(reply: Reply) -> Server {
    Server::start(
        move |request: &Request| {
            if request.path == "/v2/" { Reply::new(200, "{}") } else { reply.clone() }
        },
    )
    .await
}

#[tokio::test]
async fn documents_are_bounded() {
    within(async {
        let huge = vec![b' '; MAX_DOCUMENT as usize + 1];
        for ending in [Ending::Whole, Ending::Truncate(usize::MAX)] {
            let error = resolve(&always(Reply::new(200, &huge).ending(ending)).await).await;
            assert!(matches!(error, RegistryError::TooLarge { .. }), "{error:?}");
        }
        // A configuration that claims to be huge is not even asked for; one that is longer than it says is not read.
        let server = always(Reply::new(200, vec![b' '; 1000])).await;
        let app = reference(&server.host(), "app:1");
        let mut blob = descriptor("x", &[b' '; 1000]);
        blob.size = 999;
        let error = client().document(&app, &blob, &|_| {}).await.unwrap_err();
        assert!(matches!(error, RegistryError::TooLarge { limit: 999, .. }), "{error:?}");
        blob.size = 1001;
        let error = client().document(&app, &blob, &|_| {}).await.unwrap_err();
        assert!(matches!(error, RegistryError::Size { got: 1000, .. }), "{error:?}");
        blob.size = u64::MAX;
        let error = client().document(&app, &blob, &|_| {}).await.unwrap_err();
        assert!(matches!(error, RegistryError::TooLarge { limit: MAX_DOCUMENT, .. }), "{error:?}");
    })
    .await;
}

#[tokio::test]
async fn what_is_no_image() {
    within(async {
        for body in ["", "null", "<html>", "{}", r#"{"manifests":[]}"#, &"[".repeat(100_000)] {
            let error = resolve(&always(Reply::new(200, body)).await).await;
            assert!(matches!(error, RegistryError::Manifest { .. }), "{error:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn nested_without_end() {
    within(async {
        let mut content = Content::default();
        let mut bytes = Image::new(1, 10).manifest;
        content.document("app", &Digest::of(&bytes).to_string(), MANIFEST, &bytes);
        for level in 0..6 {
            let media_type = if level == 0 { MANIFEST } else { INDEX };
            bytes = index(&[(media_type, &bytes, "")]);
            content.document("app", &Digest::of(&bytes).to_string(), INDEX, &bytes);
            content.document("app", &level.to_string(), INDEX, &bytes);
        }
        let server = Server::start(move |request| content.reply(request)).await;
        let resolve = async |tag: &str| {
            let app = reference(&server.host(), &format!("app:{tag}"));
            client().resolve(&app, &Platform::host(), &|_| {}).await
        };
        assert!(resolve("3").await.is_ok());
        assert!(matches!(resolve("4").await, Err(RegistryError::TooDeep { .. })));
    })
    .await;
}

#[tokio::test]
async fn redirects_end() {
    within(async {
        let loops = always(Reply::new(307, "").header("Location", "/v2/again")).await;
        let error = resolve(&loops).await;
        assert!(matches!(error, RegistryError::Redirect { .. }), "{error:?}");
        assert_eq!(loops.seen().len(), 11);
        for target in ["file:///etc/passwd", "gopher://x/", "http://", "\u{80}"] {
            let error = resolve(&always(Reply::new(302, "").header("Location", target)).await).await;
            assert!(matches!(error, RegistryError::Redirect { .. }), "{target}: {error:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn blobs_may_come_from_elsewhere() {
    within(async {
        let image = Image::new(1, 100_000);
        let mut content = Content::default();
        content.put("/cdn", "application/octet-stream", &image.layer);
        let cdn = Server::start(move |request| content.reply(request)).await;
        let target = format!("http://user:secret@{}/cdn?signature=secret", cdn.host());
        let server = always(Reply::new(307, "").header("Location", &target)).await;
        let part = tempfile::tempfile().unwrap();
        let app = reference(&server.host(), "app:1");
        client().blob(&app, &image.layer(), &part, &|_| {}).await.unwrap();
        let (request, _) = &cdn.seen()[0];
        assert_eq!((request.query.as_str(), request.header("authorization")), ("signature=secret", None));
        // An error about it names the place, not the secret.
        let wrong = client().blob(&app, &Image::new(2, 100_000).layer(), &part, &|_| {}).await.unwrap_err();
        assert!(wrong.to_string().contains("/cdn") && !wrong.to_string().contains("secret"), "{wrong}");
    })
    .await;
}

#[tokio::test]
async fn messages_cannot_write_to_the_terminal() {
    within(async {
        let body = r#"{"errors":[{"code":"DENIED","message":"\u001b[2J\r\nvoidrun: all is well"}]}"#;
        let error = resolve(&always(Reply::new(403, body)).await).await;
        assert!(matches!(error, RegistryError::Unauthorized { .. }));
        assert!(!error.to_string().contains(char::is_control), "{error}");
    })
    .await;
}

#[tokio::test]
async fn nobody_there() {
    within(async {
        let asks = async |host: &str| {
            client().resolve(&reference(host, "app:1"), &Platform::host(), &|_| {}).await.unwrap_err()
        };
        // A port that was free a moment ago.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = asks(&free.to_string()).await;
        assert!(matches!(error, RegistryError::Refused { .. }), "{error:?}");
        assert!(error.to_string().contains(&free.to_string()));
        // Reserved never to exist (RFC 2606).
        let error = asks("registry.invalid").await;
        assert!(matches!(error, RegistryError::UnknownHost { .. }), "{error:?}");
        assert!(error.to_string().contains("registry.invalid"));
    })
    .await;
}

#[tokio::test]
async fn a_registry_that_was_there_is_waited_for() {
    within(async {
        // It answers the first question and is gone: now a refusal is a passing one.
        let image = Image::new(1, 500_000);
        let content = Content::of("app", "1", &image);
        let gone: Arc<OnceLock<()>> = Arc::default();
        let up = gone.clone();
        let server = Server::start(move |request| {
            if up.get().is_some() {
                Reply::new(500, "").ending(Ending::Nothing)
            } else {
                content.reply(request)
            }
        })
        .await;
        let events = crate::Events::default();
        let (client, app) = (client(), reference(&server.host(), "app:1"));
        client.resolve(&app, &Platform::host(), &|_| {}).await.unwrap();
        gone.set(()).unwrap();
        let part = tempfile::tempfile().unwrap();
        let error = client.blob(&app, &image.layer(), &part, &|e| events.take(e)).await.unwrap_err();
        assert!(matches!(error, RegistryError::Connection { .. }), "{error:?}");
        assert_eq!(events.retries().len(), 3);
    })
    .await;
}

#[tokio::test]
async fn settings_are_checked() {
    for host in ["http://mirror", "a b", "user@host", ""] {
        let mut wrong = config();
        wrong.insecure = vec![host.into()];
        assert!(matches!(Registry::new(wrong), Err(RegistryError::Host { .. })), "{host}");
        let mut wrong = config();
        wrong.mirrors.insert("docker.io".into(), vec![host.into()]);
        assert!(matches!(Registry::new(wrong), Err(RegistryError::Host { .. })), "{host}");
    }
    let app = format!("127.0.0.1:9/app@sha512:{}", "0".repeat(128)).parse().unwrap();
    let error = client().resolve(&app, &Platform::host(), &|_| {}).await.unwrap_err();
    assert!(matches!(error, RegistryError::DigestAlgorithm { .. }), "{error:?}");
}
