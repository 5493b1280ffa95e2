//! Blobs: streamed into a file, resumed where an earlier attempt ended, verified as they arrive.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use reqwest::header::{CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use sha2::{Digest as _, Sha256};

use super::auth::Asked;
use super::error::RegistryError;
use super::fetch::Wanted;
use super::http::Answer;
use super::retry::{Attempts, Failure};
use super::{MIRROR_ATTEMPTS, Reference, Registry};
use crate::image::{Descriptor, Digest};
use crate::progress::{Event, Progress};

/// How often a blob is downloaded whole from one server before it is believed to be damaged there.
const MAX_DAMAGED: u32 = 3;

/// New bytes that count as progress: a server that gives one byte a connection does not have for ever.
const MIN_PROGRESS: u64 = 64 << 10;

/// Bytes between two events.
const EVENT_STEP: u64 = 256 << 10;

/// Bytes of an earlier attempt that are read at a time.
const REHASH_STEP: usize = 1 << 20;

impl Registry {
    /// Brings a blob into `part`, behind what is there already of it, and verifies the whole.
    ///
    /// `part` holds exactly the verified blob on success. On an error it holds what can be continued from: a beginning that is right as
    /// far as is known. Damaged bytes do not stay: on a mismatch the file is emptied before the next attempt, and before the error.
    /// Nobody else may write to `part` meanwhile. The caller makes it durable.
    pub async fn blob(
        &self,
        reference: &Reference,
        blob: &Descriptor,
        part: &File,
        progress: Progress<'_>,
    ) -> Result<(), RegistryError> {
        let subject = reference.to_string();
        let asked =
            |endpoint| Asked { endpoint, repository: reference.repository(), subject: subject.as_str() };
        let (mirrors, origin) = self.endpoints(reference.registry())?;
        let mut download = Download::resume(blob, part, progress).await?;
        for mirror in &mirrors {
            match self.blob_at(asked(mirror), &mut download, MIRROR_ATTEMPTS).await {
                Err(error) if error.is_of_the_server() => {
                    self.pass_over(mirror, &blob.digest.to_string(), &error, progress);
                }
                result => return result,
            }
        }
        self.blob_at(asked(&origin), &mut download, self.inner.retry.attempts).await
    }

    async fn blob_at(
        &self,
        asked: Asked<'_>,
        download: &mut Download<'_>,
        limit: u32,
    ) -> Result<(), RegistryError> {
        let what = download.blob.digest.to_string();
        let mut attempts = Attempts::new(&self.inner.retry, limit, what, download.progress);
        let mut furthest = download.done;
        let mut damaged = 0;
        loop {
            let outcome = self.try_blob(asked, download).await;
            if download.done >= furthest.saturating_add(MIN_PROGRESS) {
                attempts.reset();
            }
            furthest = furthest.max(download.done);
            let failure = match outcome {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            };
            if matches!(failure.error, RegistryError::DigestMismatch { .. } | RegistryError::TooLarge { .. })
            {
                download.restart()?;
                furthest = 0;
                damaged += 1;
                if damaged >= MAX_DAMAGED {
                    return Err(failure.error);
                }
            }
            attempts.again(failure).await?;
        }
    }

    /// One request for what is missing.
    async fn try_blob(&self, asked: Asked<'_>, download: &mut Download<'_>) -> Result<(), Failure> {
        let wanted = Wanted::Blob(download.blob);
        if download.is_complete() {
            let url = format!("{}{}", asked.endpoint.host, wanted.path(asked.repository));
            return download.verify(url);
        }
        let mut headers = HeaderMap::new();
        if download.done > 0 {
            let range = HeaderValue::from_str(&format!("bytes={}-", download.done));
            headers.extend(range.ok().map(|range| (RANGE, range)));
        }
        let mut answer = self.open(asked, wanted, &headers).await?;
        let url = answer.shown_url();
        // Anything but the rest that was asked for (RFC 9110, section 14: Range may be ignored) starts over.
        if download.done > 0 && !continues(&answer, download) {
            download.restart()?;
        }
        match answer.status().as_u16() {
            200 => {}
            206 if download.done > 0 => {}
            status => {
                let detail = ": not what was asked for".to_owned();
                return Err(RegistryError::Status { url, status, detail }.later());
            }
        }
        while let Some(chunk) = self.inner.http.chunk(&mut answer).await? {
            if !download.append(chunk.as_ref())? {
                return Err(RegistryError::TooLarge { url, limit: download.blob.size }.later());
            }
        }
        if !download.is_complete() {
            let (got, expected) = (download.done, download.blob.size);
            return Err(RegistryError::Truncated { url, got, expected }.later());
        }
        download.verify(url)
    }
}

/// The answer is the rest of the blob, from exactly where the file ends.
fn continues(answer: &Answer, download: &Download<'_>) -> bool {
    let range = answer.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let start =
        range.and_then(|text| text.trim().strip_prefix("bytes ")?.split_once('-')?.0.trim().parse().ok());
    answer.status() == 206 && start == Some(download.done)
}

/// A blob on its way into a file.
struct Download<'a> {
    blob: &'a Descriptor,
    part: &'a File,
    progress: Progress<'a>,
    /// Bytes in the file, all of them hashed.
    done: u64,
    hash: Sha256,
    /// The `done` of the last event.
    reported: u64,
}

impl<'a> Download<'a> {
    /// Starts from what the file holds. Its bytes are hashed again: they were written by a process that is gone.
    async fn resume(
        blob: &'a Descriptor,
        part: &'a File,
        progress: Progress<'a>,
    ) -> Result<Self, RegistryError> {
        let mut download = Self { blob, part, progress, done: 0, hash: Sha256::new(), reported: 0 };
        let length = part.metadata().map_err(|e| download.failed(e))?.len();
        if length > blob.size {
            download.restart()?;
            return Ok(download);
        }
        let mut buffer = vec![0; REHASH_STEP.min(length as usize)];
        while download.done < length {
            let step = buffer.len().min((length - download.done) as usize);
            let bytes = &mut buffer[..step];
            part.read_exact_at(bytes, download.done).map_err(|e| download.failed(e))?;
            download.hash.update(&*bytes);
            download.done += step as u64;
            // Gigabytes of it must not hold up the other downloads.
            tokio::task::yield_now().await;
        }
        download.report();
        Ok(download)
    }

    fn is_complete(&self) -> bool {
        self.done == self.blob.size
    }

    /// Writes the next bytes. False, and nothing written, if they are more than the blob has.
    fn append(&mut self, bytes: &[u8]) -> Result<bool, RegistryError> {
        let done = self.done + bytes.len() as u64;
        if done > self.blob.size {
            return Ok(false);
        }
        // Into the page cache, from here and not from another thread: when the future is dropped, nothing is written any more.
        self.part.write_all_at(bytes, self.done).map_err(|e| self.failed(e))?;
        self.hash.update(bytes);
        self.done = done;
        if self.is_complete() || done - self.reported >= EVENT_STEP {
            self.report();
        }
        Ok(true)
    }

    fn verify(&mut self, url: String) -> Result<(), Failure> {
        let got = Digest::from_hash(self.hash.clone());
        if got == self.blob.digest {
            return Ok(());
        }
        Err(RegistryError::DigestMismatch { url, expected: self.blob.digest, got }.later())
    }

    /// Forgets everything.
    fn restart(&mut self) -> Result<(), RegistryError> {
        self.part.set_len(0).map_err(|e| self.failed(e))?;
        self.done = 0;
        self.hash = Sha256::new();
        self.report();
        Ok(())
    }

    fn report(&mut self) {
        self.reported = self.done;
        (self.progress)(Event::Downloading {
            blob: self.blob.digest,
            done: self.done,
            total: self.blob.size,
        });
    }

    fn failed(&self, source: io::Error) -> RegistryError {
        RegistryError::Part { digest: self.blob.digest, source }
    }
}
