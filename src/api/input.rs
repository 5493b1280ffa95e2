//! What comes in: bodies, query parameters, and the sandbox that a path names.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{HttpBody as _, to_bytes};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::{DeserializeOwned, Deserializer, Error as _, Visitor};
use serde_json::{Map, Value};

use super::problem::Problem;
use crate::daemon::{Daemon, Sandbox};

/// The longest body that is read whole, in bytes: a command line and its environment (2 MiB in Linux), written as JSON.
const MAX_BODY: usize = 4 << 20;
/// A client has so long to send it.
const BODY: Duration = Duration::from_mins(1);
/// Names that are less alike are no help.
const ALIKE: f64 = 0.7;

/// How much a client may get wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wire {
    /// `/v1`: a field that nobody knows is an error.
    Strict,
    /// `/api`: it is ignored, as the published clients expect.
    Lenient,
}

/// A JSON object as the body, of at most `MAX` bytes. An empty body is an empty object, and null the same as absent.
#[derive(Debug)]
pub(super) struct Body<T, const MAX: usize = MAX_BODY>(pub(super) T);

/// Query parameters.
#[derive(Debug)]
pub(super) struct Parameters<T>(pub(super) T);

/// The sandbox of a path.
#[derive(Debug)]
pub(super) struct Target(pub(super) Arc<Sandbox>);

/// The same where its machine is needed: one that wakes by itself has woken.
#[derive(Debug)]
pub(super) struct Awake(pub(super) Arc<Sandbox>);

impl<S: Send + Sync, T: DeserializeOwned, const MAX: usize> FromRequest<S> for Body<T, MAX> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let wire = request.extensions().get::<Wire>().copied().unwrap_or(Wire::Strict);
        let too_long = || {
            let detail = format!("the body cannot be read, or is longer than {MAX} bytes");
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "tooLarge", detail)
        };
        // Told before it is sent, where the client says so.
        if request.body().size_hint().lower() > MAX as u64 {
            return Err(too_long());
        }
        let body = tokio::time::timeout(BODY, to_bytes(request.into_body(), MAX)).await;
        let bytes = body
            .map_err(|_| {
                let detail = format!("the body has not come within {} s", BODY.as_secs());
                Problem::new(StatusCode::REQUEST_TIMEOUT, "timeout", detail)
            })?
            .map_err(|_| too_long())?;
        parse(&bytes, wire).map(Self)
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Parameters<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let Query(parameters) =
            Query::try_from_uri(&parts.uri).map_err(|e| Problem::bad_request(e.body_text()))?;
        Ok(Self(parameters))
    }
}

impl FromRequestParts<Arc<Daemon>> for Target {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, daemon: &Arc<Daemon>) -> Result<Self, Problem> {
        let path = Path::<String>::from_request_parts(parts, daemon).await;
        let Path(key) = path.map_err(|e| Problem::bad_request(e.body_text()))?;
        Ok(Self(daemon.find(&key)?))
    }
}

impl FromRequestParts<Arc<Daemon>> for Awake {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, daemon: &Arc<Daemon>) -> Result<Self, Problem> {
        let Target(sandbox) = Target::from_request_parts(parts, daemon).await?;
        daemon.awake(&sandbox).await?;
        Ok(Self(sandbox))
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8], wire: Wire) -> Result<T, Problem> {
    let mut object: Map<String, Value> = if bytes.is_empty() {
        Map::new()
    } else {
        serde_json::from_slice(bytes)
            .map_err(|e| Problem::bad_request(format!("the body is not a JSON object: {e}")))?
    };
    object.retain(|_, value| !value.is_null());
    let known = fields_of::<T>();
    if wire == Wire::Strict
        && let Some(unknown) = object.keys().find(|name| !known.contains(&name.as_str()))
    {
        let unknown: String = unknown.chars().take(100).collect();
        let near = nearest(&unknown, known);
        let hint = near
            .map_or_else(|| format!("expected {}", known.join(", ")), |near| format!("did you mean {near}?"));
        return Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "unknownField",
            format!("{unknown}: there is no such field; {hint}"),
        ));
    }
    serde_path_to_error::deserialize(Value::Object(object)).map_err(|error| {
        let path = error.path().to_string();
        let wrong = error.into_inner();
        // A field that is missing is named by the message.
        if path == "." { Problem::field("the body", wrong) } else { Problem::field(&path, wrong) }
    })
}

fn nearest<'a>(wrong: &str, known: &[&'a str]) -> Option<&'a str> {
    let likeness =
        |name: &&str| strsim::jaro_winkler(&wrong.to_ascii_lowercase(), &name.to_ascii_lowercase());
    let near = known.iter().map(|name| (likeness(name), *name)).filter(|(score, _)| *score > ALIKE);
    near.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, name)| name)
}

/// The names of the fields of a struct, as its `Deserialize` asks for them.
fn fields_of<T: DeserializeOwned>() -> &'static [&'static str] {
    struct Names<'a>(&'a mut &'static [&'static str]);

    impl<'de> Deserializer<'de> for Names<'_> {
        type Error = serde::de::value::Error;

        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
            Err(Self::Error::custom("not a struct"))
        }

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            _: V,
        ) -> Result<V::Value, Self::Error> {
            *self.0 = fields;
            Err(Self::Error::custom("only the names were wanted"))
        }

        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
            newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }

    let mut names: &'static [&'static str] = &[];
    let _ = T::deserialize(Names(&mut names));
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::{Create, Exec};
    use axum::response::IntoResponse as _;

    async fn refused<T: DeserializeOwned + std::fmt::Debug>(body: &str, wire: Wire) -> (u16, Value) {
        let response = parse::<T>(body.as_bytes(), wire).unwrap_err().into_response();
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        let status = response.status().as_u16();
        let bytes = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, serde_json::from_slice(&bytes).unwrap())
    }

    #[test]
    fn null_is_absent_and_an_empty_body_an_empty_object() {
        let body: Create =
            parse(br#"{"name": null, "cpu": 2, "sync": true, "region": null}"#, Wire::Strict).unwrap();
        assert_eq!((body.name, body.cpu), (None, Some(2)));
        assert_eq!(parse::<Create>(b"", Wire::Strict).unwrap().cpu, None);
    }

    #[tokio::test]
    async fn unknown_fields() {
        for (body, near) in
            [(r#"{"memory": 1}"#, "mem"), (r#"{"envvars": {}}"#, "envVars"), (r#"{"diskMb": 1}"#, "diskMB")]
        {
            let (status, problem) = refused::<Create>(body, Wire::Strict).await;
            let detail = problem["detail"].as_str().unwrap();
            assert_eq!((status, problem["type"].as_str()), (422, Some("urn:voidrun:problem:unknownField")));
            assert!(detail.contains(&format!("did you mean {near}?")), "{detail}");
            assert!(parse::<Create>(body.as_bytes(), Wire::Lenient).is_ok());
        }
        let (_, problem) = refused::<Exec>(r#"{"command": "x", "zzzz": 1}"#, Wire::Strict).await;
        assert!(problem["detail"].as_str().unwrap().contains("expected command, args"), "{problem}");
    }

    #[tokio::test]
    async fn what_is_wrong_is_named() {
        for (body, status, words) in [
            ("[]", 400, "not a JSON object"),
            ("{", 400, "not a JSON object"),
            (r#"{"command": 1}"#, 422, "command: "),
            (r#"{"command": "x", "args": ["a", 2]}"#, 422, "args[1]: "),
            (r#"{"command": "x", "env": {"A": 1}}"#, 422, "env.A: "),
            ("{}", 422, "command"),
        ] {
            let (found, problem) = refused::<Exec>(body, Wire::Lenient).await;
            assert_eq!(found, status, "{body}");
            for member in ["detail", "message", "details"] {
                assert!(problem[member].as_str().unwrap().contains(words), "{problem}");
            }
            assert_eq!((&problem["code"], &problem["status"]), (&status.into(), &status.into()));
        }
    }
}
