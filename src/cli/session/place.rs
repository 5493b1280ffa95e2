//! Where a command runs.

use hyper::Method;

use crate::api::types::{Create, Sandbox};
use crate::cli::error::CliError;
use crate::client::{Client, ClientError, Held, Remote};

/// A sandbox that runs.
pub(in crate::cli) enum Place {
    /// Ours: it goes with us.
    Ephemeral(Box<Held>),
    /// It stays; as it was made.
    Kept(Remote, Box<Sandbox>),
}

impl Place {
    pub(in crate::cli) async fn make(client: Client, create: &Create) -> Result<Self, ClientError> {
        if create.ephemeral == Some(true) {
            return Ok(Self::Ephemeral(Box::new(client.hold(create).await?)));
        }
        let sandbox: Sandbox = client.ask(Method::POST, "/sandboxes", create).await?;
        Ok(Self::Kept(Remote { client, sandbox: sandbox.id.clone() }, Box::new(sandbox)))
    }

    /// As it was made.
    pub(in crate::cli) fn sandbox(&self) -> &Sandbox {
        match self {
            Self::Ephemeral(held) => &held.sandbox,
            Self::Kept(_, sandbox) => sandbox,
        }
    }

    pub(in crate::cli) fn remote(&self) -> &Remote {
        match self {
            Self::Ephemeral(held) => &held.remote,
            Self::Kept(remote, _) => remote,
        }
    }

    /// Removes what does not stay; returns when nothing of it is left.
    pub(in crate::cli) async fn leave(self) {
        if let Self::Ephemeral(held) = self
            && let Err(error) = held.remove().await
        {
            CliError::from(error).warn();
        }
    }
}
