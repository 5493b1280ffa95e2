//! `voidrun events`

use std::io::{ErrorKind, Write as _};

use super::error::CliError;
use super::{Context, printable, wait_for};
use crate::api::events::{Event, Line};
use crate::client::{Client, ClientError};

/// Show what happens to sandboxes, as it happens
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A line for each: time, what has happened, id, name, image, and the reason where there is one. A sandbox is created,
started, changed (its name or labels), paused, resumed, stopped, failed, adopted (it could not be talked to) and removed.
Goes on until Ctrl-C, or the end of the daemon. Who reads too slowly is told how many events were missed.

Examples:
  voidrun events
  voidrun events --label team=infra
  voidrun events --json dev | jq -r .kind"
)]
pub(crate) struct Args {
    /// Of those with this label; can be given again
    #[arg(short, long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// Of this one alone: a name, an id, or the beginning of one; it need not be there yet
    sandbox: Option<String>,
}

/// Returns the exit code.
pub(super) fn run(args: &Args, context: &Context) -> Result<u8, CliError> {
    let followed = wait_for("", async {
        let client = Client::connect(&context.config).await?;
        let mut events = client.events(args.sandbox.as_deref(), &args.label.join(",")).await?;
        loop {
            let json = events.next().await?.ok_or(ClientError::Ended)?;
            let text = if context.json { format!("{json}\n") } else { line(&json)? };
            match std::io::stdout().lock().write_all(text.as_bytes()) {
                Ok(()) => {}
                // Nobody reads it any more.
                Err(e) if e.kind() == ErrorKind::BrokenPipe => return Ok(0),
                Err(e) => return Err(CliError::Output(e)),
            }
        }
    });
    match followed {
        // That is how it ends.
        Err(CliError::Interrupted { signal, .. }) => Ok(signal.exit_code()),
        followed => followed,
    }
}

fn line(json: &str) -> Result<String, ClientError> {
    let text = match serde_json::from_str(json).map_err(|e| ClientError::Answer(e.into()))? {
        Line::Missed(missed) => format!("{} events were missed", missed.missed),
        Line::Event(Event { time, kind, id, name, image, reason, .. }) => {
            let reason = reason.map(|reason| format!("  ({reason})")).unwrap_or_default();
            let kind = kind.to_string();
            format!("{time}  {kind:7}  {id}  {name}  {image}{reason}")
        }
    };
    Ok(format!("{}\n", printable(&text)))
}
