//! What a user sees when a verb fails: what, on what, why, what to do. As a chain, or as one JSON object.

use std::error::Error;
use std::io;

use protocol::ErrorCode;
use rootfs_builder::pull::PullError;
use rootfs_builder::reference::NameError;
use rootfs_builder::registry::RegistryError;
use rootfs_builder::store::StoreError;

use super::{error_code, tell};
use crate::client::ClientError;
use crate::config::ConfigError;
use crate::daemon::ServeError;
use crate::sandbox::{DirectoryError, ExecError, KernelError};
use crate::snapshots::SnapshotsError;

#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// `verb` is `pull` or `import`.
    #[error("cannot {verb} {what}")]
    Pull { verb: &'static str, what: String, source: Box<PullError> },
    #[error("cannot log in to {registry}")]
    Login { registry: String, source: Box<RegistryError> },
    #[error("cannot log out of {registry}")]
    Logout { registry: String, source: Box<RegistryError> },
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("the configuration cannot be used")]
    Config(#[from] ConfigError),
    #[error("{0}")]
    Usage(String),
    /// The names of the checks of `doctor` that have failed.
    #[error("machines cannot run here: {0} failed")]
    Unusable(String),
    #[error("interrupted{advice}")]
    Interrupted { signal: Interrupt, advice: &'static str },
    #[error("cannot start a sandbox")]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Sandbox(#[from] DirectoryError),
    #[error(transparent)]
    Snapshots(#[from] SnapshotsError),
    /// `what` is the program and its arguments.
    #[error("cannot run {what}")]
    Exec { what: String, source: Box<ExecError> },
    /// The interpreter of code, which language it is of and where it was looked for.
    #[error("{0}")]
    NoInterpreter(String),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the daemon cannot serve")]
    Daemon(#[from] ServeError),
    #[error("cannot use the terminal")]
    Terminal(#[source] io::Error),
    #[error("cannot start")]
    Runtime(#[source] io::Error),
    #[error("cannot read {what}")]
    Input { what: String, source: io::Error },
    /// `what` is what was to be copied, and where to.
    #[error("cannot copy {what}")]
    Copy { what: String, source: archive::Error },
    #[error("cannot remove {path}")]
    Remove { path: String, source: io::Error },
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
}

/// The signals that ask the program to end.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Interrupt {
    Hup,
    Int,
    Quit,
    Term,
}

impl Interrupt {
    /// Its number.
    pub(crate) fn number(self) -> i32 {
        match self {
            Self::Hup => 1,
            Self::Int => 2,
            Self::Quit => 3,
            Self::Term => 15,
        }
    }

    /// As a shell reports a program that the signal has ended.
    pub(crate) fn exit_code(self) -> u8 {
        128 + self.number() as u8
    }
}

impl CliError {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_)
            | Self::Name(NameError::Local(_) | NameError::Taken(_) | NameError::Reference { .. }) => 2,
            Self::Interrupted { signal, .. } => signal.exit_code(),
            _ => 1,
        }
    }

    /// As docker has it: what a shell would say of the command, and 125 for everything that is not the command's doing.
    pub(crate) fn exit_code_of_run(&self) -> u8 {
        match self {
            Self::Interrupted { signal, .. } => signal.exit_code(),
            Self::Exec { source, .. } => match &**source {
                ExecError::Refused(refused) if refused.code == ErrorCode::NotFound => 127,
                ExecError::Refused(refused) if refused.code == ErrorCode::NotExecutable => 126,
                _ => 125,
            },
            Self::NoInterpreter(_) => 127,
            Self::Client(error) => match error.kind() {
                "commandNotFound" => 127,
                "commandNotExecutable" => 126,
                _ => 125,
            },
            _ => 125,
        }
    }

    /// Tells people of what does not keep a verb from its work.
    pub(crate) fn warn(&self) {
        let mut texts = vec![self.to_string()];
        texts.extend(causes(self));
        tell(&format!("warning: {}", texts.join(": ")));
    }

    fn is_of_the_connection(&self) -> bool {
        let registry = match self {
            Self::Login { source, .. } | Self::Logout { source, .. } => source,
            Self::Pull { source, .. } => match &**source {
                PullError::Registry(error) => error,
                _ => return false,
            },
            _ => return false,
        };
        matches!(
            registry,
            RegistryError::UnknownHost { .. }
                | RegistryError::Refused { .. }
                | RegistryError::Tls { .. }
                | RegistryError::Connection { .. }
        )
    }

    pub(crate) fn print(&self, json: bool) {
        let mut causes = causes(self);
        // What the layers of the HTTP client call it says nothing to people.
        if self.is_of_the_connection() && causes.len() > 2 {
            causes.drain(1..causes.len() - 1);
        }
        if json {
            tell(
                &serde_json::json!({ "code": error_code::of(self), "error": self.to_string(), "causes": causes })
                    .to_string(),
            );
            return;
        }
        tell(&format!("error: {self}"));
        for cause in causes {
            tell(&format!("  because: {cause}"));
        }
    }
}

/// The texts of the sources, without those that only repeat what stands above them.
fn causes(error: &dyn Error) -> Vec<String> {
    let mut causes: Vec<String> = Vec::new();
    let mut last = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !last.contains(&text) {
            causes.push(text.clone());
            last = text;
        }
        next = cause.source();
    }
    causes
}
