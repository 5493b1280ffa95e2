//! Who may come in by TCP: who has the key, and is no web page. A page in a browser of this machine can reach loopback
//! addresses, under a name of its own too (DNS rebinding), so what browsers say of themselves is refused.

use std::net::IpAddr;

use axum::Extension;
use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::Response;
use percent_encoding::percent_decode_str;

use super::problem::Problem;
use crate::daemon::{Connection, Key};

const HEADER: &str = "x-api-key";
const PARAMETER: &str = "apiKey";

pub(super) async fn guard(
    Extension(connection): Extension<Connection>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    if let Some(key) = connection.key() {
        check(key, request.uri(), request.headers())?;
    }
    Ok(next.run(request).await)
}

fn check(key: &Key, uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
    let forbidden = |detail: &str| Err(Problem::new(StatusCode::FORBIDDEN, "forbidden", detail));
    if headers.contains_key(header::ORIGIN) {
        return forbidden("Origin: web pages may not use this API");
    }
    let hosts =
        headers.get_all(header::HOST).iter().map(|host| host.to_str().ok()?.parse::<Authority>().ok());
    let mut hosts = hosts.chain(uri.authority().cloned().map(Some)).peekable();
    if hosts.peek().is_none() || !hosts.all(|host| host.is_some_and(|host| is_loopback(host.host()))) {
        return forbidden("Host: expected localhost or a loopback address");
    }
    let header = headers.get(HEADER).map(|value| value.as_bytes().to_vec());
    let Some(given) = header.or_else(|| parameter(uri, headers)) else {
        return Err(unauthorized("X-API-Key: the key of the daemon's key file is needed here"));
    };
    if key.is(&given) {
        Ok(())
    } else {
        Err(unauthorized("X-API-Key: this is not the key of the daemon's key file"))
    }
}

fn unauthorized(detail: &str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
}

fn is_loopback(host: &str) -> bool {
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost")
        || address.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

/// The key in the address, of a WebSocket alone: there are clients that cannot give it a header.
fn parameter(uri: &Uri, headers: &HeaderMap) -> Option<Vec<u8>> {
    let upgrade = headers.get(header::UPGRADE)?;
    if !upgrade.as_bytes().eq_ignore_ascii_case(b"websocket") {
        return None;
    }
    let mut pairs = uri.query()?.split('&').filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.find(|(name, _)| *name == PARAMETER)?;
    // A plus is one: not all clients encode it, and a key has no blanks.
    Some(percent_decode_str(value).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::response::IntoResponse as _;

    const KEY: &str = "0123456789+/=abc";

    fn status(uri: &str, headers: &[(&'static str, &str)]) -> u16 {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        match check(&Key::of(KEY), &uri.parse().unwrap(), &headers.collect()) {
            Ok(()) => 200,
            Err(problem) => problem.into_response().status().as_u16(),
        }
    }

    #[test]
    fn hosts_and_origins() {
        let with = |host: &str| status("/v1/version", &[("host", host), ("x-api-key", KEY)]);
        for host in ["localhost", "LocalHost:7070", "127.0.0.1:7070", "127.1.2.3", "[::1]:7070"] {
            assert_eq!(with(host), 200, "{host}");
        }
        for host in [
            "example.org",
            "127.0.0.1.example.org",
            "localhost:1@example.org",
            "10.0.0.1",
            "",
            "::1",
            "0.0.0.0",
        ] {
            assert_eq!(with(host), 403, "{host}");
        }
        assert_eq!(status("/", &[("x-api-key", KEY)]), 403);
        assert_eq!(status("http://example.org/", &[("host", "localhost"), ("x-api-key", KEY)]), 403);
        for origin in ["http://localhost", "null", "https://example.org"] {
            assert_eq!(status("/", &[("host", "localhost"), ("origin", origin), ("x-api-key", KEY)]), 403);
        }
    }

    #[test]
    fn keys() {
        let host = ("host", "localhost");
        let upgrade = ("upgrade", "WebSocket");
        assert_eq!(status("/", &[host]), 401);
        assert_eq!(status("/", &[host, ("x-api-key", "wrong")]), 401);
        assert_eq!(status("/?apiKey=0123456789+/=abc", &[host]), 401);
        assert_eq!(status("/?apiKey=0123456789+/=abc", &[host, upgrade]), 200);
        assert_eq!(status("/?cols=80&apiKey=0123456789%2B%2F%3Dabc", &[host, upgrade]), 200);
        assert_eq!(status("/?apiKey=0123456789", &[host, upgrade]), 401);
        assert_eq!(status("/?apiKey=0123456789+/=abc", &[host, upgrade, ("x-api-key", "wrong")]), 401);
    }
}
