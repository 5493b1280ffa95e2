//! Events of a pull, drawn: bars on a terminal, lines elsewhere, nothing with `--json`.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{BinaryBytes, MultiProgress, ProgressBar, ProgressStyle};
use rootfs_builder::image::Digest;
use rootfs_builder::progress::Event;

use super::tell;

/// Draws on standard error.
pub(super) enum Display {
    Bars(Mutex<Bars>),
    Lines(Mutex<Lines>),
    Nothing,
}

impl Display {
    pub(super) fn new(json: bool) -> Self {
        if json {
            Self::Nothing
        } else if std::io::stderr().is_terminal() {
            Self::Bars(Mutex::new(Bars::new()))
        } else {
            Self::Lines(Mutex::default())
        }
    }

    pub(super) fn show(&self, event: Event) {
        match self {
            Self::Bars(bars) => bars.lock().unwrap_or_else(PoisonError::into_inner).show(event),
            Self::Lines(lines) => {
                if let Some(line) = lines.lock().unwrap_or_else(PoisonError::into_inner).line(event) {
                    tell(&line);
                }
            }
            Self::Nothing => {}
        }
    }

    /// Takes the bars away.
    pub(super) fn finish(&self) {
        if let Self::Bars(bars) = self {
            let bars = bars.lock().unwrap_or_else(PoisonError::into_inner);
            // A tick after the clearing would draw it again.
            bars.activity.finish_and_clear();
            // Nothing is lost if the terminal is gone.
            let _ = bars.all.clear();
        }
    }
}

/// One line a step; of a download one each quarter.
#[derive(Default)]
pub(super) struct Lines {
    quarters: HashMap<Digest, u64>,
}

impl Lines {
    fn line(&mut self, event: Event) -> Option<String> {
        Some(match event {
            Event::Resolved { manifest, layers, bytes } => {
                format!("resolved {manifest}: {}, {}", counted(layers, "layer"), BinaryBytes(bytes))
            }
            Event::Present { blob, .. } => format!("layer {}: present", short(&blob)),
            Event::Downloading { blob, done, total } => {
                let quarter = (done * 4).checked_div(total).unwrap_or(4);
                if self.quarters.insert(blob, quarter) == Some(quarter) {
                    return None;
                }
                format!("layer {}: {} of {}", short(&blob), BinaryBytes(done), BinaryBytes(total))
            }
            Event::Retrying { what, reason, delay_ms } => retrying(&what, &reason, delay_ms),
            Event::Downloaded { blob } => format!("layer {}: done", short(&blob)),
            Event::Waiting { what } => format!("waiting for another process: {what}"),
            Event::Converting { layer, layers } => format!("converting layer {layer} of {layers}"),
            Event::Converted { size_bytes } => format!("converted: {} file system", BinaryBytes(size_bytes)),
        })
    }
}

/// A bar a layer, one for all of them, one for what else happens.
pub(super) struct Bars {
    all: MultiProgress,
    layers: HashMap<Digest, ProgressBar>,
    total: ProgressBar,
    activity: ProgressBar,
}

impl Bars {
    fn new() -> Self {
        let all = MultiProgress::new();
        let total = ProgressBar::no_length().with_style(style("total        "));
        let activity = all.add(ProgressBar::new_spinner());
        activity.enable_steady_tick(Duration::from_millis(120));
        Self { all, layers: HashMap::new(), total, activity }
    }

    fn show(&mut self, event: Event) {
        match event {
            Event::Resolved { bytes, .. } => {
                self.total.set_length(bytes);
                self.total = self.all.insert_before(&self.activity, self.total.clone());
            }
            Event::Present { blob, size } => {
                self.advance(blob, size, Some(size)).finish_with_message("present");
            }
            Event::Downloading { blob, done, total } => {
                self.advance(blob, done, Some(total));
            }
            Event::Downloaded { blob } => {
                let length = self.bar(blob).length().unwrap_or(0);
                self.advance(blob, length, None).finish_with_message("done");
            }
            Event::Retrying { what, reason, delay_ms } => {
                // Nothing is lost if the terminal is gone.
                let _ = self.all.println(retrying(&what, &reason, delay_ms));
            }
            Event::Waiting { what } => {
                self.activity.set_message(format!("waiting for another process: {what}"));
            }
            Event::Converting { layer, layers } => {
                self.activity.set_message(format!("writing the file system: layer {layer} of {layers}"));
            }
            Event::Converted { .. } => self.activity.set_message("done"),
        }
    }

    /// Moves a layer's bar, and that of all layers with it.
    fn advance(&mut self, blob: Digest, done: u64, length: Option<u64>) -> ProgressBar {
        let bar = self.bar(blob);
        if let Some(length) = length {
            bar.set_length(length);
        }
        bar.set_position(done);
        self.total.set_position(self.layers.values().map(ProgressBar::position).sum());
        bar
    }

    fn bar(&mut self, blob: Digest) -> ProgressBar {
        let all = &self.all;
        let before = &self.activity;
        let new = || all.insert_before(before, ProgressBar::no_length().with_style(style(&short(&blob))));
        self.layers.entry(blob).or_insert_with(new).clone()
    }
}

fn style(name: &str) -> ProgressStyle {
    let template = format!(
        "{name} [{{bar:30}}] {{binary_bytes:>11}} / {{binary_total_bytes:<11}} {{binary_bytes_per_sec}} {{msg}}"
    );
    ProgressStyle::with_template(&template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

fn retrying(what: &str, reason: &str, delay_ms: u64) -> String {
    format!("{what}: {reason}; again in {:.1} s", Duration::from_millis(delay_ms).as_secs_f64())
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Enough of a digest for people.
pub(super) fn short(digest: &Digest) -> String {
    digest.hex()[..12].to_owned()
}
