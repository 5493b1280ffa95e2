//! The user's terminal: its size, and raw while the guest's terminal does the work of its line discipline.

use std::io::{self, IsTerminal as _};

use protocol::WindowSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::cli::error::CliError;

/// A terminal that does not know its size, or no terminal at all.
const USUAL: WindowSize = WindowSize { rows: 24, cols: 80 };

/// The size of the terminal at standard output, or else at standard input.
pub(in crate::cli) fn window_size() -> WindowSize {
    let size = tcgetwinsize(io::stdout()).or_else(|_| tcgetwinsize(io::stdin()));
    match size {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => WindowSize { rows: size.ws_row, cols: size.ws_col },
        _ => USUAL,
    }
}

/// Whether a command gets a terminal: by `-t`, and by `-i` alone where a user sits at both ends.
pub(in crate::cli) fn wants_terminal(interactive: bool, tty: bool) -> Result<bool, CliError> {
    let terminal = interactive && io::stdin().is_terminal();
    if tty && interactive && !terminal {
        return Err(CliError::Usage(
            "-i with -t: standard input is not a terminal; -i alone passes it on as it is".into(),
        ));
    }
    Ok(tty || terminal && io::stdout().is_terminal())
}

/// Standard input's terminal, raw until this is dropped, by a panic as well. Signals that end the program end it by way of
/// `main`, so that this is dropped then, too.
pub(in crate::cli) struct RawMode {
    before: Termios,
}

impl RawMode {
    /// `None` where standard input is no terminal.
    pub(in crate::cli) fn enter() -> io::Result<Option<Self>> {
        let terminal = io::stdin();
        if !terminal.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(&terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&terminal, OptionalActions::Drain, &raw)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // The terminal may be gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.before);
    }
}
