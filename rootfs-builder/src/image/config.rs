//! What an image says about running it.

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

/// The image configuration, kept beside the rootfs (OCI image specification, config.md).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ImageConfig {
    /// `os/architecture[/variant]` as the configuration states it.
    pub platform: String,
    /// Arguments that always come first.
    #[serde(default)]
    pub entrypoint: Vec<String>,
    /// Arguments that the user's replace.
    #[serde(default)]
    pub cmd: Vec<String>,
    /// `NAME=value`, in order.
    #[serde(default)]
    pub env: Vec<String>,
    /// `user[:group]`, by name or number; resolved in the guest. Empty: root.
    #[serde(default)]
    pub user: String,
    /// Absolute; created when it is absent. Empty: `/`.
    #[serde(default)]
    pub working_dir: String,
    /// The signal that asks the entrypoint to end, as in `SIGTERM`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// `port[/protocol]`, sorted.
    #[serde(default)]
    pub exposed_ports: Vec<String>,
    /// Sorted by name.
    #[serde(default)]
    pub labels: std::collections::BTreeMap<String, String>,
}

impl ImageConfig {
    /// The command line: `entrypoint` and `cmd`, where `arguments` replace `cmd` unless they are empty.
    pub fn argv<'a>(&'a self, arguments: &'a [String]) -> Vec<&'a str> {
        let rest = if arguments.is_empty() { &self.cmd } else { arguments };
        self.entrypoint.iter().chain(rest).map(String::as_str).collect()
    }
}

impl From<&ImageConfiguration> for ImageConfig {
    fn from(image: &ImageConfiguration) -> Self {
        let mut platform = format!("{}/{}", image.os(), image.architecture());
        if let Some(variant) = image.variant() {
            platform = format!("{platform}/{variant}");
        }
        let Some(config) = image.config() else { return Self { platform, ..Self::default() } };
        let mut exposed_ports = config.exposed_ports().clone().unwrap_or_default();
        exposed_ports.sort();
        Self {
            platform,
            entrypoint: config.entrypoint().clone().unwrap_or_default(),
            cmd: config.cmd().clone().unwrap_or_default(),
            env: config.env().clone().unwrap_or_default(),
            user: config.user().clone().unwrap_or_default(),
            working_dir: config.working_dir().clone().unwrap_or_default(),
            stop_signal: config.stop_signal().clone(),
            exposed_ports,
            labels: config.labels().clone().unwrap_or_default().into_iter().collect(),
        }
    }
}
