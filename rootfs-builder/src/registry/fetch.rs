//! Manifests, indexes and configurations: small, read into memory, verified before they are parsed.

use reqwest::header::{ACCEPT, HeaderMap, HeaderValue};

use super::auth::Asked;
use super::error::RegistryError;
use super::http::Answer;
use super::retry::{Attempts, Failure};
use super::status::Refusal;
use super::{Inner, MIRROR_ATTEMPTS, Reference, Registry};
use crate::image::{Descriptor, Digest, Document, MAX_DOCUMENT, MAX_INDEX_DEPTH, Manifest, Platform};
use crate::progress::Progress;

/// Every kind of document that can be converted. A registry may answer with another one to who does not name it.
const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// What is wanted of a repository.
#[derive(Clone, Copy)]
pub(super) enum Wanted<'a> {
    Tag(&'a str),
    /// A manifest by its digest; an index also tells its size.
    Manifest(Digest, Option<u64>),
    Blob(&'a Descriptor),
}

impl Wanted<'_> {
    pub(super) fn path(self, repository: &str) -> String {
        match self {
            Self::Tag(tag) => format!("/v2/{repository}/manifests/{tag}"),
            Self::Manifest(digest, _) => format!("/v2/{repository}/manifests/{digest}"),
            Self::Blob(blob) => format!("/v2/{repository}/blobs/{}", blob.digest),
        }
    }

    fn digest(self) -> Option<Digest> {
        match self {
            Self::Tag(_) => None,
            Self::Manifest(digest, _) => Some(digest),
            Self::Blob(blob) => Some(blob.digest),
        }
    }

    fn size(self) -> Option<u64> {
        match self {
            Self::Tag(_) => None,
            Self::Manifest(_, size) => size,
            Self::Blob(blob) => Some(blob.size),
        }
    }
}

impl Registry {
    /// The manifest that `reference` names, for `platform`, and its bytes. Indexes are followed, nested ones too. Each document is
    /// verified: by the digest that names it; the document of a tag by the digest that the registry states with it, if it does.
    pub async fn resolve(
        &self,
        reference: &Reference,
        platform: &Platform,
        progress: Progress<'_>,
    ) -> Result<(Manifest, Vec<u8>), RegistryError> {
        // A digest is the stronger name: the tag beside it is a comment.
        let mut wanted = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => {
                let digest = digest.to_ascii_lowercase().parse();
                let digest = digest
                    .map_err(|_| RegistryError::DigestAlgorithm { reference: reference.to_string() })?;
                Wanted::Manifest(digest, None)
            }
            (None, tag) => Wanted::Tag(tag.unwrap_or("latest")),
        };
        for _ in 0..=MAX_INDEX_DEPTH {
            let bytes = self.small(reference, wanted, progress).await?;
            let digest = wanted.digest().unwrap_or_else(|| Digest::of(&bytes));
            let document = Document::parse(digest, &bytes, platform);
            let document = document
                .map_err(|source| RegistryError::Manifest { reference: reference.to_string(), source })?;
            match document {
                Document::Manifest(manifest) => return Ok((manifest, bytes)),
                Document::Index(entry) => wanted = Wanted::Manifest(entry.digest, Some(entry.size)),
            }
        }
        Err(RegistryError::TooDeep { reference: reference.to_string() })
    }

    /// A small blob of the image: its configuration. Verified; at most [`MAX_DOCUMENT`] bytes.
    pub async fn document(
        &self,
        reference: &Reference,
        blob: &Descriptor,
        progress: Progress<'_>,
    ) -> Result<Vec<u8>, RegistryError> {
        self.small(reference, Wanted::Blob(blob), progress).await
    }

    async fn small(
        &self,
        reference: &Reference,
        wanted: Wanted<'_>,
        progress: Progress<'_>,
    ) -> Result<Vec<u8>, RegistryError> {
        let subject = reference.to_string();
        let asked =
            |endpoint| Asked { endpoint, repository: reference.repository(), subject: subject.as_str() };
        let (mirrors, origin) = self.endpoints(reference.registry())?;
        for mirror in &mirrors {
            match self.small_at(asked(mirror), wanted, MIRROR_ATTEMPTS, progress).await {
                Err(error) if error.is_of_the_server() => {
                    self.pass_over(mirror, &subject, &error, progress);
                }
                result => return result,
            }
        }
        self.small_at(asked(&origin), wanted, self.inner.retry.attempts, progress).await
    }

    async fn small_at(
        &self,
        asked: Asked<'_>,
        wanted: Wanted<'_>,
        limit: u32,
        progress: Progress<'_>,
    ) -> Result<Vec<u8>, RegistryError> {
        let mut attempts = Attempts::new(&self.inner.retry, limit, asked.subject.to_owned(), progress);
        loop {
            match self.try_small(asked, wanted).await {
                Ok(bytes) => return Ok(bytes),
                Err(failure) => attempts.again(failure).await?,
            }
        }
    }

    async fn try_small(&self, asked: Asked<'_>, wanted: Wanted<'_>) -> Result<Vec<u8>, Failure> {
        let mut headers = HeaderMap::new();
        if !matches!(wanted, Wanted::Blob(_)) {
            headers.insert(ACCEPT, HeaderValue::from_static(MANIFEST_TYPES));
        }
        let mut answer = self.open(asked, wanted, &headers).await?;
        if answer.status() != 200 {
            let refusal = Refusal::read(&self.inner.http, answer).await;
            return Err(self.inner.auth.failure(asked, refusal).await);
        }
        let url = answer.shown_url();
        let limit = wanted.size().unwrap_or(MAX_DOCUMENT);
        if limit > MAX_DOCUMENT {
            return Err(RegistryError::TooLarge { url, limit: MAX_DOCUMENT }.into());
        }
        let bytes = self.inner.http.body(&mut answer, limit).await?;
        let got = Digest::of(&bytes);
        if let Some(expected) = wanted.digest().or_else(|| stated_digest(&answer))
            && got != expected
        {
            // Damage on the way passes; at the source the attempts come to an end.
            return Err(RegistryError::DigestMismatch { url, expected, got }.later());
        }
        match wanted.size() {
            Some(expected) if expected != bytes.len() as u64 => {
                Err(RegistryError::Size { url, expected, got: bytes.len() as u64 }.into())
            }
            _ => Ok(bytes),
        }
    }

    /// Asks for something. Gives back answers with content, and those that say there is none in a range.
    pub(super) async fn open(
        &self,
        asked: Asked<'_>,
        wanted: Wanted<'_>,
        headers: &HeaderMap,
    ) -> Result<Answer, Failure> {
        let Inner { http, auth, .. } = &*self.inner;
        let url = http.url(asked.endpoint, &wanted.path(asked.repository)).await?;
        let answer = auth.get(http, asked, &url, headers).await?;
        if matches!(answer.status().as_u16(), 200 | 206 | 416) {
            return Ok(answer);
        }
        let refusal = Refusal::read(http, answer).await;
        if refusal.status != 404 {
            return Err(auth.failure(asked, refusal).await);
        }
        let (reference, registry) = (asked.subject.to_owned(), asked.endpoint.name.clone());
        Err(match wanted {
            Wanted::Blob(blob) => RegistryError::BlobNotFound { reference, registry, digest: blob.digest },
            _ => RegistryError::NotFound { reference, registry, detail: refusal.detail },
        }
        .into())
    }
}

/// The digest that a registry states with a document, if it is of the kind that can be compared.
fn stated_digest(answer: &Answer) -> Option<Digest> {
    answer.headers().get("docker-content-digest")?.to_str().ok()?.parse().ok()
}
