//! `voidrun network`

use hyper::Method;

use super::error::CliError;
use super::flags::Networking;
use super::{Context, wait_for};
use crate::api::types::{Change, Network, NetworkMode, Sandbox};
use crate::client::{Client, segment};

/// Show or change what a sandbox reaches
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A change holds at once, also for what is open already. With --network the policy is what this command says and nothing else;
without it a list of rules replaces the one before, and the others stay. `voidrun logs --network` shows what was denied. A sandbox that was started with the mode none has to be stopped for a change.

Examples:
  voidrun network dev
  voidrun network dev --allow 'pypi.org:443' --allow 'files.pythonhosted.org:443'
  voidrun network dev --network public --deny '*.example.org'
  voidrun network dev --network none"
)]
pub(crate) struct Args {
    #[command(flatten)]
    networking: Networking,
    /// Its name, its id, or the beginning of that
    sandbox: String,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let path = format!("/sandboxes/{}", segment(&args.sandbox));
    let network = args.networking.wanted().map(|wanted| match wanted.mode {
        Some(_) => Network {
            allow: wanted.allow.or_else(|| Some(Vec::new())),
            deny: wanted.deny.or_else(|| Some(Vec::new())),
            host_ports: wanted.host_ports.or_else(|| Some(Vec::new())),
            ..wanted
        },
        None => wanted,
    });
    let sandbox: Sandbox = wait_for("", async {
        let client = Client::connect(&context.config).await?;
        Ok(match network {
            Some(_) => client.ask(Method::PATCH, &path, &Change { network, ..Change::default() }).await?,
            None => client.ask(Method::GET, &path, &()).await?,
        })
    })?;
    context.print(&sandbox.network, text)
}

fn text(network: &Network) -> String {
    let mode = match network.mode {
        Some(NetworkMode::None) => "none",
        Some(NetworkMode::Allow) => "allow",
        Some(NetworkMode::Public) | None => "public",
    };
    let rules = |word: &'static str, rules: &Option<Vec<String>>| {
        rules.iter().flatten().map(move |rule| format!("{word} {rule}")).collect::<Vec<_>>()
    };
    let mut lines = vec![mode.to_owned()];
    lines.extend(rules("deny", &network.deny));
    lines.extend(rules("allow", &network.allow));
    lines.extend(network.host_ports.iter().flatten().map(|port| format!("allow-host {port}")));
    lines.join("\n")
}
