//! `voidrun logs`

use std::io::Write as _;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

use super::error::CliError;
use super::session;
use super::{Context, write_out};
use crate::client::{Client, Remote};

/// Show what the command of a sandbox has written, of those that `run --detach` has started
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Its standard output goes to standard output, its standard error to standard error. The last 12 MiB are kept, about, for
as long as the sandbox is.

Examples:
  voidrun logs web
  voidrun logs --follow --tail 20 web
  voidrun logs --timestamps web 2>/dev/null | grep ERROR"
)]
pub(crate) struct Args {
    /// Wait for more, until the command has ended
    #[arg(short, long)]
    follow: bool,
    /// So many lines at most, the last ones [default: all]
    #[arg(short = 'n', long, value_name = "LINES")]
    tail: Option<usize>,
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
