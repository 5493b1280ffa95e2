//! Tokens: what a Bearer challenge sends us to get (distribution's token specification, and its OAuth2 variant).

use std::time::{Duration, Instant};

use reqwest::Url;
use reqwest::header::{AUTHORIZATION, HeaderMap};
use serde::Deserialize;

use super::auth::{Asked, Grant, basic, secret_header};
use super::credentials::Credential;
use super::endpoint::{host_of, shown_url};
use super::error::RegistryError;
use super::http::Http;
use super::retry::Failure;
use super::status::Refusal;

/// The largest answer of a token server.
const MAX_TOKEN: u64 = 1 << 20;

/// How long a token is good for if its server does not say, in seconds.
const DEFAULT_LIFETIME: u64 = 60;

/// The longest that is believed, in seconds.
const MAX_LIFETIME: u64 = 24 * 60 * 60;

/// A token is not used in its last seconds: a request takes a while to arrive.
const MARGIN: u64 = 5;

/// Who gives tokens, as a challenge names it.
pub(super) struct Issuer<'a> {
    pub(super) realm: String,
    pub(super) service: Option<String>,
    /// The registry's URL that asked for a token.
    pub(super) registry: &'a Url,
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    /// The same, in the words of OAuth2.
    access_token: Option<String>,
    expires_in: Option<serde_json::Value>,
}

/// Gets a token to pull with, and completes the grant with it.
pub(super) async fn fetch(
    http: &Http,
    asked: Asked<'_>,
    issuer: Issuer<'_>,
    credential: Option<&Credential>,
    grant: Grant,
) -> Result<Grant, Failure> {
    let unusable = |why: String| RegistryError::Authentication { registry: asked.endpoint.name.clone(), why };
    let mut url = realm(http, &issuer).map_err(unusable)?;
    let scope = format!("repository:{}:pull", asked.repository);
    let mut parameters: Vec<(&str, &str)> = Vec::new();
    if let Some(service) = &issuer.service {
        parameters.push(("service", service));
    }
    if !asked.repository.is_empty() {
        parameters.push(("scope", &scope));
    }
    let answer = if let Some(Credential::IdentityToken(token)) = credential {
        parameters.extend([
            ("grant_type", "refresh_token"),
            ("refresh_token", token),
            ("client_id", "voidrun"),
        ]);
        // A URL's query is the one encoder of forms at hand.
        let mut form = url.clone();
        form.query_pairs_mut().clear().extend_pairs(parameters);
        http.post(url, form.query().unwrap_or_default().to_owned()).await?
    } else {
        let mut headers = HeaderMap::new();
        if let Some(Credential::Password { user, password }) = credential {
            headers.insert(AUTHORIZATION, basic(user, password));
            parameters.push(("account", user));
        }
        url.query_pairs_mut().extend_pairs(parameters);
        http.get(url, headers).await?
    };
    if answer.status() != 200 {
        return Err(Refusal::read(http, answer).await.failure(asked, &grant));
    }
    let mut answer = answer;
    let place = answer.shown_url();
    let malformed = || unusable(format!("{place} gives no token"));
    let body = http.body(&mut answer, MAX_TOKEN).await?;
    let answer: Answer = serde_json::from_slice(&body).map_err(|_| malformed())?;
    let token = [answer.token, answer.access_token].into_iter().flatten().find(|token| !token.is_empty());
    let header = token.and_then(|token| secret_header(&format!("Bearer {token}"))).ok_or_else(malformed)?;
    let lifetime = answer.expires_in.and_then(|value| value.as_u64()).unwrap_or(DEFAULT_LIFETIME);
    let usable = Duration::from_secs(lifetime.min(MAX_LIFETIME).saturating_sub(MARGIN));
    Ok(Grant { header: Some(header), until: Some(Instant::now() + usable), ..grant })
}

/// The token server's URL, if a secret may be sent there. It may be on another host, as Docker Hub's is, but not in the clear:
/// without TLS only for a registry without TLS, and only on its own host or one that may go without.
fn realm(http: &Http, issuer: &Issuer<'_>) -> Result<Url, String> {
    let invalid = || "its token server is not a URL".to_owned();
    let mut url = Url::parse(&issuer.realm).map_err(|_| invalid())?;
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_fragment(None);
    match url.scheme() {
        "https" => Ok(url),
        "http"
            if issuer.registry.scheme() == "http"
                && (http.may_be_plain(&url) || host_of(&url) == host_of(issuer.registry)) =>
        {
            Ok(url)
        }
        "http" => Err(format!("its token server {} has no TLS", shown_url(&url))),
        _ => Err(invalid()),
    }
}
