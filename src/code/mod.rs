//! Code that is run in a sandbox: which program runs it, and what has come of it. Nothing here knows of a wire.
//!
//! The code goes to the standard input of its interpreter, which reads all of it before it begins: what the code itself reads
//! there is empty. So there is no file that could be left behind or that the command's user could not read, the code may be
//! longer than a command line, and what it imports is looked for in the working directory.

mod language;
mod transcript;

pub(crate) use language::Language;
pub(crate) use transcript::{Transcript, error};

/// The longest code, in bytes.
pub(crate) const MAX_CODE: usize = 4 << 20;

/// What is wrong with it as code.
pub(crate) fn check(code: &str) -> Result<(), String> {
    if code.len() > MAX_CODE {
        return Err(format!("is {} bytes long, where {MAX_CODE} are allowed", code.len()));
    }
    match code.find('\0') {
        Some(at) => Err(format!("has a NUL byte at byte {at}, which no language's source has")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_code() {
        assert_eq!(check(""), Ok(()));
        assert_eq!(check(&"x".repeat(MAX_CODE)), Ok(()));
        assert!(check(&"x".repeat(MAX_CODE + 1)).unwrap_err().contains("4194304"));
        assert!(check("a\0").unwrap_err().contains("NUL byte at byte 1"));
    }
}
