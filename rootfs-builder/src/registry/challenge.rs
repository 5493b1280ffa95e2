//! What a 401 asks for (RFC 9110, section 11.6.1; distribution's token specification).

use http_auth::ChallengeParser;
use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// A challenge that can be answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User and password with each request.
    Basic,
    /// A token from `realm`, in the name of `service`.
    Bearer { realm: String, service: Option<String> },
}

impl Challenge {
    /// The challenge to answer. Where there is a choice, a token: it is worth less to a thief than a password.
    ///
    /// The scope that the server asks for is not looked at: a pull needs to pull, a token for more is a risk for nothing.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut basic = None;
        for value in headers.get_all(WWW_AUTHENTICATE) {
            // What cannot be parsed ends this header, not the search.
            let parsed = ChallengeParser::new(value.to_str().unwrap_or_default()).map_while(Result::ok);
            for challenge in parsed {
                let parameter = |name: &str| {
                    let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                    found.map(|(_, value)| value.to_unescaped())
                };
                if challenge.scheme.eq_ignore_ascii_case("bearer")
                    && let Some(realm) = parameter("realm")
                {
                    return Some(Self::Bearer { realm, service: parameter("service") });
                }
                if challenge.scheme.eq_ignore_ascii_case("basic") {
                    basic = Some(Self::Basic);
                }
            }
        }
        basic
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(values: &[&str]) -> Option<Challenge> {
        Challenge::of(&values.iter().map(|v| (WWW_AUTHENTICATE, v.parse().unwrap())).collect())
    }

    fn bearer(realm: &str, service: Option<&str>) -> Challenge {
        Challenge::Bearer { realm: realm.into(), service: service.map(Into::into) }
    }

    #[test]
    fn what_registries_say() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/x:pull""#;
        assert_eq!(of(&[hub]), Some(bearer("https://auth.docker.io/token", Some("registry.docker.io"))));
        assert_eq!(of(&[r#"Basic realm="Registry""#]), Some(Challenge::Basic));
        assert_eq!(of(&["BASIC realm=x", r#"bearer Realm="y""#]), Some(bearer("y", None)));
        assert_eq!(of(&[r#"Basic realm="x", Bearer realm="y""#]), Some(bearer("y", None)));
    }

    #[test]
    fn what_cannot_be_answered() {
        for values in [&[][..], &["Negotiate"], &["Bearer service=\"s\""], &["=,=", "\"", "Bearer"]] {
            assert_eq!(of(values), None, "{values:?}");
        }
    }

    proptest! {
        #[test]
        fn no_header_panics(text in "[ -~]{0,80}", tail in r#"(Bearer|Basic)?[ ,="\\a-z]{0,40}"#) {
            of(&[&text, &tail]);
        }
    }
}
