//! Settings and where each comes from: flag, environment, configuration file, default, in this order.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use net::policy::{Mode, Policy};
use rootfs_builder::reference::DEFAULT_IMAGE;
use rootfs_builder::registry::{RegistryError, check_host};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use vmm::spec::Cpus;

use crate::size::{Memory, Size};

const DEFAULT_BUDGET: Size = Size(20 << 30);
const DEFAULT_GRACE: Duration = Duration::from_hours(1);
const DEFAULT_SANDBOXES: usize = 256;
const DEFAULT_IDLE: Duration = Duration::from_mins(5);

/// A value and its origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting<T> {
    pub(crate) value: T,
    pub(crate) origin: Origin,
}

/// Who has the last word on a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// This flag.
    Flag(&'static str),
    /// This variable.
    Environment(&'static str),
    /// The configuration file.
    File,
    /// Nobody.
    Default,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "flag {flag}"),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::File => f.write_str("configuration"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// All settings.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Where the file is, or would be; absent without a home directory.
    pub(crate) path: Option<PathBuf>,
    /// The store.
    pub(crate) home: Setting<PathBuf>,
    /// The image that runs when none is named.
    pub(crate) default_image: Setting<String>,
    /// Short names for references.
    pub(crate) aliases: Setting<BTreeMap<String, String>>,
    /// For a registry, the hosts to ask first.
    pub(crate) mirrors: Setting<BTreeMap<String, Vec<String>>>,
    /// Registries without TLS.
    pub(crate) insecure_registries: Setting<Vec<String>>,
    /// What `images gc` leaves.
    pub(crate) gc_budget: Setting<Size>,
    /// What it does not touch.
    pub(crate) gc_grace: Setting<Duration>,
    /// The guest's kernel; without it this binary's, else the store's.
    pub(crate) kernel: Setting<Option<PathBuf>>,
    /// The vCPUs of a sandbox.
    pub(crate) cpus: Setting<Cpus>,
    /// The memory of a sandbox.
    pub(crate) memory: Setting<Memory>,
    /// What sandboxes reach of which nothing is said.
    pub(crate) network: Setting<Network>,
    /// Whether a new sandbox goes on from where an earlier one of its kind had booted.
    pub(crate) warm: Setting<bool>,
    /// So many sandboxes may there be in the daemon's care.
    pub(crate) max_sandboxes: Setting<usize>,
    /// So much memory may those that run have together.
    pub(crate) max_memory: Setting<Size>,
    /// A daemon that a command has started leaves when it has had nothing to do for so long; 0: never.
    pub(crate) daemon_idle: Setting<Duration>,
}

/// What sandboxes reach of which nothing is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Network {
    /// Nothing.
    None,
    /// What everybody on the Internet reaches.
    #[default]
    Public,
}

impl Network {
    /// As a sandbox has it.
    pub(crate) fn policy(self) -> Policy {
        Policy::from(if self == Self::None { Mode::None } else { Mode::Public })
    }
}

/// The configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    default_image: Option<String>,
    aliases: Option<BTreeMap<String, String>>,
    mirrors: Option<BTreeMap<String, Vec<String>>>,
    insecure_registries: Option<Vec<String>>,
    kernel: Option<PathBuf>,
    #[serde(default)]
    gc: Gc,
    #[serde(default)]
    run: Run,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    daemon: Daemon,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Daemon {
    #[serde(default, deserialize_with = "duration")]
    idle_timeout: Option<Duration>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limits {
    sandboxes: Option<usize>,
    memory: Option<Size>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Run {
    cpus: Option<Cpus>,
    memory: Option<Memory>,
    network: Option<Network>,
    warm: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Gc {
    budget: Option<Size>,
    #[serde(default, deserialize_with = "duration")]
    grace: Option<Duration>,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file is there and cannot be read.
    #[error("cannot read the configuration {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// It says something that is not understood.
    #[error("{}:{line}: {message}{}", path.display(), nearest.as_ref().map(|key| format!("; did you mean `{key}`?")).unwrap_or_default())]
    Parse { path: PathBuf, line: usize, message: String, nearest: Option<String> },
    /// What should be a host is none.
    #[error("{}: {key}", path.display())]
    Host { path: PathBuf, key: String, source: RegistryError },
    /// The kernel would be another one in each directory.
    #[error("{}: kernel is {}, which does not begin with /", path.display(), value.display())]
    Kernel { path: PathBuf, value: PathBuf },
    /// The default image is a path.
    #[error(
        "default_image ({origin}) is {value:?}, which is no image's name: `voidrun images import NAME FILE` makes an \
         image of an archive"
    )]
    DefaultImage { value: String, origin: String },
    /// There is no place for the store.
    #[error("no place for images: set VOIDRUN_HOME or HOME to a directory")]
    NoHome,
}

impl Config {
    /// Reads the environment and the file. `home` is the flag `--home`.
    pub(crate) fn load(
        home: Option<PathBuf>,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, ConfigError> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        // XDG base directories, "Environment variables": relative paths are to be ignored.
        let base = |name: &str, under_home: &str| {
            let named = variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
            named.or_else(|| variable("HOME").map(|home| PathBuf::from(home).join(under_home)))
        };
        let path = base("XDG_CONFIG_HOME", ".config").map(|dir| dir.join("voidrun/config.toml"));
        let file = path.as_ref().map_or(Ok(File::default()), read)?;
        let home = match (home, variable("VOIDRUN_HOME"), base("XDG_DATA_HOME", ".local/share")) {
            (Some(value), ..) => Setting { value, origin: Origin::Flag("--home") },
            (_, Some(value), _) => {
                Setting { value: value.into(), origin: Origin::Environment("VOIDRUN_HOME") }
            }
            (.., Some(dir)) => Setting { value: dir.join("voidrun"), origin: Origin::Default },
            _ => return Err(ConfigError::NoHome),
        };
        let default_image = match variable("VOIDRUN_DEFAULT_IMAGE").and_then(|value| value.into_string().ok())
        {
            Some(value) => Setting { value, origin: Origin::Environment("VOIDRUN_DEFAULT_IMAGE") },
            None => setting(file.default_image, DEFAULT_IMAGE.into()),
        };
        let is_path =
            |value: &str| value == "-" || value.starts_with("oci:") || value.starts_with("docker-archive:");
        if is_path(&default_image.value) {
            let origin = match default_image.origin {
                Origin::Environment(name) => name.into(),
                _ => path.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
            };
            return Err(ConfigError::DefaultImage { value: default_image.value, origin });
        }
        let kernel = match variable("VOIDRUN_KERNEL") {
            Some(value) => {
                Setting { value: Some(value.into()), origin: Origin::Environment("VOIDRUN_KERNEL") }
            }
            None => setting(file.kernel.map(Some), None),
        };
        Ok(Self {
            path,
            home,
            default_image,
            aliases: setting(file.aliases, BTreeMap::new()),
            mirrors: setting(file.mirrors, BTreeMap::new()),
            insecure_registries: setting(file.insecure_registries, Vec::new()),
            gc_budget: setting(file.gc.budget, DEFAULT_BUDGET),
            gc_grace: setting(file.gc.grace, DEFAULT_GRACE),
            kernel,
            cpus: setting(file.run.cpus, Cpus::default()),
            memory: setting(file.run.memory, Memory::default()),
            network: setting(file.run.network, Network::default()),
            warm: setting(file.run.warm, true),
            max_sandboxes: setting(file.limits.sandboxes, DEFAULT_SANDBOXES),
            max_memory: setting(file.limits.memory, memory_of_this_machine()),
            daemon_idle: setting(file.daemon.idle_timeout, DEFAULT_IDLE),
        })
    }
}

/// A guest takes only what it touches, so all of it may be given away.
fn memory_of_this_machine() -> Size {
    let info = rustix::system::sysinfo();
    Size(u64::from(info.mem_unit).saturating_mul(info.totalram))
}

impl File {
    /// Every host is one: what is wrong with it is told with its key.
    fn checked(self, path: &Path) -> Result<Self, ConfigError> {
        let check = |key: String, host: &str| {
            check_host(host).map_err(|source| ConfigError::Host { path: path.to_owned(), key, source })
        };
        if let Some(value) = self.kernel.as_ref().filter(|kernel| !kernel.is_absolute()) {
            return Err(ConfigError::Kernel { path: path.to_owned(), value: value.clone() });
        }
        for host in self.insecure_registries.iter().flatten() {
            check("insecure_registries".into(), host)?;
        }
        for (registry, hosts) in self.mirrors.iter().flatten() {
            check("mirrors".into(), registry)?;
            for host in hosts {
                check(format!("mirrors.{registry:?}"), host)?;
            }
        }
        Ok(self)
    }
}

fn setting<T>(from_file: Option<T>, default: T) -> Setting<T> {
    match from_file {
        Some(value) => Setting { value, origin: Origin::File },
        None => Setting { value: default, origin: Origin::Default },
    }
}

fn read(path: &PathBuf) -> Result<File, ConfigError> {
    match std::fs::read_to_string(path) {
        Ok(text) => parse(path, &text).and_then(|file| file.checked(path)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(File::default()),
        Err(source) => Err(ConfigError::Read { path: path.clone(), source }),
    }
}

fn parse(path: &Path, text: &str) -> Result<File, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let Range { start, .. } = error.span().unwrap_or_default();
        ConfigError::Parse {
            path: path.to_owned(),
            line: text.bytes().take(start).filter(|byte| *byte == b'\n').count() + 1,
            message: error.message().to_owned(),
            nearest: nearest(error.message()),
        }
    })
}

/// Of the keys that serde's message lists behind an unknown one, the nearest to it.
fn nearest(message: &str) -> Option<String> {
    let mut quoted = message.strip_prefix("unknown field")?.split('`').skip(1).step_by(2);
    let wrong = quoted.next()?;
    let near = quoted.map(|key| (strsim::jaro_winkler(wrong, key), key)).filter(|(score, _)| *score > 0.7);
    near.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, key)| key.to_owned())
}

fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(from)?;
    humantime::parse_duration(&text)
        .map(Some)
        .map_err(|e| D::Error::custom(format!("{text:?} is not a duration, as 30m and 2h are: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(file: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("voidrun")).unwrap();
        std::fs::write(dir.path().join("voidrun/config.toml"), file).unwrap();
        Config::load(None, |name| match name {
            "XDG_CONFIG_HOME" => Some(dir.path().into()),
            "HOME" => Some("/home/someone".into()),
            _ => variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()),
        })
    }

    #[test]
    fn precedence() {
        let file = "default_image = 'python:3.12'\n[gc]\nbudget = '1GiB'\n";
        let config = load(file, &[]).unwrap();
        assert_eq!(config.default_image, Setting { value: "python:3.12".into(), origin: Origin::File });
        assert_eq!(config.gc_budget, Setting { value: Size(1 << 30), origin: Origin::File });
        assert_eq!(config.gc_grace.origin, Origin::Default);
        assert_eq!(config.home.value, PathBuf::from("/home/someone/.local/share/voidrun"));

        let config = load(file, &[("VOIDRUN_DEFAULT_IMAGE", "x"), ("VOIDRUN_HOME", "/store")]).unwrap();
        assert_eq!(config.default_image.origin, Origin::Environment("VOIDRUN_DEFAULT_IMAGE"));
        assert_eq!(config.home.value, PathBuf::from("/store"));

        let config = load("", &[("VOIDRUN_HOME", ""), ("XDG_DATA_HOME", "relative")]).unwrap();
        assert_eq!(config.home.origin, Origin::Default);
        assert_eq!(config.home.value, PathBuf::from("/home/someone/.local/share/voidrun"));
        assert_eq!(config.default_image.value, "code");
    }

    #[test]
    fn the_kernel_and_the_size_of_a_sandbox() {
        let config = load("", &[]).unwrap();
        assert_eq!(config.kernel, Setting { value: None, origin: Origin::Default });
        assert_eq!((config.cpus.value.get(), config.memory.value.mib().bytes()), (1, 1 << 30));

        let file = "kernel = '/boot/vmlinux'\n[run]\ncpus = 4\nmemory = '512MiB'\n";
        let config = load(file, &[]).unwrap();
        assert_eq!(config.kernel, Setting { value: Some("/boot/vmlinux".into()), origin: Origin::File });
        assert_eq!((config.cpus.value.get(), config.memory.value.mib().bytes()), (4, 512 << 20));
        let config = load(file, &[("VOIDRUN_KERNEL", "other")]).unwrap();
        assert_eq!(config.kernel.value, Some("other".into()));

        for (file, words) in [
            ("kernel = 'vmlinux'", "does not begin with /"),
            ("[run]\ncpus = 33", "33 is not between 1 and 32"),
            ("[run]\nmemory = 1024", "1KiB"),
        ] {
            let message = load(file, &[]).unwrap_err().to_string();
            assert!(message.contains("config.toml") && message.contains(words), "{message}");
        }
    }

    #[test]
    fn the_daemons_idle_timeout() {
        let idle = |file: &str| load(file, &[]).map(|config| config.daemon_idle);
        assert_eq!(idle("").unwrap(), Setting { value: DEFAULT_IDLE, origin: Origin::Default });
        for (text, seconds) in [("90s", 90), ("1h 30m", 5400), ("0", 0), ("0s", 0)] {
            let found = idle(&format!("[daemon]\nidle_timeout = '{text}'\n")).unwrap();
            assert_eq!(found, Setting { value: Duration::from_secs(seconds), origin: Origin::File });
        }
        for wrong in ["'soon'", "300", "'-1s'"] {
            let message = idle(&format!("[daemon]\nidle_timeout = {wrong}\n")).unwrap_err().to_string();
            assert!(message.contains("config.toml:2:"), "{message}");
        }
    }

    #[test]
    fn unknown_keys_name_line_and_nearest() {
        let message = load("# comment\ninsecure_registry = []\n", &[]).unwrap_err().to_string();
        assert!(message.contains("config.toml:2:"), "{message}");
        assert!(message.contains("did you mean `insecure_registries`?"), "{message}");
        let message = load("[gc]\n\nbugdet = '1GiB'\n", &[]).unwrap_err().to_string();
        assert!(message.contains("config.toml:3:") && message.contains("`budget`?"), "{message}");
        let message = load("[gc]\nbudget = 'much'\n", &[]).unwrap_err().to_string();
        assert!(message.contains("config.toml:2:") && message.contains("not a size"), "{message}");
    }

    #[test]
    fn hosts_and_the_default_image_are_checked() {
        for (file, key) in [
            ("insecure_registries = ['http://x']", "insecure_registries"),
            ("[mirrors]\n'docker.io' = ['mirror/path']", "mirrors.\"docker.io\""),
            ("[mirrors]\n'docker io' = []", "mirrors"),
            ("default_image = 'oci:./x'", "default_image"),
        ] {
            let message = load(file, &[]).unwrap_err().to_string();
            assert!(message.contains("config.toml") && message.contains(key), "{message}");
        }
        let message = load("", &[("VOIDRUN_DEFAULT_IMAGE", "docker-archive:x")]).unwrap_err().to_string();
        assert!(message.contains("VOIDRUN_DEFAULT_IMAGE"), "{message}");
        assert!(load("insecure_registries = ['x:5000']\n[mirrors]\n'docker.io' = ['m']", &[]).is_ok());
    }

    #[test]
    fn no_home() {
        assert!(matches!(Config::load(None, |_| None), Err(ConfigError::NoHome)));
    }
}
