//! `commands`: what runs in the background.

use axum::Json;
use serde_json::{Value, json};

use super::exec::command;
use super::input::{Body, Target};
use super::problem::Problem;
use super::types::{End, Exec, Pid, Process, Run};

type Answer = Result<Json<Value>, Problem>;

pub(super) async fn run(Target(sandbox): Target, Body(body): Body<Run>) -> Answer {
    let Run { command: line, cwd, env, user, timeout } = body;
    let wanted = Exec { command: line.clone(), args: None, cwd, env, user, timeout, tty: None, stdin: None };
    let (mut exec, _) = command(&sandbox, wanted, 0.0)?;
    exec.detached = true;
    let pid = sandbox.exec(exec).await?.pid;
    Ok(Json(json!({ "success": true, "pid": pid, "command": line, "data": { "pid": pid, "command": line } })))
}

pub(super) async fn list(Target(sandbox): Target) -> Answer {
    let processes: Vec<Process> = {
        let processes = sandbox.processes().await?.into_iter();
        // Those have a list of their own.
        processes.filter(|process| !process.terminal).map(Process::from).collect()
    };
    Ok(Json(json!({ "success": true, "processes": processes, "data": processes })))
}

/// Has no deadline: the client has.
pub(super) async fn wait(Target(sandbox): Target, Body(body): Body<Pid>) -> Answer {
    let end = End::from(sandbox.wait(body.pid).await?);
    Ok(Json(json!({ "success": true, "exitCode": end.exit_code, "data": end })))
}

pub(super) async fn kill(Target(sandbox): Target, Body(body): Body<Pid>) -> Answer {
    if let Some(signal) = body.signal.filter(|signal| !(1..=64).contains(signal)) {
        return Err(Problem::field("signal", format!("{signal} is not between 1 and 64")));
    }
    let running = sandbox.kill(body.pid, body.signal).await?;
    let message = if running { "process killed" } else { "the process has ended already" };
    Ok(Json(json!({ "success": running, "message": message })))
}
