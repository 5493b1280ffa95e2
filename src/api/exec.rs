//! `exec`: a command, from its start to its end, in one answer.

use std::time::Duration;

use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use protocol::Command as Words;

use super::answers::Envelope;
use super::input::{Awake, Body};
use super::problem::Problem;
use super::session::{self, Upgrade};
use super::success;
use super::types::{End, Exec, ExecResult};
use crate::daemon::Sandbox;
use crate::sandbox::{Command, Event};

/// Of a command where nothing is said, in seconds.
pub(super) const TIMEOUT: f64 = 30.0;
/// The agent keeps the deadline, and gives what it ends two seconds; this much later we no longer trust it to.
pub(super) const SLACK: Duration = Duration::from_secs(10);
/// So much of each output is in the answer, in bytes; the rest is read and dropped.
pub(super) const MAX_OUTPUT: usize = 8 << 20;
/// A hundred years, in seconds.
const LONGEST: f64 = 3.2e9;

/// Runs a command and answers when it has ended.
///
/// A client that goes away ends it. Of each output 8 MiB are kept. With `Connection: Upgrade` and `Upgrade: voidrun-exec` the
/// connection becomes one of frames both ways: standard input, signals and sizes of the terminal in, output and the end out.
#[utoipa::path(
    post, path = "/sandboxes/{id}/exec", operation_id = "exec", tag = "commands",
    request_body = Exec,
    responses(
        (
            status = 200,
            description = "It has ended, at its deadline too: then the exit code is 124",
            body = Envelope<ExecResult>
        ),
        (status = 101, description = "The connection speaks the frames, until the command has ended")
    )
)]
pub(super) async fn exec(
    Awake(sandbox): Awake,
    Upgrade(upgrade): Upgrade,
    Body(body): Body<Exec>,
) -> Result<Response, Problem> {
    if let Some(upgrade) = upgrade {
        return session::exec(sandbox, upgrade, body).await;
    }
    if body.tty.is_some() || body.stdin == Some(true) {
        let field = if body.tty.is_some() { "tty" } else { "stdin" };
        return Err(Problem::field(field, "needs a connection that is upgraded to voidrun-exec"));
    }
    let (mut exec, deadline) = command(&sandbox, body, TIMEOUT)?;
    exec.output_limit = Some(MAX_OUTPUT as u64);
    let result = within(deadline, run(&sandbox, exec)).await?;
    Ok(success("command executed", result).into_response())
}

async fn run(sandbox: &Sandbox, exec: protocol::Exec) -> Result<ExecResult, Problem> {
    let mut exec = sandbox.exec(exec).await?;
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    // Keeps the bound also where the agent does not.
    let append = |to: &mut Vec<u8>, bytes: &[u8]| {
        to.extend_from_slice(&bytes[..bytes.len().min(MAX_OUTPUT - to.len())]);
    };
    loop {
        match exec.output.next().await {
            Ok(Event::Stdout(bytes)) => append(&mut stdout, &bytes),
            Ok(Event::Stderr(bytes)) => append(&mut stderr, &bytes),
            Ok(Event::Exit(exit)) => {
                let text = |bytes: Vec<u8>| {
                    String::from_utf8(bytes)
                        .unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
                };
                return Ok(ExecResult { stdout: text(stdout), stderr: text(stderr), end: End::from(exit) });
            }
            Err(error) => return Err(sandbox.cause(error).await.into()),
        }
    }
}

/// Ends `work` where the guest has not kept the deadline.
pub(super) async fn within<T>(
    deadline: Option<Duration>,
    work: impl Future<Output = Result<T, Problem>>,
) -> Result<T, Problem> {
    let Some(deadline) = deadline else { return work.await };
    tokio::time::timeout(deadline.saturating_add(SLACK), work)
        .await
        .unwrap_or_else(|_| Err(overdue(deadline)))
}

pub(super) fn overdue(deadline: Duration) -> Problem {
    let detail = format!(
        "the guest has not ended the command, whose time was over after {} s",
        deadline.as_secs_f64()
    );
    Problem::new(StatusCode::GATEWAY_TIMEOUT, "machine", detail)
}

/// The request to the agent, and the command's deadline. `timeout` is meant where none is said, in seconds.
pub(super) fn command(
    sandbox: &Sandbox,
    body: Exec,
    timeout: f64,
) -> Result<(protocol::Exec, Option<Duration>), Problem> {
    let command = checked(body, timeout)?;
    let deadline = command.timeout_ms.map(Duration::from_millis);
    Ok((command.of(&sandbox.view().record), deadline))
}

/// What can be wrong with it without a look at a sandbox is not.
pub(super) fn checked(body: Exec, timeout: f64) -> Result<Command, Problem> {
    let deadline = deadline(body.timeout.unwrap_or(timeout))?;
    if body.command.is_empty() {
        return Err(Problem::field("command", "is empty"));
    }
    let mut words = std::iter::once(&body.command).chain(body.args.iter().flatten());
    if words.any(|word| word.contains('\0')) {
        return Err(Problem::field("command", "has a NUL byte in it, which no command line can have"));
    }
    if let Some(cwd) = body.cwd.as_ref().filter(|cwd| !cwd.starts_with('/')) {
        return Err(Problem::field("cwd", format!("{cwd:?} does not begin with /")));
    }
    let env = body.env.unwrap_or_default();
    check_env("env", env.iter().map(|(name, value)| (name, value.as_deref().unwrap_or_default())))?;
    Ok(Command {
        words: match body.args {
            None => Words::Shell(body.command),
            Some(args) => Words::Argv(std::iter::once(body.command).chain(args).collect()),
        },
        cwd: body.cwd,
        env,
        user: body.user,
        timeout_ms: deadline.map(|deadline| deadline.as_millis() as u64),
        tty: body.tty,
        stdin: body.stdin.unwrap_or(false),
    })
}

/// None for 0.
fn deadline(seconds: f64) -> Result<Option<Duration>, Problem> {
    if !(0.0..=LONGEST).contains(&seconds) {
        return Err(Problem::field(
            "timeout",
            format!("{seconds} is no number of seconds from 0 to {LONGEST}"),
        ));
    }
    // Anything above 0 is a deadline, however short.
    Ok((seconds > 0.0).then(|| Duration::from_secs_f64(seconds).max(Duration::from_millis(1))))
}

pub(super) fn check_env<'a>(
    field: &str,
    mut env: impl Iterator<Item = (&'a String, &'a str)>,
) -> Result<(), Problem> {
    let wrong =
        env.find(|(name, value)| name.is_empty() || name.contains(['=', '\0']) || value.contains('\0'));
    match wrong {
        None => Ok(()),
        Some((name, _)) => {
            let wrong = format!(
                "{name:?}: a variable's name is not empty and has no '=', and neither has a NUL byte"
            );
            Err(Problem::field(field, wrong))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines() {
        assert_eq!(deadline(0.0).unwrap(), None);
        assert_eq!(deadline(1.5).unwrap(), Some(Duration::from_millis(1500)));
        assert_eq!(deadline(1e-9).unwrap(), Some(Duration::from_millis(1)));
        for wrong in [-1.0, f64::NAN, f64::INFINITY, 1e300] {
            assert!(deadline(wrong).is_err(), "{wrong}");
        }
    }
}
