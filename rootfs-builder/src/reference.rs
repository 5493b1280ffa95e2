//! What an image is called here: a local name, or a registry reference in docker's normal form.
//!
//! The two kinds never meet: a local name's key starts with `local/`, and `local` cannot be a registry (a registry's
//! name contains a dot or a colon, or is `localhost`).

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use oci_spec::distribution::Reference;
use serde::{Deserialize, Serialize};

use crate::image::Digest;

/// The image that runs when none is named; its absence has an error of its own.
pub const DEFAULT_IMAGE: &str = "code";

const MAX_LOCAL_NAME: usize = 255;

/// The identity of a reference in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum ImageName {
    /// Given by the user at import or with `--name`; never looked up in a registry.
    Local {
        /// Without `:latest`.
        name: LocalName,
    },
    /// Names an image in a registry.
    Registry {
        /// In normal form, as `docker.io/library/python:3.12`.
        #[serde(with = "whole")]
        reference: Reference,
    },
}

/// A name that an image has on this machine only, as `code` or `team/tool:v2`. `x` and `x:latest` are the same name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LocalName(String);

/// A text that names no image.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    /// Not a local name.
    #[error(
        "{0:?} cannot be an image's name: expected letters, digits and . _ - in parts separated by /, \
         and perhaps a :tag, as in tool or team/tool:v2"
    )]
    Local(String),
    /// It would mean something else.
    #[error("{0:?} cannot be an image's name here: it reads as an image of a registry or as a path")]
    Taken(String),
    /// Not a registry reference either.
    #[error("{text:?} is not an image reference, as python:3.12 or ghcr.io/owner/name@sha256:... are")]
    Reference {
        /// What was given.
        text: String,
        /// What is wrong with it.
        source: oci_spec::distribution::ParseError,
    },
    /// The default image has not been imported.
    #[error(
        "there is no image {DEFAULT_IMAGE:?} yet: `./scripts/images {DEFAULT_IMAGE}` builds and imports it, \
         `voidrun images import {DEFAULT_IMAGE} {DEFAULT_IMAGE}.oci.tar.zst` takes one that was built elsewhere; \
         VOIDRUN_DEFAULT_IMAGE names another default"
    )]
    DefaultImage,
}

impl ImageName {
    /// The unique text of the name; see the module for why the kinds cannot collide.
    pub fn key(&self) -> String {
        match self {
            Self::Local { name } => format!("local/{name}"),
            Self::Registry { reference } => reference.whole(),
        }
    }

    /// The digest of [`ImageName::key`]: a file name in the store.
    pub fn digest(&self) -> Digest {
        Digest::of(self.key().as_bytes())
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local { name } => name.fmt(f),
            Self::Registry { reference } => reference.fmt(f),
        }
    }
}

impl From<LocalName> for ImageName {
    fn from(name: LocalName) -> Self {
        Self::Local { name }
    }
}

impl From<Reference> for ImageName {
    fn from(reference: Reference) -> Self {
        Self::Registry { reference }
    }
}

impl FromStr for LocalName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let word = |part: &str| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric())
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        let (path, tag) = text.rsplit_once(':').map_or((text, None), |(path, tag)| (path, Some(tag)));
        // What docker takes for a registry's host, and what `images pull` takes for a path, mean that and nothing else.
        let host = path.split_once('/').is_some_and(|(host, _)| host.contains('.') || host == "localhost");
        let source = tag.is_some() && ["oci", "docker-archive"].contains(&path);
        if host || source {
            return Err(NameError::Taken(text.chars().take(100).collect()));
        }
        if text.len() > MAX_LOCAL_NAME || !path.split('/').all(word) || !tag.is_none_or(word) {
            return Err(NameError::Local(text.chars().take(100).collect()));
        }
        let text = if tag == Some("latest") { path } else { text };
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for LocalName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<LocalName> for String {
    fn from(name: LocalName) -> String {
        name.0
    }
}

impl fmt::Display for LocalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the user means by `text`: an exact local name (`is_local` knows which there are), then an alias, then a
/// registry reference after docker's normalisation. An alias stands for a name or reference, not for another alias.
pub fn resolve(
    text: &str,
    aliases: &BTreeMap<String, String>,
    is_local: impl Fn(&LocalName) -> bool,
) -> Result<ImageName, NameError> {
    let local = |text: &str| text.parse().ok().filter(&is_local).map(ImageName::from);
    if let Some(name) = local(text) {
        return Ok(name);
    }
    let target = aliases.get(text).map_or(text, String::as_str);
    if let Some(name) = local(target) {
        return Ok(name);
    }
    // Not a fall-through to docker.io/library/code, which is a stranger's image.
    if target.parse().is_ok_and(|LocalName(name)| name == DEFAULT_IMAGE) {
        return Err(NameError::DefaultImage);
    }
    target
        .parse::<Reference>()
        .map(ImageName::from)
        .map_err(|source| NameError::Reference { text: target.chars().take(300).collect(), source })
}

/// A reference as its whole text.
mod whole {
    use oci_spec::distribution::Reference;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(reference: &Reference, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&reference.whole())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Reference, D::Error> {
        let text = String::deserialize(from)?;
        let reference: Reference = text.parse().map_err(D::Error::custom)?;
        if reference.whole() != text {
            return Err(D::Error::custom(format!("{text:?} is not in normal form")));
        }
        Ok(reference)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve_with(text: &str, local: &[&str]) -> Result<ImageName, NameError> {
        let aliases = [("py", "python:3.12"), ("mine", "tool"), ("loop", "py")]
            .map(|(from, to)| (from.to_owned(), to.to_owned()))
            .into();
        resolve(text, &aliases, |name| local.contains(&name.0.as_str()))
    }

    #[test]
    fn docker_normalisation() {
        for (text, key) in [
            ("python", "docker.io/library/python:latest"),
            ("python:3.12", "docker.io/library/python:3.12"),
            ("owner/name", "docker.io/owner/name:latest"),
            ("docker.io/python", "docker.io/library/python:latest"),
            ("index.docker.io/library/python:latest", "docker.io/library/python:latest"),
            ("localhost:5000/x:y", "localhost:5000/x:y"),
            ("ghcr.io/a/b:c", "ghcr.io/a/b:c"),
        ] {
            assert_eq!(resolve_with(text, &[]).unwrap().key(), key, "{text}");
        }
        let pinned = format!("ghcr.io/a/b@{}", Digest::of(b""));
        assert_eq!(resolve_with(&pinned, &[]).unwrap().key(), pinned);
    }

    #[test]
    fn local_before_alias_before_registry() {
        assert_eq!(resolve_with("py", &[]).unwrap().key(), "docker.io/library/python:3.12");
        assert_eq!(resolve_with("py", &["py"]).unwrap().key(), "local/py");
        assert_eq!(resolve_with("mine", &["tool"]).unwrap().key(), "local/tool");
        assert_eq!(resolve_with("loop", &[]).unwrap().key(), "docker.io/library/py:latest");
        assert_eq!(resolve_with("python:3.12", &["python:3.12"]).unwrap().key(), "local/python:3.12");
    }

    #[test]
    fn latest_does_not_escape_to_a_registry() {
        assert_eq!(resolve_with("tool:latest", &["tool"]).unwrap().key(), "local/tool");
        assert!(matches!(resolve_with("code", &[]), Err(NameError::DefaultImage)));
        assert!(matches!(resolve_with("code:latest", &[]), Err(NameError::DefaultImage)));
        assert_eq!(resolve_with("code", &["code"]).unwrap().key(), "local/code");
    }

    #[test]
    fn kinds_have_distinct_keys() {
        let registry = resolve_with("local/x", &[]).unwrap();
        let local = ImageName::from("x".parse::<LocalName>().unwrap());
        assert_ne!(registry.key(), local.key());
        for name in [registry, local] {
            let json = serde_json::to_string(&name).unwrap();
            assert_eq!(serde_json::from_str::<ImageName>(&json).unwrap(), name);
        }
    }

    #[test]
    fn names_that_are_refused() {
        for text in ["", "/", "../x", ".x", "a//b", "a:b:c", "a/", "a:", "-x", "x y", "a@b", &"x".repeat(256)]
        {
            assert!(text.parse::<LocalName>().is_err(), "{text:?}");
        }
        for text in ["ghcr.io/a/b", "localhost/x", "a.b/c:v1", "oci:v1", "docker-archive:x", "oci:latest"] {
            assert!(matches!(text.parse::<LocalName>(), Err(NameError::Taken(_))), "{text:?}");
        }
        for text in ["a.b", "localhost", "a.b:v1", "team/a.b:v1", "oci", "oci/x:v1"] {
            assert!(text.parse::<LocalName>().is_ok(), "{text:?}");
        }
        for text in ["", "UPPER", "a b", "../x", "a@sha256:12"] {
            assert!(matches!(resolve_with(text, &[]), Err(NameError::Reference { .. })), "{text:?}");
        }
        assert!(serde_json::from_str::<ImageName>(r#"{"kind":"registry","reference":"python"}"#).is_err());
    }
}
