//! Credentials: where docker and podman keep them, looked up in their order.
//!
//! 1. docker: `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`; a registry's helper (`credHelpers`), the helper for all
//!    (`credsStore`), then what the file itself holds.
//! 2. podman: `$REGISTRY_AUTH_FILE` alone, else `$XDG_RUNTIME_DIR/containers/auth.json`, then
//!    `$XDG_CONFIG_HOME/containers/auth.json` (`~/.config/...`).
//!
//! A file that is absent or broken, or a helper that fails, does not stop a pull: public images need no credentials. What was found
//! at each place is kept for the error message, should the registry want some.

mod file;
mod helper;

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(super) use file::AuthFile;
pub(super) use helper::{Helper, HelperError};

/// Docker Hub's key in credential files and helpers, for historical reasons.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// Where credentials are looked for.
#[derive(Clone, Debug)]
pub struct CredentialSources {
    /// docker's `config.json`, the one that `login` writes.
    pub docker: Option<PathBuf>,
    /// podman's `auth.json` files, in order.
    pub podman: Vec<PathBuf>,
    /// Where the programs `docker-credential-*` are, in the form of `PATH`.
    pub helper_path: OsString,
    /// How long a helper may take; some ask the user for a key to be touched.
    pub helper_timeout: Duration,
}

impl CredentialSources {
    /// Those of docker and podman for this user.
    pub fn from_env() -> Self {
        Self::from_vars(|name| std::env::var_os(name))
    }

    fn from_vars(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let path = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let home = path("HOME");
        let under_home = |rest: &str| home.as_ref().map(|home| home.join(rest));
        let docker = path("DOCKER_CONFIG").or_else(|| under_home(".docker"));
        let podman = match path("REGISTRY_AUTH_FILE") {
            Some(file) => vec![file],
            None => [path("XDG_RUNTIME_DIR"), path("XDG_CONFIG_HOME").or_else(|| under_home(".config"))]
                .into_iter()
                .flatten()
                .map(|directory| directory.join("containers/auth.json"))
                .collect(),
        };
        Self {
            docker: docker.map(|directory| directory.join("config.json")),
            podman,
            helper_path: variable("PATH").unwrap_or_default(),
            helper_timeout: Duration::from_secs(30),
        }
    }

    /// Nowhere: every pull is anonymous.
    pub fn none() -> Self {
        Self {
            docker: None,
            podman: Vec::new(),
            helper_path: OsString::new(),
            helper_timeout: Duration::from_secs(30),
        }
    }

    /// The credential for a repository, and where it was looked for.
    pub(super) async fn lookup(&self, registry: &str, repository: &str) -> Lookup {
        let mut lookup = Lookup::default();
        for path in self.docker.iter().chain(&self.podman) {
            let file = match AuthFile::read(path) {
                Ok(Some(file)) => file,
                Ok(None) => {
                    lookup.note(path, "no such file");
                    continue;
                }
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "credentials not read");
                    lookup.note(path, &error.to_string());
                    continue;
                }
            };
            for name in file.helpers(registry) {
                let helper = Helper::new(&name, self);
                match helper.get(&server_key(registry)).await {
                    Ok(Some(credential)) => return Lookup::found(&helper.program(), credential),
                    Ok(None) => lookup.searched.push(format!("{} (no entry)", helper.program())),
                    Err(error) => {
                        tracing::warn!(helper = helper.program(), %error, "credential helper failed");
                        lookup.searched.push(format!("{} ({error})", helper.program()));
                    }
                }
            }
            match file.credential(registry, repository) {
                Ok(Some(credential)) => return Lookup::found(&path.display().to_string(), credential),
                Ok(None) => lookup.note(path, "no entry"),
                Err(error) => lookup.note(path, &error.to_string()),
            }
        }
        if lookup.searched.is_empty() {
            lookup.searched.push("any place: neither HOME nor DOCKER_CONFIG is set".into());
        }
        lookup
    }
}

/// What a search for credentials came to.
#[derive(Default)]
pub(super) struct Lookup {
    pub(super) credential: Option<Credential>,
    /// Each place with what was there, for the user.
    pub(super) searched: Vec<String>,
}

impl Lookup {
    fn note(&mut self, path: &Path, what: &str) {
        self.searched.push(format!("{} ({what})", path.display()));
    }

    /// What other places lack does not matter any more.
    fn found(place: &str, credential: Credential) -> Self {
        Self { credential: Some(credential), searched: vec![place.to_owned()] }
    }
}

/// What proves to a registry who asks.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Credential {
    Password {
        user: String,
        password: String,
    },
    /// An OAuth2 refresh token: good for tokens, not for Basic.
    IdentityToken(String),
}

/// Secrets do not go into logs.
impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password { user, .. } => write!(f, "Password {{ user: {user:?}, .. }}"),
            Self::IdentityToken(_) => f.write_str("IdentityToken(..)"),
        }
    }
}

/// How docker calls a registry in files and to helpers.
pub(super) fn server_key(registry: &str) -> String {
    if registry == "docker.io" { DOCKER_HUB_KEY.to_owned() } else { registry.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(variables: &[(&str, &str)]) -> CredentialSources {
        CredentialSources::from_vars(|name| {
            variables.iter().find(|(n, _)| *n == name).map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn the_usual_places() {
        let found = sources(&[("HOME", "/home/u"), ("XDG_RUNTIME_DIR", "/run/user/1")]);
        assert_eq!(found.docker, Some("/home/u/.docker/config.json".into()));
        assert_eq!(
            found.podman,
            [
                PathBuf::from("/run/user/1/containers/auth.json"),
                "/home/u/.config/containers/auth.json".into()
            ]
        );
    }

    #[test]
    fn the_environment_names_others() {
        let found = sources(&[
            ("HOME", "/home/u"),
            ("DOCKER_CONFIG", "/d"),
            ("XDG_CONFIG_HOME", "/c"),
            ("XDG_RUNTIME_DIR", ""),
        ]);
        assert_eq!(found.docker, Some("/d/config.json".into()));
        assert_eq!(found.podman, [PathBuf::from("/c/containers/auth.json")]);
        assert_eq!(sources(&[("REGISTRY_AUTH_FILE", "/a")]).podman, [PathBuf::from("/a")]);
        assert_eq!(sources(&[]).docker, None);
    }

    #[test]
    fn secrets_are_not_shown() {
        let secret = Credential::Password { user: "u".into(), password: "hunter2".into() };
        assert!(!format!("{secret:?} {:?}", Credential::IdentityToken("hunter2".into())).contains("hunter2"));
    }
}
