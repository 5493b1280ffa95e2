//! Anonymous pulls from a real registry.

use std::fs::File;
use std::io::Read as _;
use std::sync::atomic::Ordering;

use rootfs_builder::image::{Digest, Platform};
use rootfs_builder::registry::RegistryError;

use crate::content::{INDEX, Image, MANIFEST, index};
use crate::real::{RealRegistry, breaking_line};
use crate::{client, reference, within};

fn platform(text: &str) -> Platform {
    text.parse().unwrap()
}

#[tokio::test]
async fn an_image_arrives_whole() {
    within(async {
        let dir = tempfile::tempdir().unwrap();
        let registry = RealRegistry::start(dir.path(), "");
        let image = Image::new(1, 3_000_000);
        registry.push("team/app", "1.0", &image).await;
        let (client, by_tag) = (client(), reference(&registry.host, "team/app:1.0"));
        let (manifest, bytes) = client.resolve(&by_tag, &Platform::host(), &|_| {}).await.unwrap();
        assert_eq!((manifest.digest, &bytes), (image.digest(), &image.manifest));
        let by_digest = reference(&registry.host, &format!("team/app:other@{}", image.digest()));
        assert_eq!(client.resolve(&by_digest, &Platform::host(), &|_| {}).await.unwrap().0, manifest);

        let config = client.document(&by_tag, &manifest.config, &|_| {}).await.unwrap();
        assert_eq!(config, image.config);
        let path = dir.path().join("part");
        // Half of it is there from before: the real registry serves ranges.
        std::fs::write(&path, &image.layer[..1_500_000]).unwrap();
        let part = File::options().read(true).write(true).open(&path).unwrap();
        client.blob(&by_tag, &manifest.layers[0], &part, &|_| {}).await.unwrap();
        assert!(std::fs::read(&path).unwrap() == image.layer);
    })
    .await;
}

#[tokio::test]
async fn a_line_that_breaks() {
    within(async {
        let dir = tempfile::tempdir().unwrap();
        let registry = RealRegistry::start(dir.path(), "");
        let image = Image::new(1, 5_000_000);
        registry.push("app", "1", &image).await;
        let (host, carried) = breaking_line(&registry.host, 400_000).await;
        let path = dir.path().join("part");
        let part = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        client().blob(&reference(&host, "app:1"), &image.layer(), &part, &|_| {}).await.unwrap();
        assert!(std::fs::read(&path).unwrap() == image.layer);
        // Continued each time: starting over would have carried many times as much.
        let carried = carried.load(Ordering::SeqCst);
        assert!((4_000_000..6_000_000).contains(&carried), "{carried}");
    })
    .await;
}

#[tokio::test]
async fn indexes_lead_to_the_platform() {
    within(async {
        let dir = tempfile::tempdir().unwrap();
        let registry = RealRegistry::start(dir.path(), "");
        let images: Vec<Image> = (10..14).map(|seed| Image::new(seed, 1000)).collect();
        for image in &images {
            registry.push("app", &image.digest().to_string(), image).await;
        }
        let arm = index(&[
            (MANIFEST, &images[1].manifest, "linux/arm/v7"),
            (MANIFEST, &images[2].manifest, "linux/arm/v6"),
        ]);
        registry.push_manifest("app", &Digest::of(&arm).to_string(), INDEX, &arm).await;
        let top = index(&[
            (MANIFEST, &images[0].manifest, "linux/amd64"),
            (MANIFEST, &images[3].manifest, "unknown/unknown"),
            (INDEX, &arm, ""),
        ]);
        registry.push_manifest("app", "multi", INDEX, &top).await;

        let (client, app) = (client(), reference(&registry.host, "app:multi"));
        for (wanted, image) in [("linux/amd64", 0), ("linux/arm/v7", 1), ("linux/arm/v6", 2)] {
            let (manifest, _) = client.resolve(&app, &platform(wanted), &|_| {}).await.unwrap();
            assert_eq!(manifest.digest, images[image].digest(), "{wanted}");
        }
        let error = client.resolve(&app, &platform("linux/arm/v5"), &|_| {}).await.unwrap_err();
        assert!(crate::chain(&error).contains("linux/arm/v7"), "{}", crate::chain(&error));
    })
    .await;
}

#[tokio::test]
async fn what_does_not_exist() {
    within(async {
        let dir = tempfile::tempdir().unwrap();
        let registry = RealRegistry::start(dir.path(), "");
        registry.push("app", "1", &Image::new(1, 10)).await;
        let client = client();
        for name in ["app:2", "other:1"] {
            let name = reference(&registry.host, name);
            let error = client.resolve(&name, &Platform::host(), &|_| {}).await.unwrap_err();
            assert!(matches!(error, RegistryError::NotFound { .. }), "{error:?}");
            assert!(error.to_string().contains(&name.to_string()) && error.to_string().contains("UNKNOWN"));
        }
        let absent = Image::new(2, 10);
        let part = tempfile::tempfile().unwrap();
        let app = reference(&registry.host, "app:1");
        let error = client.blob(&app, &absent.layer(), &part, &|_| {}).await.unwrap_err();
        assert!(matches!(error, RegistryError::BlobNotFound { .. }), "{error:?}");
    })
    .await;
}

#[tokio::test]
async fn an_empty_blob_needs_no_request() {
    within(async {
        let mut part = tempfile::tempfile().unwrap();
        // Nobody listens at the discard port.
        let nowhere = reference("127.0.0.1:9", "app:1");
        client().blob(&nowhere, &Image::new(1, 0).layer(), &part, &|_| {}).await.unwrap();
        assert_eq!(part.read(&mut [0]).unwrap(), 0);
    })
    .await;
}
