//! `voidrun ps`

use std::time::SystemTime;

use hyper::Method;

use super::error::CliError;
use super::{Context, port, table, wait_for};
use crate::api::types::Sandbox;
use crate::client::{Client, ClientError, segment};
use crate::daemon::State;

/// The most that the API gives at once.
const PAGE: usize = 1000;

/// List the sandboxes
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  voidrun ps
  voidrun ps --all --label team=infra
  voidrun ps --all --json | jq -r '.[].name'")]
pub(crate) struct Args {
    /// Those that do not run as well
    #[arg(short, long)]
    all: bool,
    /// Ids alone
    #[arg(short, long)]
    quiet: bool,
    /// Those with this label; can be given again
    #[arg(short, long, value_name = "KEY=VALUE")]
    label: Vec<String>,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let mut sandboxes = wait_for("", async {
        let client = Client::connect(&context.config).await?;
        Ok(all(&client, &args.label.join(",")).await?)
    })?;
    sandboxes.retain(|sandbox| args.all || sandbox.is_up());
    context.print(&sandboxes, |sandboxes| {
        if args.quiet {
            let ids: Vec<&str> = sandboxes.iter().map(|sandbox| &*sandbox.id).collect();
            return ids.join("\n");
        }
        let head = ["ID", "NAME", "IMAGE", "STATE", "CPUS", "MEMORY", "CREATED", "PORTS"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(sandboxes.iter().map(row));
        table(&rows)
    })
}

async fn all(client: &Client, labels: &str) -> Result<Vec<Sandbox>, ClientError> {
    let mut all: Vec<Sandbox> = Vec::new();
    for page in 1.. {
        let path = format!("/sandboxes?limit={PAGE}&page={page}&labels={}", segment(labels));
        let some: Vec<Sandbox> = client.ask(Method::GET, &path, &()).await?;
        let last = some.len() < PAGE;
        all.extend(some);
        if last {
            break;
        }
    }
    Ok(all)
}

fn row(sandbox: &Sandbox) -> Vec<String> {
    let ended = sandbox.job.as_ref().and_then(|job| job.end.as_ref()).map(|end| end.exit_code);
    let state = match (sandbox.state, &sandbox.exit_reason) {
        // The first line: what the guest has said last may follow.
        (State::Failed, Some(reason)) => format!("failed ({})", reason.lines().next().unwrap_or_default()),
        (State::Stopped, _) if let Some(code) = ended => format!("stopped (exit code {code})"),
        (state, _) => state.to_string(),
    };
    vec![
        sandbox.id.clone(),
        sandbox.name.clone(),
        sandbox.image.clone(),
        state,
        sandbox.cpu.to_string(),
        format!("{} MiB", sandbox.mem),
        age(&sandbox.created_at),
        sandbox.ports.iter().map(port::shown).collect::<Vec<_>>().join(", "),
    ]
}

/// How long ago, in its largest unit.
pub(super) fn age(created: &str) -> String {
    let since =
        humantime::parse_rfc3339(created).ok().and_then(|at| SystemTime::now().duration_since(at).ok());
    let seconds = since.unwrap_or_default().as_secs();
    let (count, unit) = match seconds {
        0..60 => (seconds, "s"),
        60..3600 => (seconds / 60, "min"),
        3600..86400 => (seconds / 3600, "h"),
        _ => (seconds / 86400, "d"),
    };
    format!("{count} {unit} ago")
}
