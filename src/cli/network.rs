//! `voidrun network`

use hyper::Method;

use super::error::CliError;
use super::flags::Networking;
use super::{Context, wait_for};
use crate::api::types::{Change, Network, NetworkMode, Sandbox};
use crate::client::{Client, segment};
use crate::size::Size;

/// Show or change what a sandbox reaches
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A change holds at once, also for what is open already. With --network the policy is what this command says and nothing else;
without it a list of rules replaces the one before, and the others stay. A limit stays until 0 lifts it. `voidrun logs --network` shows what was denied. A sandbox that was started with the mode none has to be stopped for a change.

Examples:
  voidrun network dev
  voidrun network dev --allow 'pypi.org:443' --allow 'files.pythonhosted.org:443'
  voidrun network dev --network public --deny '*.example.org'
  voidrun network dev --network none
  voidrun network dev --net-rate 10MiB --net-connections 50"
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
    let limits = network.limits.unwrap_or_default();
    lines.extend(limits.bytes_per_second.map(|rate| format!("net-rate {}", exact(rate))));
    lines.extend(limits.connections_per_second.map(|count| format!("net-connections {count}")));
    lines.join("\n")
}

/// A size as it can be given again.
fn exact(bytes: u64) -> String {
    let shown = Size(bytes).to_string();
    if shown.parse() == Ok(Size(bytes)) { shown } else { bytes.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_shown_as_it_is_given() {
        for (bytes, shown) in [(10 << 20, "10MiB"), (500, "500 B"), (1_000_000, "1000000")] {
            assert_eq!(exact(bytes), shown);
        }
    }
}
