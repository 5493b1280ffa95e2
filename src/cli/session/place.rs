//! Where a command runs.

use hyper::Method;

use crate::api::types::{Create, Port, Sandbox};
use crate::cli::error::CliError;
use crate::client::{Client, ClientError, Held, Remote};

/// A sandbox that runs.
pub(in crate::cli) enum Place {
    /// Ours: it goes with us.
    Ephemeral(Held),
    /// It stays; with its ports.
    Kept(Remote, Vec<Port>),
}

impl Place {
    pub(in crate::cli) async fn make(client: Client, create: &Create) -> Result<Self, ClientError> {
        if create.ephemeral == Some(true) {
            return Ok(Self::Ephemeral(client.hold(create).await?));
        }
        let sandbox: Sandbox = client.ask(Method::POST, "/sandboxes", create).await?;
        Ok(Self::Kept(Remote { client, sandbox: sandbox.id }, sandbox.ports))
    }

    /// The ports that it was made with.
    pub(in crate::cli) fn ports(&self) -> &[Port] {
        match self {
            Self::Ephemeral(held) => &held.ports,
            Self::Kept(_, ports) => ports,
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
