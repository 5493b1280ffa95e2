//! The JSON file that docker and podman share the format of. It belongs to other programs: fields that mean nothing here stay as they are.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};

use super::{Credential, server_key};
use crate::registry::endpoint::registry_name;

/// Beyond this it is not a file of credentials.
const MAX_FILE: u64 = 4 << 20;

/// A file as it was read.
pub(in crate::registry) struct AuthFile {
    path: PathBuf,
    root: Map<String, Value>,
}

impl AuthFile {
    /// Reads a file, `None` if there is none.
    pub(in crate::registry) fn read(path: &Path) -> io::Result<Option<Self>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let mut text = Vec::new();
        file.take(MAX_FILE).read_to_end(&mut text)?;
        // docker takes an empty file for an empty configuration.
        let root = if text.trim_ascii().is_empty() { Map::new() } else { serde_json::from_slice(&text)? };
        Ok(Some(Self { path: path.to_owned(), root }))
    }

    /// A file that does not exist yet.
    pub(in crate::registry) fn empty(path: &Path) -> Self {
        Self { path: path.to_owned(), root: Map::new() }
    }

    /// The helpers to ask for a registry, in order.
    pub(in crate::registry) fn helpers(&self, registry: &str) -> Vec<String> {
        let own = self.object("credHelpers").and_then(|helpers| {
            helpers.iter().find(|(key, _)| registry_name(key) == registry).map(|(_, name)| name)
        });
        let mut names: Vec<String> = Vec::new();
        for name in [own, self.root.get("credsStore")].into_iter().flatten().filter_map(Value::as_str) {
            if !name.is_empty() && !names.iter().any(|n| n == name) {
                names.push(name.to_owned());
            }
        }
        names
    }

    /// The credential that the file itself holds: for the repository, for one of its parents (podman), for the registry.
    pub(in crate::registry) fn credential(
        &self,
        registry: &str,
        repository: &str,
    ) -> io::Result<Option<Credential>> {
        let Some(entries) = self.object("auths") else { return Ok(None) };
        let full = format!("{registry}/{repository}");
        let mut wanted = Some(full.trim_end_matches('/'));
        while let Some(name) = wanted {
            for (key, entry) in entries {
                if entry_name(key) == name
                    && let Some(credential) = decode(entry)?
                {
                    return Ok(Some(credential));
                }
            }
            wanted = name.rsplit_once('/').map(|(parent, _)| parent);
        }
        Ok(None)
    }

    /// Puts a password for a registry into the file, or only the registry's name if a helper keeps the password.
    pub(in crate::registry) fn set(&mut self, registry: &str, login: Option<(&str, &str)>) -> io::Result<()> {
        let entry = match login {
            Some((user, password)) => json!({ "auth": BASE64.encode(format!("{user}:{password}")) }),
            None => json!({}),
        };
        self.remove(registry);
        let entries = self.root.entry("auths").or_insert_with(|| Value::Object(Map::new()));
        let entries = entries
            .as_object_mut()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "\"auths\" is not an object"))?;
        entries.insert(server_key(registry), entry);
        Ok(())
    }

    /// Removes what the file says of a registry. True if there was anything.
    pub(in crate::registry) fn remove(&mut self, registry: &str) -> bool {
        let Some(entries) = self.root.get_mut("auths").and_then(Value::as_object_mut) else { return false };
        let before = entries.len();
        entries.retain(|key, _| entry_name(key) != registry);
        entries.len() != before
    }

    /// Writes the file, whole or not at all, for this user's eyes only.
    pub(in crate::registry) fn write(&self) -> io::Result<()> {
        // Whoever keeps the file elsewhere and a link here wants the link to stay.
        let path = match fs::canonicalize(&self.path) {
            Ok(path) => path,
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.path.clone(),
            Err(error) => return Err(error),
        };
        let directory = path.parent().unwrap_or(Path::new("."));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        // docker's own layout, so that a change shows as one.
        let mut text = Vec::new();
        let tabs = serde_json::ser::PrettyFormatter::with_indent(b"\t");
        serde::Serialize::serialize(
            &self.root,
            &mut serde_json::Serializer::with_formatter(&mut text, tabs),
        )?;
        text.push(b'\n');
        let mut file = tempfile::Builder::new()
            .prefix(".config.json.")
            .permissions(fs::Permissions::from_mode(0o600))
            .tempfile_in(directory)?;
        file.write_all(&text)?;
        file.as_file().sync_all()?;
        file.persist(&path)?;
        File::open(directory)?.sync_all()
    }

    fn object(&self, field: &str) -> Option<&Map<String, Value>> {
        self.root.get(field).and_then(Value::as_object)
    }
}

/// What an entry is for: docker writes hosts and URLs, podman also `host/namespace/repository`.
fn entry_name(key: &str) -> String {
    let is_url = key.starts_with("https://") || key.starts_with("http://");
    match key.split_once('/') {
        Some((host, path)) if !is_url && !matches!(path.trim_end_matches('/'), "v1" | "v2") => {
            format!("{}/{}", registry_name(host), path.trim_end_matches('/')).trim_end_matches('/').to_owned()
        }
        _ => registry_name(key),
    }
}

/// The credential of an entry; `None` for the empty ones that docker leaves beside a helper.
fn decode(entry: &Value) -> io::Result<Option<Credential>> {
    let text = |field: &str| entry.get(field).and_then(Value::as_str).filter(|text| !text.is_empty());
    if let Some(token) = text("identitytoken") {
        return Ok(Some(Credential::IdentityToken(token.to_owned())));
    }
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, "an \"auth\" is not base64 of user:password");
    if let Some(encoded) = text("auth") {
        let encoded = encoded.trim().trim_end_matches('=');
        let decoded =
            base64::engine::general_purpose::STANDARD_NO_PAD.decode(encoded).map_err(|_| invalid())?;
        let decoded = String::from_utf8(decoded).map_err(|_| invalid())?;
        let (user, password) = decoded.split_once(':').ok_or_else(invalid)?;
        // Old versions of docker padded with zeros.
        let password = password.trim_end_matches('\0').to_owned();
        return Ok(Some(Credential::Password { user: user.to_owned(), password }));
    }
    Ok(match (text("username"), text("password")) {
        (Some(user), Some(password)) => {
            Some(Credential::Password { user: user.to_owned(), password: password.to_owned() })
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(root: Value) -> AuthFile {
        let Value::Object(root) = root else { panic!("{root}") };
        AuthFile { path: "config.json".into(), root }
    }

    fn password(user: &str, password: &str) -> Credential {
        Credential::Password { user: user.into(), password: password.into() }
    }

    #[test]
    fn keys_in_all_their_forms() {
        for key in ["https://index.docker.io/v1/", "docker.io", "index.docker.io/v1/", "registry-1.docker.io"]
        {
            let file = file(json!({"auths": {key: {"auth": "dTpwOng="}}}));
            assert_eq!(
                file.credential("docker.io", "library/x").unwrap(),
                Some(password("u", "p:x")),
                "{key}"
            );
            assert_eq!(file.credential("ghcr.io", "library/x").unwrap(), None);
        }
    }

    #[test]
    fn the_closest_of_podmans_entries() {
        let file = file(json!({"auths": {
            "quay.io": {"username": "host", "password": "1"},
            "quay.io/org": {"auth": "b3JnOjI"},
            "quay.io/org/app": {},
        }}));
        let user = |repository: &str| file.credential("quay.io", repository).unwrap();
        assert_eq!(user("org/app"), Some(password("org", "2")));
        assert_eq!(user("organ"), Some(password("host", "1")));
        assert_eq!(user(""), Some(password("host", "1")));
    }

    #[test]
    fn odd_entries() {
        let of = |entry: Value| file(json!({"auths": {"r": entry}})).credential("r", "x");
        assert_eq!(
            of(json!({"identitytoken": "t", "auth": "dTo="})).unwrap(),
            Some(Credential::IdentityToken("t".into()))
        );
        for none in [json!({}), json!(null), json!([]), json!({"auth": ""}), json!({"username": "u"})] {
            assert_eq!(of(none).unwrap(), None);
        }
        for bad in ["!", "dQ==", "/////w=="] {
            assert!(of(json!({"auth": bad})).is_err(), "{bad}");
        }
        assert_eq!(file(json!({"auths": 3, "credHelpers": 4})).credential("r", "x").unwrap(), None);
    }

    #[test]
    fn helpers_in_order() {
        let file = file(json!({"credsStore": "all", "credHelpers": {"https://ghcr.io": "own", "r": "all"}}));
        assert_eq!(file.helpers("ghcr.io"), ["own", "all"]);
        assert_eq!(file.helpers("r"), ["all"]);
        assert_eq!(file.helpers("other"), ["all"]);
    }
}
