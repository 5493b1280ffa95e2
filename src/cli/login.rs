//! `voidrun login`

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use serde_json::json;

use super::{Context, error::CliError, tell, wait_for};

/// The longest password that is read, in bytes. Tokens of clouds have some thousand.
const MAX_PASSWORD: u64 = 64 << 10;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  voidrun login ghcr.io -u me
  echo \"$TOKEN\" | voidrun login registry.example.com -u me --password-stdin

The password is kept in docker's config.json, or by the credential helper that is named there.")]
pub(crate) struct Args {
    /// The registry: docker.io, ghcr.io, registry.example.com:5000
    registry: String,
    /// The user; asked for when it is not given
    #[arg(short, long)]
    user: Option<String>,
    /// Take the password from standard input
    #[arg(long)]
    password_stdin: bool,
}

pub(super) fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let Args { registry, user, password_stdin } = args;
    let terminal = std::io::stdin().is_terminal();
    if !password_stdin && !terminal {
        return Err(CliError::Usage(
            "there is no terminal to ask for the password: add --password-stdin".into(),
        ));
    }
    let user = match user {
        Some(user) => user,
        None if password_stdin => {
            return Err(CliError::Usage("--password-stdin needs the user as well: add -u USER".into()));
        }
        None => ask("User: ")?,
    };
    let password = if password_stdin { read_line()? } else { ask_hidden("Password: ")? };
    if password.is_empty() {
        return Err(CliError::Usage("the password is empty".into()));
    }
    let client = context.registry()?;
    let login = wait_for("", async {
        let login = client.login(&registry, &user, &password).await;
        login.map_err(|source| CliError::Login { registry: registry.clone(), source: source.into() })
    })?;
    let view = json!({ "registry": login.registry, "keptIn": login.kept_in, "verified": login.verified });
    context.print(&view, |_| {
        let doubt = if login.verified { "" } else { "; it did not ask for a password, so it may be wrong" };
        format!("logged in to {}, kept in {}{doubt}", login.registry, login.kept_in)
    })
}

fn ask(prompt: &str) -> Result<String, CliError> {
    let _ = write!(std::io::stderr(), "{prompt}");
    read_line()
}

/// Asks with the terminal's echo off, and puts it back on in any case.
fn ask_hidden(prompt: &str) -> Result<String, CliError> {
    let stdin = std::io::stdin();
    let failed = |e: rustix::io::Errno| CliError::Input { what: "the terminal".into(), source: e.into() };
    let before = tcgetattr(&stdin).map_err(failed)?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    // Not the default action of SIGINT, which would leave the terminal silent.
    let prompt = prompt.to_owned();
    let answer = wait_for("", async {
        tcsetattr(&stdin, OptionalActions::Flush, &silent).map_err(failed)?;
        let asked = tokio::task::spawn_blocking(move || ask(&prompt)).await;
        asked.map_err(|e| CliError::Runtime(e.into()))?
    });
    tcsetattr(&stdin, OptionalActions::Now, &before).map_err(failed)?;
    tell("");
    answer
}

fn read_line() -> Result<String, CliError> {
    let mut line = String::new();
    let mut input = std::io::Read::take(std::io::stdin().lock(), MAX_PASSWORD);
    input.read_line(&mut line).map_err(|source| CliError::Input { what: "standard input".into(), source })?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}
