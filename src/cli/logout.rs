//! `voidrun logout`

use serde_json::json;

use super::{Context, error::CliError, wait_for};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The registry
    registry: String,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let client = context.registry()?;
    let logout = wait_for("", async {
        let logout = client.logout(&args.registry).await;
        logout.map_err(|source| CliError::Logout { registry: args.registry.clone(), source: source.into() })
    })?;
    let view =
        json!({ "registry": logout.registry, "removed": logout.removed, "remaining": logout.remaining });
    context.print(&view, |_| {
        let done = if logout.removed { "logged out of" } else { "there was no login to" };
        let remaining = match logout.remaining.join(", ") {
            places if places.is_empty() => String::new(),
            places => format!("; credentials remain in {places}"),
        };
        format!("{done} {}{remaining}", logout.registry)
    })
}
