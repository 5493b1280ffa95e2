//! Credential helpers: programs `docker-credential-NAME` that docker and podman keep passwords with
//! (github.com/docker/docker-credential-helpers: the verb is the argument, the subject goes to standard input).

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use super::{Credential, CredentialSources};
use crate::registry::error::shown;

/// Tokens are some KiB; nobody's credential is longer.
const MAX_ANSWER: u64 = 1 << 20;

/// A helper by its name in the configuration.
pub(in crate::registry) struct Helper<'a> {
    name: &'a str,
    path: &'a OsString,
    timeout: Duration,
}

/// Why a helper was of no help. The output of one that succeeds is never part of this: it holds the secret.
#[derive(Debug, thiserror::Error)]
pub(in crate::registry) enum HelperError {
    #[error("not found in PATH")]
    Absent,
    #[error("no answer for {0} s; it was ended")]
    Timeout(u64),
    #[error("{0}")]
    Failed(String),
    #[error("its answer is not the JSON of a credential")]
    Malformed,
    #[error("cannot be run: {0}")]
    Io(#[from] io::Error),
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

impl<'a> Helper<'a> {
    pub(in crate::registry) fn new(name: &'a str, sources: &'a CredentialSources) -> Self {
        Self { name, path: &sources.helper_path, timeout: sources.helper_timeout }
    }

    /// The program's name.
    pub(in crate::registry) fn program(&self) -> String {
        format!("docker-credential-{}", self.name)
    }

    /// The credential for a server, `None` if the helper has none.
    pub(in crate::registry) async fn get(&self, server: &str) -> Result<Option<Credential>, HelperError> {
        let (succeeded, output, complaint) = self.run("get", server.as_bytes()).await?;
        if !succeeded {
            // The protocol has no status for it, only this text.
            let absent = String::from_utf8_lossy(&output).contains("credentials not found");
            return if absent { Ok(None) } else { Err(HelperError::Failed(complaint)) };
        }
        let answer: Answer = serde_json::from_slice(&output).map_err(|_| HelperError::Malformed)?;
        Ok(match (answer.username.as_str(), answer.secret.is_empty()) {
            (_, true) => None,
            ("<token>", _) => Some(Credential::IdentityToken(answer.secret)),
            _ => Some(Credential::Password { user: answer.username, password: answer.secret }),
        })
    }

    /// Gives the helper a password to keep.
    pub(in crate::registry) async fn store(
        &self,
        server: &str,
        user: &str,
        password: &str,
    ) -> Result<(), HelperError> {
        let subject = serde_json::json!({ "ServerURL": server, "Username": user, "Secret": password });
        let (succeeded, _, complaint) = self.run("store", subject.to_string().as_bytes()).await?;
        if succeeded { Ok(()) } else { Err(HelperError::Failed(complaint)) }
    }

    /// Makes the helper forget.
    pub(in crate::registry) async fn erase(&self, server: &str) -> Result<(), HelperError> {
        let (succeeded, output, complaint) = self.run("erase", server.as_bytes()).await?;
        let absent = String::from_utf8_lossy(&output).contains("credentials not found");
        if succeeded || absent { Ok(()) } else { Err(HelperError::Failed(complaint)) }
    }

    /// Runs a verb: whether it succeeded, its standard output, and what it complained of.
    async fn run(&self, verb: &str, subject: &[u8]) -> Result<(bool, Vec<u8>, String), HelperError> {
        let mut child = Command::new(self.find()?)
            .arg(verb)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Also when the deadline below, or the caller's end, drops it.
            .kill_on_drop(true)
            .spawn()?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(mut stdin), Some(stdout), Some(stderr)) = (stdin, stdout, stderr) else {
            return Err(HelperError::Failed("no pipes".into()));
        };
        let write = async {
            // A helper may answer without having read all, or anything.
            let _ = stdin.write_all(subject).await;
            drop(stdin);
            Ok(())
        };
        let (mut output, mut complaint) = (Vec::new(), Vec::new());
        let mut stdout = stdout.take(MAX_ANSWER);
        let mut stderr = stderr.take(MAX_ANSWER);
        let talk = async {
            tokio::try_join!(write, stdout.read_to_end(&mut output), stderr.read_to_end(&mut complaint))?;
            child.wait().await
        };
        let status = tokio::time::timeout(self.timeout, talk)
            .await
            .map_err(|_| HelperError::Timeout(self.timeout.as_secs()))??;
        // A helper that fails says why on its standard output, by protocol; a shell or a loader on the other.
        let told = [&complaint, &output].map(|text| shown(&String::from_utf8_lossy(text)));
        let complaint = told.into_iter().find(|text| !text.is_empty() && !status.success());
        let complaint = complaint.unwrap_or_else(|| format!("failed, {status}"));
        Ok((status.success(), output, complaint))
    }

    /// The program. A name with a slash would be a path of somebody's choice.
    fn find(&self) -> Result<PathBuf, HelperError> {
        if self.name.contains('/') {
            return Err(HelperError::Absent);
        }
        std::env::split_paths(self.path)
            .filter(|directory| directory.is_absolute())
            .map(|directory| directory.join(self.program()))
            .find(|program| program.is_file())
            .ok_or(HelperError::Absent)
    }
}
