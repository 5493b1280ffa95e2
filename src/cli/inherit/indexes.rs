//! Where this machine's pip and npm find packages: they are asked themselves, since they alone know all the places of their settings.

use std::io;
use std::process::{Command, Stdio};

use super::super::error::CliError;

/// pip's, which is meant where nothing is set.
pub(super) const PYPI: &str = "https://pypi.org/simple";
/// npm's.
pub(super) const NPM: &str = "https://registry.npmjs.org/";

/// What pip is set to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Pip {
    pub(super) index: Option<String>,
    pub(super) more: Vec<String>,
    /// Whose certificates it does not look at.
    pub(super) trusted: Vec<String>,
}

/// pip's settings; those of nothing where there is no pip.
pub(super) fn pip() -> Result<Pip, CliError> {
    for program in ["pip", "pip3"] {
        if let Some(list) = answer(program, &["config", "list"])? {
            return Ok(Pip::parse(&list));
        }
    }
    Ok(Pip::default())
}

/// npm's registry; its own where there is no npm.
pub(super) fn npm() -> Result<String, CliError> {
    // `npm config get` refuses to tell of an address with a password.
    let list = answer("npm", &["config", "list", "--long"])?;
    Ok(list.as_deref().and_then(registry).unwrap_or_else(|| NPM.to_owned()))
}

/// Of `npm config list --long`: a line each, `KEY = "VALUE"`, with `; ` before those that another comes before.
fn registry(list: &str) -> Option<String> {
    let value = list.lines().find_map(|line| line.strip_prefix("registry = "))?;
    serde_json::from_str(value).ok()
}

/// What a program writes; nothing if it is not there. It is not asked in the user's directory: npm reads settings of the project there,
/// and writes variables of the environment into them, so that a hostile one would decide what the policy opens and what the guest is told.
fn answer(program: &str, arguments: &[&str]) -> Result<Option<String>, CliError> {
    let what = || format!("`{program} {}`, for --inherit indexes", arguments.join(" "));
    let output = Command::new(program).args(arguments).current_dir("/").stdin(Stdio::null()).output();
    let output = match output {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        output => output.map_err(|source| CliError::Input { what: what(), source })?,
    };
    if output.status.success() {
        return Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let first = said.lines().find(|line| !line.is_empty()).unwrap_or("it says nothing");
    Err(CliError::Usage(format!("{} has failed: {first}", what())))
}

impl Pip {
    /// Of `pip config list`: a line each, `SECTION.KEY='VALUE'`, the value as Python writes it. What is set by the environment
    /// comes before what is set for a command, and that before what is set for all of them.
    fn parse(list: &str) -> Self {
        let values = |key: &str| -> Vec<String> {
            let section = |section: &str| {
                let name = format!("{section}.{key}=");
                list.lines().find_map(|line| line.strip_prefix(&name))
            };
            let value = [":env:", "install", "global"].into_iter().find_map(section).unwrap_or_default();
            let quoted = value.strip_prefix(['\'', '"']).and_then(|rest| rest.strip_suffix(['\'', '"']));
            // Nothing but line feeds needs an escape in an address.
            let text = quoted.unwrap_or(value).replace("\\n", " ");
            text.split_whitespace().map(str::to_owned).collect()
        };
        Self {
            index: values("index-url").into_iter().next(),
            more: values("extra-index-url"),
            trusted: values("trusted-host"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pips_settings() {
        let list = ":env:.index-url='https://env.test/simple'\n\
                    global.extra-index-url='\\nhttps://one.test/simple\\nhttps://two.test/simple'\n\
                    global.index-url='https://global.test/simple'\n\
                    global.trusted-host=\"one.test\"\n\
                    install.index-url='https://install.test/simple'\n\
                    install.no-binary=':all:'\n";
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let expected = Pip {
            index: Some("https://env.test/simple".into()),
            more: words(&["https://one.test/simple", "https://two.test/simple"]),
            trusted: words(&["one.test"]),
        };
        assert_eq!(Pip::parse(list), expected);
        let (_, without_env) = list.split_once('\n').unwrap();
        assert_eq!(Pip::parse(without_env).index.unwrap(), "https://install.test/simple");
        assert_eq!(Pip::parse(""), Pip::default());
    }

    #[test]
    fn npms_registry() {
        let list = "; \"default\" config from default values\n\n; registry = \"https://registry.npmjs.org/\" ; overridden by env\n\
                    replace-registry-host = \"npmjs\"\n\n; \"env\" config from environment\n\n\
                    registry = \"https://me:***@mirror.test/npm/\"\n";
        assert_eq!(registry(list).unwrap(), "https://me:***@mirror.test/npm/");
        assert_eq!(registry("registry = null\n"), None);
    }

    /// In a process of its own, whose directory is a project's.
    #[test]
    fn the_directory_of_a_project_is_not_asked() {
        const INSIDE: &str = "VOIDRUN_TEST_REGISTRY";
        if let Ok(expected) = std::env::var(INSIDE) {
            assert_eq!(npm().unwrap(), expected);
            return;
        }
        let (project, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let hostile = "registry=http://hostile.test/${HOME}/\n";
        std::fs::write(project.path().join(".npmrc"), hostile).unwrap();
        std::fs::write(project.path().join("package.json"), "{}").unwrap();
        std::fs::write(home.path().join(".npmrc"), "registry=http://home.test/\n").unwrap();
        let run = |program: &str, settings: &[(&str, &str)]| {
            let mut command = Command::new(program);
            command.current_dir(project.path()).stdin(Stdio::null());
            let npms = |name: &str| name.to_lowercase().starts_with("npm_config_");
            for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(npms)) {
                command.env_remove(name);
            }
            command.env("HOME", home.path()).envs(settings.iter().copied());
            command
        };
        let output = match run("npm", &[]).args(["config", "get", "registry"]).output() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return eprintln!("skipped: there is no npm on this machine, whose settings this is about");
            }
            output => output.unwrap(),
        };
        let there = format!("http://hostile.test/{}/\n", home.path().display());
        assert_eq!(String::from_utf8_lossy(&output.stdout), there, "{output:?}");
        for settings in [
            &[(INSIDE, "http://home.test/")] as &[_],
            &[(INSIDE, "http://env.test/"), ("npm_config_registry", "http://env.test/")],
        ] {
            let this = std::env::current_exe().unwrap();
            let name = "cli::inherit::indexes::tests::the_directory_of_a_project_is_not_asked";
            let output = run(this.to_str().unwrap(), settings).args(["--exact", name]).output().unwrap();
            let told = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && told.contains("1 passed"), "{told}");
        }
    }

    #[test]
    fn a_program_that_fails_is_told_and_one_that_is_not_there_is_none() {
        assert!(answer("no-such-package-manager", &[]).unwrap().is_none());
        assert_eq!(answer("sh", &["-c", "echo yes"]).unwrap().unwrap(), "yes\n");
        let error = answer("sh", &["-c", "echo; echo broken >&2; exit 3"]).unwrap_err().to_string();
        assert!(error.contains("`sh -c") && error.ends_with("has failed: broken"), "{error}");
    }
}
