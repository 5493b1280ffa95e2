//! The environment of a command: that of files, that of `-e`. What comes later wins.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::api::types::Env;
use crate::cli::error::CliError;

/// `NAME=VALUE`, or `NAME` for what this environment has; if it has nothing the variable is taken away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Variable {
    name: String,
    value: Option<String>,
}

impl FromStr for Variable {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        if name.is_empty() || name.contains(char::is_whitespace) || text.contains('\0') {
            return Err(format!("{name:?} is no variable's name: expected NAME=VALUE or NAME"));
        }
        Ok(Self { name: name.to_owned(), value: value.map(str::to_owned) })
    }
}

/// The variables of `--env-file` and then those of `-e`.
pub(super) fn given(files: &[PathBuf], variables: &[Variable]) -> Result<Vec<Variable>, CliError> {
    let mut all = Vec::new();
    for file in files {
        all.extend(read_file(file)?);
    }
    all.extend(variables.iter().cloned());
    Ok(all)
}

/// The variables of docker's `--env-file`: one a line, as it stands; empty lines and those that begin with `#` do not count.
fn read_file(path: &Path) -> Result<Vec<Variable>, CliError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| CliError::Input { what: path.display().to_string(), source })?;
    let lines = text.strip_prefix('\u{feff}').unwrap_or(&text).lines().map(str::trim_start).enumerate();
    lines
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(index, line)| {
            line.parse().map_err(|e| CliError::Usage(format!("{}:{}: {e}", path.display(), index + 1)))
        })
        .collect()
}

/// All of `variables`; `here` is this environment. As docker has it, one that is not set here is not set there.
pub(super) fn values<'a>(
    variables: impl IntoIterator<Item = &'a Variable>,
    here: impl Fn(&str) -> Option<OsString>,
) -> Result<Env, CliError> {
    let mut environment = Env::new();
    for Variable { name, value } in variables {
        let value = match (value, here(name)) {
            (Some(value), _) => Some(value.clone()),
            (None, Some(value)) => Some(value.into_string().map_err(|_| {
                CliError::Usage(format!("-e {name}: its value here is not UTF-8, which cannot be passed on"))
            })?),
            (None, None) => None,
        };
        environment.insert(name.clone(), value);
    }
    Ok(environment)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt as _;

    fn here(name: &str) -> Option<OsString> {
        match name {
            "TOKEN" => Some("secret".into()),
            "EMPTY" => Some("".into()),
            "BYTES" => Some(OsString::from_vec(vec![0xff])),
            _ => None,
        }
    }

    fn given(variables: &[&str]) -> Result<Vec<String>, CliError> {
        let variables: Vec<Variable> = variables.iter().map(|text| text.parse().unwrap()).collect();
        let shown = |(name, value)| match value {
            Some(value) => format!("{name}={value}"),
            None => name,
        };
        Ok(values(&variables, here)?.into_iter().map(shown).collect())
    }

    #[test]
    fn what_comes_later_wins() {
        assert_eq!(given(&["A=one", "A=two=2", "C="]).unwrap(), ["A=two=2", "C="]);
        assert_eq!(given(&["TOKEN", "EMPTY", "UNSET"]).unwrap(), ["EMPTY=", "TOKEN=secret", "UNSET"]);
        assert!(given(&["BYTES"]).is_err());
    }

    #[test]
    fn names() {
        for text in ["", "=x", "A B=x", " A=x", "A\t=x"] {
            assert!(text.parse::<Variable>().is_err(), "{text:?}");
        }
        assert!("A=b c".parse::<Variable>().is_ok());
    }

    #[test]
    fn files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("env");
        std::fs::write(&path, "\u{feff}# comment\n\n  A='quotes stay' \r\nTOKEN\n").unwrap();
        let read = read_file(&path).unwrap();
        assert_eq!(read, ["A='quotes stay' ".parse().unwrap(), "TOKEN".parse().unwrap()]);
        std::fs::write(&path, "A=1\n=2\n").unwrap();
        let message = read_file(&path).unwrap_err().to_string();
        assert!(message.contains("env:2: "), "{message}");
        assert!(read_file(&dir.path().join("none")).unwrap_err().to_string().contains("none"));
    }
}
