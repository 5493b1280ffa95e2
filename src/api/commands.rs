//! `commands`: what runs in the background.

use axum::Json;

use super::answers::{Commands, Killed, Started, StartedCommand, Waited};
use super::exec::command;
use super::input::{Awake, Body};
use super::problem::Problem;
use super::types::{End, Exec, Pid, Process, Run};

type Answer<T> = Result<Json<T>, Problem>;

/// Starts a command in the background, where it goes on without the client.
#[utoipa::path(
    post, path = "/sandboxes/{id}/commands/run", operation_id = "runCommand", tag = "commands",
    request_body = Run,
    responses((status = 200, description = "It runs", body = Started))
)]
pub(super) async fn run(Awake(sandbox): Awake, Body(body): Body<Run>) -> Answer<Started> {
    let Run { command: line, cwd, env, user, timeout } = body;
    let wanted = Exec { command: line.clone(), args: None, cwd, env, user, timeout, tty: None, stdin: None };
    let (mut exec, _) = command(&sandbox, wanted, 0.0)?;
    exec.detached = true;
    let pid = sandbox.exec(exec).await?.pid;
    let data = StartedCommand { pid, command: line.clone() };
    Ok(Json(Started { success: true, pid, command: line, data }))
}

/// Lists the commands in the background.
#[utoipa::path(
    get, path = "/sandboxes/{id}/commands/list", operation_id = "listCommands", tag = "commands",
    responses(
        (status = 200, description = "Those that run, and the last 256 that have ended", body = Commands)
    )
)]
pub(super) async fn list(Awake(sandbox): Awake) -> Answer<Commands> {
    let processes: Vec<Process> = {
        let processes = sandbox.processes().await?.into_iter();
        // Those have a list of their own.
        processes.filter(|process| !process.terminal).map(Process::from).collect()
    };
    Ok(Json(Commands { success: true, data: processes.clone(), processes }))
}

/// Waits for the end of a command in the background; asked again, it answers again.
///
/// It has no deadline: the client has.
#[utoipa::path(
    post, path = "/sandboxes/{id}/commands/wait", operation_id = "waitForCommand", tag = "commands",
    request_body = Pid,
    responses((status = 200, description = "It has ended", body = Waited))
)]
pub(super) async fn wait(Awake(sandbox): Awake, Body(body): Body<Pid>) -> Answer<Waited> {
    let end = End::from(sandbox.wait(body.pid).await?);
    Ok(Json(Waited { success: true, exit_code: end.exit_code, data: end }))
}

/// Sends a signal to a command in the background.
#[utoipa::path(
    post, path = "/sandboxes/{id}/commands/kill", operation_id = "killCommand", tag = "commands",
    request_body = Pid,
    responses((status = 200, description = "The signal was sent, or it had ended already", body = Killed))
)]
pub(super) async fn kill(Awake(sandbox): Awake, Body(body): Body<Pid>) -> Answer<Killed> {
    if let Some(signal) = body.signal.filter(|signal| !(1..=64).contains(signal)) {
        return Err(Problem::field("signal", format!("{signal} is not between 1 and 64")));
    }
    let running = sandbox.kill(body.pid, body.signal).await?;
    let message = if running { "process killed" } else { "the process has ended already" };
    Ok(Json(Killed { success: running, message }))
}
