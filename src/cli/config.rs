//! `voidrun config`

use std::time::Duration;

use serde::Serialize;
use serde_json::json;

use super::{Context, error::CliError, table};
use crate::config::{Origin, Setting};

#[derive(Serialize)]
struct View {
    file: Option<String>,
    settings: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    key: &'static str,
    value: serde_json::Value,
    origin: String,
}

pub(super) fn run(context: &Context) -> Result<(), CliError> {
    let config = &context.config;
    let duration = |setting: &Setting<Duration>| json!(humantime::format_duration(setting.value).to_string());
    let file = config.path.as_ref().map(|path| path.display().to_string());
    let row = |key, value, origin| Row { key, value, origin: describe(origin, file.as_deref()) };
    let settings = vec![
        row("home", json!(config.home.value.display().to_string()), config.home.origin),
        plain(row, "default_image", &config.default_image),
        plain(row, "aliases", &config.aliases),
        plain(row, "mirrors", &config.mirrors),
        plain(row, "insecure_registries", &config.insecure_registries),
        row("gc.budget", json!(config.gc_budget.value.to_string()), config.gc_budget.origin),
        row("gc.grace", duration(&config.gc_grace), config.gc_grace.origin),
        row("kernel", json!(config.kernel.value), config.kernel.origin),
        row("run.cpus", json!(config.cpus.value), config.cpus.origin),
        row("run.memory", json!(config.memory.value.to_string()), config.memory.origin),
        plain(row, "run.network", &config.network),
        plain(row, "run.warm", &config.warm),
        plain(row, "limits.sandboxes", &config.max_sandboxes),
        row("limits.memory", json!(config.max_memory.value.to_string()), config.max_memory.origin),
        row("daemon.idle_timeout", duration(&config.daemon_idle), config.daemon_idle.origin),
    ];
    context.print(&View { file: file.clone(), settings }, |view| {
        let mut rows = vec![["SETTING", "VALUE", "ORIGIN"].map(str::to_owned).to_vec()];
        for Row { key, value, origin } in &view.settings {
            let value = match value {
                serde_json::Value::Null => "-".to_owned(),
                value => value.as_str().map_or_else(|| value.to_string(), str::to_owned),
            };
            rows.push(vec![(*key).to_owned(), value, origin.clone()]);
        }
        table(&rows)
    })
}

fn plain<T: Serialize>(
    row: impl Fn(&'static str, serde_json::Value, Origin) -> Row,
    key: &'static str,
    setting: &Setting<T>,
) -> Row {
    row(key, json!(setting.value), setting.origin)
}

fn describe(origin: Origin, file: Option<&str>) -> String {
    match origin {
        Origin::File => format!("file {}", file.unwrap_or_default()),
        other => other.to_string(),
    }
}
