//! `code`: code in a language, run to its end. In one answer or, asked for by `Accept`, with its output while it comes.

use axum::Json;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use protocol::ErrorCode;

use super::answers::ServerSentEvent;
use super::exec::{MAX_OUTPUT, TIMEOUT, command, within};
use super::input::{Awake, Body};
use super::problem::Problem;
use super::stream::{Format, answer};
use super::types::{CodeResult, Exec, RunCode};
use crate::code::{Language, MAX_CODE, Transcript, check};
use crate::daemon::{DaemonError, Sandbox};
use crate::sandbox::{Event, Exec as Running, ExecError};

/// The longest code, with each of its bytes escaped as `\u0001` is, and what else there is in a body.
const MAX_BODY: usize = 6 * MAX_CODE + (4 << 20);

/// Runs code and answers when it has ended.
///
/// With `Accept: text/event-stream` or `application/x-ndjson` the answer is as that of `exec-stream`, and ends with a `CodeEnd`.
#[utoipa::path(
    post, path = "/sandboxes/{id}/code", operation_id = "runCode", tag = "code",
    request_body = RunCode,
    responses(
        (
            status = 200,
            description = "It has ended, at its deadline too: then the exit code is 124",
            content((CodeResult = "application/json"), (ServerSentEvent = "text/event-stream"), (String = "application/x-ndjson"))
        )
    )
)]
pub(super) async fn run(
    Awake(sandbox): Awake,
    headers: HeaderMap,
    Body(body): Body<RunCode, MAX_BODY>,
) -> Result<Response, Problem> {
    let (language, code, exec) = wanted(body)?;
    let (exec, deadline) = command(&sandbox, exec, TIMEOUT)?;
    let running = start(&sandbox, language, exec).await?;
    if let Some(format) = Format::asked(&headers) {
        return Ok(answer(sandbox, running, deadline, format, Some(code)));
    }
    let result = within(deadline, collect(&sandbox, running, &code)).await?;
    Ok(Json(result).into_response())
}

/// The language, the code, and the command that runs it.
fn wanted(body: RunCode) -> Result<(Language, String, Exec), Problem> {
    let RunCode { code, language, timeout, cwd, env, user, context_id } = body;
    if context_id.is_some() {
        return Err(Problem::not_implemented("contextId"));
    }
    let language = language.as_deref().unwrap_or("python").parse::<Language>();
    let language = language.map_err(|wrong| Problem::field("language", wrong))?;
    check(&code).map_err(|wrong| Problem::field("code", wrong))?;
    let exec = Exec { cwd, env, user, timeout, stdin: Some(true), ..Exec::default() };
    Ok((language, code, exec.with(language.words())))
}

async fn start(sandbox: &Sandbox, language: Language, exec: protocol::Exec) -> Result<Running, Problem> {
    match sandbox.exec(exec).await {
        Err(DaemonError::Exec { source: ExecError::Refused(refused), .. })
            if refused.code == ErrorCode::NotFound =>
        {
            let missing = language.missing(&format!("the image {}", sandbox.view().record.image_name));
            let detail = format!("language: {missing}");
            Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "interpreterNotFound", detail))
        }
        started => Ok(started?),
    }
}

async fn collect(sandbox: &Sandbox, running: Running, code: &str) -> Result<CodeResult, Problem> {
    let Running { input, mut output, .. } = running;
    let mut transcript = Transcript::new(MAX_OUTPUT);
    let read = async {
        loop {
            match output.next().await {
                Ok(Event::Exit(exit)) => return Ok(CodeResult::new(exit, &transcript)),
                Ok(event) => transcript.push(&event),
                Err(error) => return Err(sandbox.cause(error).await.into()),
            }
        }
    };
    tokio::select! {
        result = read => result,
        never = input.feed(code.as_bytes()) => match never {},
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn body(more: serde_json::Value) -> RunCode {
        let mut body = json!({ "code": "1" });
        let serde_json::Value::Object(more) = more else { panic!("{more}") };
        body.as_object_mut().unwrap().extend(more);
        serde_json::from_value(body).unwrap()
    }

    #[test]
    fn what_is_asked_for() {
        let (language, code, exec) = wanted(body(json!({ "cwd": "/w", "timeout": 2 }))).unwrap();
        assert_eq!((language, &*code), (Language::Python, "1"));
        assert_eq!((&*exec.command, exec.cwd.as_deref(), exec.timeout), ("python3", Some("/w"), Some(2.0)));
        let (_, _, exec) = wanted(body(json!({ "language": "js" }))).unwrap();
        assert_eq!((&*exec.command, exec.stdin), ("node", Some(true)));
        for (wrong, words) in [
            (json!({ "language": "ruby" }), "language: \"ruby\""),
            (json!({ "code": "a\0b" }), "code: has a NUL byte"),
            (json!({ "code": "x".repeat(MAX_CODE + 1) }), "code: is 4194305 bytes"),
            (json!({ "contextId": "c" }), "contextId is not there yet"),
        ] {
            let problem = wanted(body(wrong)).unwrap_err();
            assert!(problem.document().detail.contains(words), "{problem:?}");
        }
    }

    #[test]
    fn a_result_on_the_wire() {
        let mut transcript = Transcript::new(20);
        transcript.push(&Event::Stdout(b"a\r\n{\"b\": 1.0, \"a\": 2}\n".to_vec()));
        transcript.push(&Event::Stderr(b"careful\n".to_vec()));
        let exit = protocol::Exit { exit_code: Some(3), duration_ms: 5, ..protocol::Exit::default() };
        let text = serde_json::to_string(&CodeResult::new(exit, &transcript)).unwrap();
        assert_eq!(
            text,
            concat!(
                r#"{"success":false,"results":{"b": 1.0, "a": 2},"error":"exit code 3: careful","exitCode":3,"#,
                r#""truncated":true,"durationMs":5,"stdout":"a\r\n{\"b\": 1.0, \"a\": 2","stderr":"careful\n","#,
                r#""logs":{"stdout":["a","{\"b\": 1.0, \"a\": 2"],"stderr":["careful"]}}"#
            )
        );
    }
}
