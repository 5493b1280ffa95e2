//! One HTTP exchange: redirects followed with care, every wait with a deadline, every failure with a name.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, LOCATION};
use reqwest::{Method, Response, StatusCode, Url};

use super::cause::{classify, is_certificate_error, timed_out};
use super::endpoint::{Endpoint, host_of, is_loopback, shown_url};
use super::error::RegistryError;
use super::retry::{Failure, RetryPolicy};

/// As many as Go's client follows, and so docker.
const MAX_REDIRECTS: usize = 10;

/// The largest set of headers. A token of a cloud registry takes some 4 KiB.
const MAX_HEADERS: u32 = 64 << 10;

/// For the whole of a small answer (a document, a token), so that a byte now and then is not enough to go on for ever.
const SMALL_ANSWER: Duration = Duration::from_mins(5);

/// Makes requests.
pub(super) struct Http {
    /// By the proxies of the environment.
    proxied: reqwest::Client,
    /// For loopback, which a proxy cannot reach; Go's client, and so docker, does the same.
    direct: reqwest::Client,
    /// Authorities that could not be read.
    unread: Vec<String>,
    insecure: BTreeSet<String>,
    connect_timeout: Duration,
    read_timeout: Duration,
    /// For hosts that may go without TLS: what they turned out to speak.
    schemes: Mutex<HashMap<String, &'static str>>,
    /// Hosts that have answered before: those are there, and a failure to connect to them will pass.
    answered: Mutex<HashSet<String>>,
}

/// What a server answered, headers only so far.
pub(super) struct Answer {
    response: Response,
    /// Where the answer comes from, after redirects.
    pub(super) url: Url,
    /// It comes from another server than was asked.
    pub(super) foreign: bool,
}

impl Answer {
    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    pub(super) fn shown_url(&self) -> String {
        shown_url(&self.url)
    }
}

impl Http {
    pub(super) fn new(policy: &RetryPolicy, insecure: &[String]) -> Result<Self, RegistryError> {
        let (tls, unread) = super::tls::config()?;
        let client = || {
            reqwest::Client::builder()
                .tls_backend_preconfigured(tls.clone())
                .user_agent(concat!("voidrun/", env!("CARGO_PKG_VERSION")))
                .redirect(reqwest::redirect::Policy::none())
                // Our own rules decide what is tried again.
                .retry(reqwest::retry::never())
                .http2_max_header_list_size(MAX_HEADERS)
                .connect_timeout(policy.connect_timeout)
                .referer(false)
        };
        let built = |builder: reqwest::ClientBuilder| {
            builder.build().map_err(|e| RegistryError::Setup { source: e.into() })
        };
        for host in insecure {
            super::endpoint::authority(host)?;
        }
        Ok(Self {
            proxied: built(client())?,
            direct: built(client().no_proxy())?,
            unread,
            insecure: insecure.iter().map(|host| host.to_ascii_lowercase()).collect(),
            connect_timeout: policy.connect_timeout,
            read_timeout: policy.read_timeout,
            schemes: Mutex::default(),
            answered: Mutex::default(),
        })
    }

    /// Plain http is allowed: nothing crosses a network, or the user says so.
    pub(super) fn may_be_plain(&self, url: &Url) -> bool {
        is_loopback(url) || self.insecure.contains(&host_of(url))
    }

    /// The URL of `path` at `endpoint`. Where plain http is allowed, https is tried first, as docker does, and the outcome is remembered.
    pub(super) async fn url(&self, endpoint: &Endpoint, path: &str) -> Result<Url, Failure> {
        let url = |scheme: &str, path: &str| {
            Url::parse(&format!("{scheme}://{}{path}", endpoint.host))
                .map_err(|_| RegistryError::Host { host: endpoint.host.clone() })
        };
        let secure = url("https", path)?;
        if !self.may_be_plain(&secure) {
            return Ok(secure);
        }
        if let Some(scheme) = lock(&self.schemes).get(&endpoint.host) {
            return Ok(url(scheme, path)?);
        }
        let scheme = match self.exchange(Method::GET, &url("https", "/v2/")?, &HeaderMap::new(), None).await {
            Ok(_) => "https",
            // It does speak TLS: going on without would hide what is wrong.
            Err(failure) if is_certificate_error(&failure.error) => return Err(failure),
            Err(_) => {
                self.exchange(Method::GET, &url("http", "/v2/")?, &HeaderMap::new(), None).await?;
                "http"
            }
        };
        lock(&self.schemes).insert(endpoint.host.clone(), scheme);
        Ok(url(scheme, path)?)
    }

    /// GET, by way of redirects. The authorization is for the server that is asked: another one does not see it.
    pub(super) async fn get(&self, url: Url, mut headers: HeaderMap) -> Result<Answer, Failure> {
        let asked = url.origin();
        let mut url = url;
        for _ in 0..=MAX_REDIRECTS {
            let response = self.exchange(Method::GET, &url, &headers, None).await?;
            let status = response.status().as_u16();
            let location = response.headers().get(LOCATION);
            let (true, Some(location)) = (matches!(status, 301 | 302 | 303 | 307 | 308), location) else {
                let foreign = url.origin() != asked;
                return Ok(Answer { response, url, foreign });
            };
            let target = redirect_target(&url, location.as_bytes())?;
            if target.origin() != url.origin() {
                headers.remove(AUTHORIZATION);
            }
            url = target;
        }
        Err(RegistryError::Redirect {
            url: shown_url(&url),
            target: "yet another place".into(),
            why: "there is no end to it",
        }
        .into())
    }

    /// POST of a form, for tokens. A redirect is not followed: the form holds a secret.
    pub(super) async fn post(&self, url: Url, form: String) -> Result<Answer, Failure> {
        let mut headers = HeaderMap::new();
        headers.insert(
            reqwest::header::CONTENT_TYPE,
            reqwest::header::HeaderValue::from_static("application/x-www-form-urlencoded"),
        );
        let response = self.exchange(Method::POST, &url, &headers, Some(form)).await?;
        Ok(Answer { response, url, foreign: false })
    }

    async fn exchange(
        &self,
        method: Method,
        url: &Url,
        headers: &HeaderMap,
        body: Option<String>,
    ) -> Result<Response, Failure> {
        let client = if is_loopback(url) { &self.direct } else { &self.proxied };
        let mut request = client.request(method, url.clone()).headers(headers.clone());
        if let Some(body) = body {
            request = request.body(body);
        }
        let patience = self.connect_timeout + self.read_timeout;
        let host = host_of(url);
        match tokio::time::timeout(patience, request.send()).await {
            Ok(Ok(response)) => {
                lock(&self.answered).insert(host);
                Ok(response)
            }
            outcome => {
                // What it speaks is found out again: it may come back as another.
                lock(&self.schemes).remove(&host);
                Err(match outcome {
                    Ok(Err(error)) if !error.is_timeout() => {
                        let answered = lock(&self.answered).contains(&host);
                        classify(error, url, answered, &self.unread)
                    }
                    Ok(_) => timed_out(url, self.connect_timeout),
                    Err(_) => timed_out(url, patience),
                })
            }
        }
    }

    /// The next bytes of an answer's body, `None` at its end.
    pub(super) async fn chunk(
        &self,
        answer: &mut Answer,
    ) -> Result<Option<impl AsRef<[u8]> + use<>>, Failure> {
        match tokio::time::timeout(self.read_timeout, answer.response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(error)) => Err(classify(error, &answer.url, true, &self.unread)),
            Err(_) => Err(timed_out(&answer.url, self.read_timeout)),
        }
    }

    /// The whole body of a small answer.
    pub(super) async fn body(&self, answer: &mut Answer, limit: u64) -> Result<Vec<u8>, Failure> {
        let too_large = |answer: &Answer| RegistryError::TooLarge { url: answer.shown_url(), limit };
        if answer.response.content_length().is_some_and(|length| length > limit) {
            return Err(too_large(answer).into());
        }
        let deadline = tokio::time::Instant::now() + SMALL_ANSWER;
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk(answer).await? {
            if (bytes.len() + chunk.as_ref().len()) as u64 > limit {
                return Err(too_large(answer).into());
            }
            bytes.extend_from_slice(chunk.as_ref());
            if tokio::time::Instant::now() > deadline {
                return Err(timed_out(&answer.url, SMALL_ANSWER));
            }
        }
        Ok(bytes)
    }
}

/// Where a redirect leads, if it may be followed.
fn redirect_target(url: &Url, location: &[u8]) -> Result<Url, RegistryError> {
    let refused = |target: String, why| RegistryError::Redirect { url: shown_url(url), target, why };
    let text = std::str::from_utf8(location).map_err(|_| refused("binary data".into(), "it is not a URL"))?;
    let mut target = url.join(text).map_err(|_| refused(super::error::shown(text), "it is not a URL"))?;
    let shown = || super::error::shown(&shown_url(&target));
    match (url.scheme(), target.scheme()) {
        (_, "https") | ("http", "http") => {}
        (_, "http") => return Err(refused(shown(), "it gives up TLS")),
        _ => return Err(refused(shown(), "it is neither http nor https")),
    }
    // The client would make an authorization of them. They fail only for URLs without a host.
    let _ = target.set_username("");
    let _ = target.set_password(None);
    Ok(target)
}

/// A panic elsewhere leaves these maps whole: each change is one insertion.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_keep_tls_and_drop_users() {
        let from = Url::parse("https://registry.example.com/v2/x/blobs/y").unwrap();
        let to = |location: &str| redirect_target(&from, location.as_bytes()).map(|url| url.to_string());
        assert_eq!(to("/other").unwrap(), "https://registry.example.com/other");
        assert_eq!(to("https://u:p@cdn.example.com/b?s=1").unwrap(), "https://cdn.example.com/b?s=1");
        for bad in ["http://cdn.example.com/b", "file:///etc/passwd", "ftp://x/y", "https://", "data:,x"] {
            assert!(matches!(to(bad), Err(RegistryError::Redirect { .. })), "{bad}");
        }
    }
}
