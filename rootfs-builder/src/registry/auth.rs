//! Authorization: asked for by a 401, obtained once a repository and kept until it expires.
//!
//! A slot a server and repository holds the current header. Layers are pulled in parallel and meet the same 401 at the same time:
//! whoever holds the slot's lock renews, the others find the renewed header and use it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use reqwest::Url;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};

use super::challenge::Challenge;
use super::credentials::{Credential, CredentialSources, Lookup};
use super::endpoint::Endpoint;
use super::error::RegistryError;
use super::http::{Answer, Http, lock};
use super::retry::Failure;
use super::status::Refusal;
use super::token;

/// Slots that are kept before the unused ones are thrown out.
const MANY_SLOTS: usize = 256;

/// Authorizes requests.
pub(super) struct Auth {
    credentials: Credentials,
    slots: Mutex<HashMap<(String, String), Slot>>,
}

/// Where credentials come from.
pub(super) enum Credentials {
    /// From the user's files and helpers.
    Sources(CredentialSources),
    /// From the user, who wants to know whether they are right.
    Given(Credential),
}

type Slot = Arc<tokio::sync::Mutex<Grant>>;

/// What a server has granted for a repository.
#[derive(Default)]
pub(super) struct Grant {
    pub(super) header: Option<HeaderValue>,
    pub(super) until: Option<Instant>,
    /// Credentials were presented for it.
    pub(super) presented: bool,
    /// Where credentials were looked for.
    pub(super) searched: Vec<String>,
}

impl Grant {
    fn current(&self) -> Option<HeaderValue> {
        self.header.clone().filter(|_| self.until.is_none_or(|until| until > Instant::now()))
    }

    /// The error for who asked with this.
    pub(super) fn unauthorized(&self, asked: Asked<'_>, detail: String) -> RegistryError {
        RegistryError::Unauthorized {
            subject: asked.subject.to_owned(),
            registry: asked.endpoint.name.clone(),
            presented: self.presented,
            searched: self.searched.clone(),
            detail,
        }
    }
}

/// What is asked of whom.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) endpoint: &'a Endpoint,
    /// Empty for a login.
    pub(super) repository: &'a str,
    /// In the words of the user: the reference.
    pub(super) subject: &'a str,
}

impl Auth {
    pub(super) fn new(credentials: Credentials) -> Self {
        Self { credentials, slots: Mutex::default() }
    }

    /// GET with the authorization that the server wants. Errors of the server come back as answers, except a 401 of its own.
    pub(super) async fn get(
        &self,
        http: &Http,
        asked: Asked<'_>,
        url: &Url,
        headers: &HeaderMap,
    ) -> Result<Answer, Failure> {
        let slot = self.slot(asked);
        let mut authorization = slot.lock().await.current();
        let mut renewed = false;
        loop {
            let mut headers = headers.clone();
            headers.extend(authorization.clone().map(|header| (AUTHORIZATION, header)));
            let answer = http.get(url.clone(), headers).await?;
            if answer.status() != 401 || answer.foreign {
                return Ok(answer);
            }
            if renewed {
                let refusal = Refusal::read(http, answer).await;
                return Err(refusal.failure(asked, &*slot.lock().await));
            }
            let mut grant = slot.lock().await;
            let current = grant.current();
            if current.is_none() || current == authorization {
                *grant = self.grant(http, asked, answer).await?;
                renewed = true;
            }
            // Otherwise another task has renewed it. If that is stale again already, the next round renews.
            authorization.clone_from(&grant.header);
        }
    }

    /// The failure that an answer of [`Auth::get`] stands for.
    pub(super) async fn failure(&self, asked: Asked<'_>, refusal: Refusal) -> Failure {
        refusal.failure(asked, &*self.slot(asked).lock().await)
    }

    /// Whether the server wanted to see credentials, and has.
    pub(super) async fn presented(&self, asked: Asked<'_>) -> bool {
        self.slot(asked).lock().await.presented
    }

    /// Does what the 401 `answer` asks for.
    async fn grant(&self, http: &Http, asked: Asked<'_>, answer: Answer) -> Result<Grant, Failure> {
        let challenge = Challenge::of(answer.headers()).ok_or_else(|| RegistryError::Authentication {
            registry: asked.endpoint.name.clone(),
            why: "it asks for neither Basic nor Bearer".into(),
        })?;
        let Lookup { credential, searched } = match &self.credentials {
            Credentials::Sources(sources) => sources.lookup(&asked.endpoint.name, asked.repository).await,
            Credentials::Given(credential) => {
                Lookup { credential: Some(credential.clone()), searched: vec!["the login".into()] }
            }
        };
        let grant = Grant { presented: credential.is_some(), searched, ..Grant::default() };
        match challenge {
            Challenge::Bearer { realm, service } => {
                let from = token::Issuer { realm, service, registry: &answer.url };
                token::fetch(http, asked, from, credential.as_ref(), grant).await
            }
            Challenge::Basic => match credential {
                Some(Credential::Password { user, password }) => {
                    Ok(Grant { header: Some(basic(&user, &password)), ..grant })
                }
                // An identity token is for token servers; this one has none.
                Some(Credential::IdentityToken(_)) | None => {
                    let refusal = Refusal::read(http, answer).await;
                    Err(refusal.failure(asked, &Grant { presented: false, ..grant }))
                }
            },
        }
    }

    fn slot(&self, asked: Asked<'_>) -> Slot {
        let mut slots = lock(&self.slots);
        if slots.len() > MANY_SLOTS {
            slots.retain(|_, slot| Arc::strong_count(slot) > 1);
        }
        slots.entry((asked.endpoint.host.clone(), asked.repository.to_owned())).or_default().clone()
    }
}

/// The header of Basic (RFC 7617), kept out of logs.
pub(super) fn basic(user: &str, password: &str) -> HeaderValue {
    use base64::Engine as _;
    let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    secret_header(&format!("Basic {encoded}")).unwrap_or(HeaderValue::from_static("Basic"))
}

/// A header that is kept out of logs; `None` if the text cannot be one.
pub(super) fn secret_header(text: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::from_str(text).ok()?;
    header.set_sensitive(true);
    Some(header)
}
