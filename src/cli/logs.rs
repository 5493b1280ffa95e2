//! `voidrun logs`

use std::io::Write as _;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hyper::Method;
use serde::Deserialize;

use super::error::CliError;
use super::session;
use super::{Context, write_out};
use crate::api::types::Denial;
use crate::client::{Client, Remote, segment};

/// The process of a machine tells nobody of a new denial, so it is asked.
const AGAIN: Duration = Duration::from_secs(1);
/// So many denials are kept by the process of a machine.
const MOST: usize = 512;

/// Show what the command of a sandbox has written, of those that `run --detach` has started
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Its standard output goes to standard output, its standard error to standard error. The last 12 MiB are kept, about, for
as long as the sandbox is.

Examples:
  voidrun logs web
  voidrun logs --follow --tail 20 web
  voidrun logs --timestamps web 2>/dev/null | grep ERROR
  voidrun logs --network --follow dev"
)]
pub(crate) struct Args {
    /// Wait for more, until the command has ended
    #[arg(short, long)]
    follow: bool,
    /// So many lines at most, the last ones [default: all]
    #[arg(short = 'n', long, value_name = "LINES")]
    tail: Option<usize>,
    /// What the sandbox was denied by its network policy instead, and by which rule
    #[arg(long, conflicts_with = "timestamps")]
    network: bool,
    /// The time before each piece that was written at once
    #[arg(short, long)]
    timestamps: bool,
    /// Its name, its id, or the beginning of that
    sandbox: String,
}

/// A line of the daemon's answer.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase", tag = "stream")]
enum Line {
    Stdout { time: String, data: String },
    Stderr { time: String, data: String },
    Exit {},
    Error { message: String },
}

pub(super) fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    session::block_on(async |signals| {
        let shown = async {
            let client = Client::connect(&context.config).await?;
            if args.network {
                return denials(&client, args, context.json).await;
            }
            let remote = Remote { client, sandbox: args.sandbox.clone() };
            let mut lines = remote.logs(args.follow, args.tail).await?;
            let mut at_start = [true, true];
            while let Some(line) = lines.next().await? {
                if context.json {
                    write_out(line)?;
                } else if !show(&line, args.timestamps, &mut at_start)? {
                    break;
                }
            }
            Ok::<_, CliError>(())
        };
        tokio::select! {
            shown = shown => shown,
            // Who follows ends it this way.
            _ = signals.next() => Ok(()),
        }
    })
}

/// What was denied, and with --follow what is.
async fn denials(client: &Client, args: &Args, json: bool) -> Result<(), CliError> {
    let mut after = 0;
    let mut kept = Vec::new();
    let mut tail = args.tail;
    loop {
        let path = format!("/sandboxes/{}/network/denials?after={after}", segment(&args.sandbox));
        let mut denials: Vec<Denial> = client.ask(Method::GET, &path, &()).await?;
        if kept.len() < MOST
            && let Some(last) = denials.last()
        {
            // There may be more than one answer holds.
            after = last.number;
            kept.append(&mut denials);
            continue;
        }
        let shown = tail.take().unwrap_or(kept.len());
        for denial in &kept[kept.len().saturating_sub(shown)..] {
            write_out(if json { serde_json::to_string(denial).unwrap_or_default() } else { told(denial) })?;
        }
        kept.clear();
        if !args.follow {
            return Ok(());
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn told(Denial { time, protocol, destination, name, rule, .. }: &Denial) -> String {
    let name = name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    format!("{time} {protocol} {destination}{name}: {rule}")
}

/// Whether somebody reads it. `at_start`: whether a line begins, on either stream.
fn show(line: &str, timestamps: bool, at_start: &mut [bool; 2]) -> Result<bool, CliError> {
    let wrong = |wrong: String| CliError::Client(crate::client::ClientError::Answer(wrong.into()));
    let line: Line = serde_json::from_str(line).map_err(|e| wrong(e.to_string()))?;
    let (to, time, data) = match line {
        Line::Stdout { time, data } => (0, time, data),
        Line::Stderr { time, data } => (1, time, data),
        Line::Exit {} => return Ok(true),
        Line::Error { message } => return Err(wrong(message)),
    };
    let bytes = BASE64_STANDARD.decode(data).map_err(|e| wrong(e.to_string()))?;
    let mut text = Vec::new();
    for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
        if timestamps && at_start[to] {
            text.extend_from_slice(format!("{time} ").as_bytes());
        }
        text.extend_from_slice(piece);
        at_start[to] = piece.ends_with(b"\n");
    }
    let written = match to {
        0 => std::io::stdout().write_all(&text).and_then(|()| std::io::stdout().flush()),
        _ => std::io::stderr().write_all(&text),
    };
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(CliError::Output(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_stands_before_each_line() {
        let line = |stream: &str, text: &str| {
            let data = BASE64_STANDARD.encode(text);
            serde_json::json!({ "stream": stream, "time": "T", "data": data }).to_string()
        };
        let mut at_start = [true, true];
        assert!(show(&line("stderr", "a"), true, &mut at_start).unwrap());
        assert_eq!(at_start, [true, false]);
        assert!(show(r#"{"stream": "exit", "exitCode": 0}"#, true, &mut at_start).unwrap());
        let error = show(r#"{"stream": "error", "message": "no disk"}"#, true, &mut at_start);
        assert!(super::super::error_code::of(&error.unwrap_err()) == "daemon");
    }
}
