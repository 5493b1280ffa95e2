//! `voidrun doctor`

mod finding;
mod guest;
mod host;
mod kvm;
mod session;
mod store;

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::path::PathBuf;

use clap::ValueEnum;
use serde::Serialize;

use self::finding::{Finding, Status};
use super::{Context, error::CliError, printable};
use crate::config::{Origin, Setting};

/// Check whether machines can run here, and say what to do where they cannot
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The exit code is 0 when machines can run here, 1 when a check has failed. A warning is about what works
worse than it could. A check that makes no sense after another one has failed is left out.

With --json: {\"usable\": BOOL, \"findings\": [{\"check\", \"status\", \"detail\", \"remedy\"}]}, where status is ok, warning or
failed and remedy is a text or null. Names of checks are stable: GROUP.NAME.

Examples:
  voidrun doctor
  voidrun doctor --check kvm && echo 'KVM runs guests'
  voidrun doctor --json | jq -r '.findings[] | select(.status != \"ok\") | .check'"
)]
pub(crate) struct Args {
    /// Only the checks of this group; can be given again
    #[arg(long, value_name = "GROUP")]
    check: Vec<Group>,
    /// The guest kernel to look at, as `run` takes it [default: $VOIDRUN_KERNEL, else kernel in the configuration, else this binary's, else the store's]
    #[arg(long, value_name = "PATH")]
    kernel: Option<PathBuf>,
}

/// Checks of one subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Group {
    /// /dev/kvm, and whether it runs a guest
    Kvm,
    /// The kernel that guests boot
    Guest,
    /// The host's kernel and memory
    Host,
    /// Where images and disks are
    Store,
    /// The user's login
    Session,
}

#[derive(Serialize)]
struct Report {
    usable: bool,
    findings: Vec<Finding>,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let config = &context.config;
    let named = match &args.kernel {
        Some(path) => Setting { value: Some(path.clone()), origin: Origin::Flag("--kernel") },
        None => config.kernel.clone(),
    };
    let mut findings = Vec::new();
    for group in Group::value_variants() {
        if !args.check.is_empty() && !args.check.contains(group) {
            continue;
        }
        findings.extend(match group {
            Group::Kvm => kvm::check(),
            Group::Guest => guest::check(&named, &config.home.value),
            Group::Host => host::check(),
            Group::Store => store::check(&config.home.value),
            Group::Session => session::check(),
        });
    }
    let failed: Vec<_> = findings.iter().filter(|found| found.status == Status::Failed).collect();
    let failed = failed.iter().map(|found| found.check).collect::<Vec<_>>().join(", ");
    let report = Report { usable: failed.is_empty(), findings };
    if context.json {
        context.print(&report, |_| String::new())?;
    } else {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        super::write_out(text(&report.findings, std::io::stdout().is_terminal() && !plain))?;
    }
    if report.usable { Ok(()) } else { Err(CliError::Unusable(failed)) }
}

/// A line a finding, and the remedies below.
fn text(findings: &[Finding], colour: bool) -> String {
    let width = findings.iter().map(|found| found.check.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Finding { check, status, detail, .. } in findings {
        let (mark, sgr) = match status {
            Status::Ok => ("ok  ", "32"),
            Status::Warning => ("warn", "33"),
            Status::Failed => ("FAIL", "1;31"),
        };
        let mark = if colour { format!("\x1b[{sgr}m{mark}\x1b[0m") } else { mark.to_owned() };
        let _ = writeln!(text, "{mark}  {check:width$}  {}", printable(detail));
    }
    for Finding { check, remedy, .. } in findings {
        if let Some(remedy) = remedy {
            let lines = printable(remedy).replace('\n', "\n  ");
            let _ = writeln!(text, "\n{check}:\n  {lines}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn for_people() {
        let findings = [
            Finding::ok("kvm.device", "there"),
            Finding::failed("kvm.access", "not\x1b[2J open", "do this\nand that"),
        ];
        assert_eq!(
            text(&findings, false),
            "ok    kvm.device  there\nFAIL  kvm.access  not\u{fffd}[2J open\n\nkvm.access:\n  do this\n  and that\n"
        );
        assert!(text(&findings, true).starts_with("\x1b[32mok  \x1b[0m  kvm.device  there\n"));
    }
}
