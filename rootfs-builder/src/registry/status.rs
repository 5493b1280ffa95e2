//! Answers that are refusals.

use std::time::SystemTime;

use serde::Deserialize;

use super::auth::{Asked, Grant};
use super::error::{RegistryError, shown};
use super::http::{Answer, Http};
use super::retry::{Again, Failure, retry_after};

/// As much of an error's text as is read.
const MAX_DETAIL: u64 = 16 << 10;

/// An answer with an error status, read.
pub(super) struct Refusal {
    pub(super) status: u16,
    /// For the end of a sentence: empty, or with a colon in front.
    pub(super) detail: String,
    again: Again,
    url: String,
    foreign: bool,
}

/// The body of a registry's error (OCI distribution specification, "Error Codes"), or a token server's (RFC 6749, section 5.2).
#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    errors: Vec<Entry>,
    #[serde(default)]
    error: String,
    #[serde(default)]
    error_description: String,
    #[serde(default)]
    details: String,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

impl Refusal {
    pub(super) async fn read(http: &Http, mut answer: Answer) -> Self {
        let wait = retry_after(answer.headers(), SystemTime::now());
        // The status says enough if the text does not come.
        let body = http.body(&mut answer, MAX_DETAIL).await.unwrap_or_default();
        Self {
            status: answer.status().as_u16(),
            detail: detail(&body),
            again: wait.map_or(Again::Later, Again::After),
            url: answer.shown_url(),
            foreign: answer.foreign,
        }
    }

    /// What it means for who asked with this grant.
    pub(super) fn failure(self, asked: Asked<'_>, grant: &Grant) -> Failure {
        let Self { status, detail, again, url, foreign } = self;
        match status {
            // Not the registry but where it sent us: a signed link that is too old, for which the registry gives a new one.
            401 | 403 if foreign => RegistryError::Status { url, status, detail }.later(),
            401 | 403 => grant.unauthorized(asked, detail).into(),
            429 => Failure {
                error: RegistryError::RateLimited {
                    subject: asked.subject.to_owned(),
                    registry: asked.endpoint.name.clone(),
                    presented: grant.presented,
                    detail,
                },
                again,
            },
            408 | 500 | 502 | 503 | 504 => {
                Failure { error: RegistryError::Status { url, status, detail }, again }
            }
            _ => RegistryError::Status { url, status, detail }.into(),
        }
    }
}

fn detail(body: &[u8]) -> String {
    let Ok(body) = serde_json::from_slice::<Body>(body) else { return String::new() };
    let (code, message) = match body.errors.into_iter().next() {
        Some(entry) => (entry.code, entry.message),
        None => (body.error, body.error_description + &body.details),
    };
    let text = match (code.is_empty(), message.is_empty()) {
        (false, false) => format!("{code}, {message}"),
        _ => code + &message,
    };
    let text = shown(&text);
    if text.is_empty() { text } else { format!(": {text}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_are_found_and_made_harmless() {
        let of = |text: &str| detail(text.as_bytes());
        assert_eq!(of(r#"{"errors":[{"code":"DENIED","message":"no"}]}"#), ": DENIED, no");
        assert_eq!(of(r#"{"errors":[{"code":"NAME_UNKNOWN"}]}"#), ": NAME_UNKNOWN");
        assert_eq!(of(r#"{"error":"invalid_grant"}"#), ": invalid_grant");
        assert_eq!(of(r#"{"details":"incorrect username or password"}"#), ": incorrect username or password");
        assert_eq!(of(r#"{"errors":[{"code":"\u001b[2Jx\n","message":""}]}"#), ": [2Jx");
        assert!(of(&format!(r#"{{"error":"{}"}}"#, "x".repeat(5000))).len() < 300);
        for nothing in ["", "<html>", "[]", "{}", r#"{"errors":7}"#, r#"{"errors":[]}"#] {
            assert_eq!(of(nothing), "", "{nothing}");
        }
    }
}
