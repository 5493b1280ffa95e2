//! `voidrun completions`

use clap::{Command, CommandFactory as _, ValueEnum};
use clap_complete::{Shell as Generator, generate};

use super::{Cli, error::CliError, write_out};

/// Print what makes a shell complete voidrun's command line
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  voidrun completions bash > ~/.local/share/bash-completion/completions/voidrun
  voidrun completions zsh > ~/.zfunc/_voidrun     # a directory in $fpath
  voidrun completions fish > ~/.config/fish/completions/voidrun.fish")]
pub(crate) struct Args {
    /// The shell that reads it
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

pub(super) fn run(args: &Args) -> Result<(), CliError> {
    let generator = match args.shell {
        Shell::Bash => Generator::Bash,
        Shell::Zsh => Generator::Zsh,
        Shell::Fish => Generator::Fish,
    };
    let mut script = Vec::new();
    generate(generator, &mut visible(&Cli::command()), "voidrun", &mut script);
    write_out(String::from_utf8_lossy(&script).into_owned())
}

/// `command` without what its help does not show either: clap_complete offers hidden options too.
fn visible(command: &Command) -> Command {
    Command::new(command.get_name().to_owned())
        .about(command.get_about().cloned().unwrap_or_default())
        .version(command.get_version().unwrap_or_default().to_owned())
        .args(command.get_arguments().filter(|argument| !argument.is_hide_set()).cloned())
        .subcommands(command.get_subcommands().filter(|command| !command.is_hide_set()).map(visible))
}
