//! An Exec request as execve(2) takes it. All of it is made before the clone: between clone and execve a process with several threads may
//! not so much as allocate.

use crate::user::User;
use crate::{failure, refusal};
use protocol::{Command, Error, ErrorCode, Exec};
use rustix::io::Errno;
use std::ffi::{CStr, CString, c_char};
use std::path::Path;

/// Where programs are looked for, where the command's environment does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a terminal is taken for, where the environment does not say.
const DEFAULT_TERM: &str = "xterm";

#[derive(Debug)]
pub(super) struct Plan {
    /// The program as it was named.
    name: String,
    /// The files that may be it, in order.
    candidates: Vec<CString>,
    argv: Strings,
    env: Strings,
    cwd: CString,
    /// None: stay who the agent is.
    user: Option<User>,
    tty: bool,
}

impl Plan {
    pub(super) fn new(exec: &Exec) -> Result<Self, Error> {
        let argv = match &exec.command {
            Command::Argv(argv) => argv.clone(),
            Command::Shell(line) => vec![shell()?.to_owned(), "-c".to_owned(), line.clone()],
        };
        let Some(name) = argv.first().filter(|name| !name.is_empty()).cloned() else {
            return Err(refusal(ErrorCode::BadRequest, "command: no program is named"));
        };
        let cwd = exec.cwd.as_deref().unwrap_or("/");
        if !cwd.starts_with('/') {
            return Err(refusal(ErrorCode::Cwd, format!("working directory {cwd:?}: not an absolute path")));
        }
        let user = exec.user.as_deref().map(User::find).transpose()?;

        let mut env = exec.env.clone();
        env.entry("PATH".to_owned()).or_insert_with(|| DEFAULT_PATH.to_owned());
        if !env.contains_key("HOME") {
            let home = match &user {
                Some(user) => user.home.clone(),
                None => User::home_of_root()?,
            };
            env.insert("HOME".to_owned(), home);
        }
        if exec.tty.is_some() {
            env.entry("TERM".to_owned()).or_insert_with(|| DEFAULT_TERM.to_owned());
        }
        for name in env.keys() {
            if name.is_empty() || name.contains('=') {
                return Err(refusal(
                    ErrorCode::BadRequest,
                    format!("env: {name:?} cannot be a variable's name"),
                ));
            }
        }

        let candidates = if name.contains('/') {
            vec![c_string("command", &name)?]
        } else {
            let directories = env["PATH"].split(':').filter(|directory| !directory.is_empty());
            directories
                .map(|directory| c_string("env: PATH", &format!("{directory}/{name}")))
                .collect::<Result<_, _>>()?
        };
        Ok(Self {
            candidates,
            argv: Strings::new("command", argv.iter())?,
            env: Strings::new("env", env.iter().map(|(name, value)| format!("{name}={value}")))?,
            cwd: c_string("cwd", cwd)?,
            user,
            tty: exec.tty.is_some(),
            name,
        })
    }

    pub(super) fn candidates(&self) -> &[CString] {
        &self.candidates
    }

    pub(super) fn argv(&self) -> *const *const c_char {
        self.argv.pointers.as_ptr()
    }

    pub(super) fn env(&self) -> *const *const c_char {
        self.env.pointers.as_ptr()
    }

    pub(super) fn cwd(&self) -> &CStr {
        &self.cwd
    }

    pub(super) const fn user(&self) -> Option<&User> {
        self.user.as_ref()
    }

    pub(super) fn uid(&self) -> Option<u32> {
        self.user.as_ref().map(|user| user.uid)
    }

    pub(super) const fn tty(&self) -> bool {
        self.tty
    }

    /// Why the working directory could not be entered.
    pub(super) fn cwd_error(&self, errno: Errno) -> Error {
        failure(ErrorCode::Cwd, format_args!("working directory {:?}", self.cwd), errno)
    }

    /// Why the program could not be run.
    pub(super) fn exec_error(&self, errno: Errno) -> Error {
        let name = &self.name;
        let missing = matches!(errno, Errno::NOENT | Errno::NOTDIR);
        if !missing {
            return failure(ErrorCode::NotExecutable, name, errno);
        }
        if !name.contains('/') {
            let message = format!("{name}: not found in PATH");
            return Error { code: ErrorCode::NotFound, message, errno: Some(errno.raw_os_error()) };
        }
        if Path::new(name).is_absolute() && Path::new(name).exists() {
            // A script's first line or a program's loader names a file that the image does not have.
            return failure(
                ErrorCode::NotFound,
                format_args!("{name}: the interpreter that it names"),
                errno,
            );
        }
        failure(ErrorCode::NotFound, name, errno)
    }
}

/// The image's shell.
fn shell() -> Result<&'static str, Error> {
    ["/bin/bash", "/bin/sh"].into_iter().find(|shell| Path::new(shell).exists()).ok_or_else(|| {
        refusal(ErrorCode::NoShell, "the image has neither /bin/bash nor /bin/sh to run a command line with")
    })
}

/// Strings as execve takes them: pointers, the last one null.
#[derive(Debug)]
struct Strings {
    /// What the pointers point to.
    _strings: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl Strings {
    fn new(field: &str, strings: impl Iterator<Item = impl AsRef<str>>) -> Result<Self, Error> {
        let strings: Vec<CString> =
            strings.map(|string| c_string(field, string.as_ref())).collect::<Result<_, _>>()?;
        let pointers = strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect();
        Ok(Self { _strings: strings, pointers })
    }
}

fn c_string(field: &str, string: &str) -> Result<CString, Error> {
    CString::new(string)
        .map_err(|_| refusal(ErrorCode::BadRequest, format!("{field}: a NUL byte in {string:?}")))
}
