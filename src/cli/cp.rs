//! `voidrun cp`

use std::ffi::OsStr;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::copy::{self, Progress};
use super::error::CliError;
use super::{Context, wait_for};
use crate::client::{Client, Remote};

/// Copy files between this machine and a sandbox
#[derive(Debug, clap::Args)]
#[command(
    after_help = "As docker's cp: a directory is copied with what is in it, into a directory that is there, or as the new one that is
named; SRC/. copies what is in it. - is a tar stream, on standard input or standard output. Modes and times are kept, but for
set-user-ID and its like on this machine; owners are not: here the files are the caller's, there those of the image's user.
Nothing that a sandbox sends is written outside of the destination. What is there is replaced, file by file.

Examples:
  voidrun cp script.py dev:/app/
  voidrun cp dev:/app/out .
  voidrun cp src/. dev:/app
  tar c . | voidrun cp - dev:/app
  voidrun cp dev:/var/log - | tar t"
)]
pub(crate) struct Args {
    /// Copy what SRC points to, if it is a symlink
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// What: PATH, SANDBOX:PATH, or -
    #[arg(value_name = "SRC")]
    source: String,
    /// Where to: PATH, SANDBOX:PATH, or -
    #[arg(value_name = "DST")]
    target: String,
}

/// One of the two.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Here(PathBuf),
    There { sandbox: String, path: String },
    Stream,
}

impl Place {
    fn parse(text: &str) -> Self {
        if text == "-" {
            return Self::Stream;
        }
        // As docker has it: ./a:b is a file here.
        match text.split_once(':') {
            Some((sandbox, path)) if !sandbox.is_empty() && !sandbox.starts_with(['.', '/']) => {
                let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
                Self::There { sandbox: sandbox.to_owned(), path }
            }
            _ => Self::Here(text.into()),
        }
    }
}

/// What is copied, as far as where it goes depends on it.
#[derive(Debug)]
struct Source<'a> {
    is_dir: bool,
    /// Whether SRC/. was said.
    contents: bool,
    /// The last component; the root has none.
    name: Option<&'a OsStr>,
}

/// Where something goes: beneath which directory, under which name. An empty name is the directory itself.
#[derive(Debug, PartialEq, Eq)]
struct Goal {
    directory: PathBuf,
    name: PathBuf,
}

impl Goal {
    /// docker's rules. `there` is what stands at `target`: whether it is a directory.
    fn of(source: &Source<'_>, target: &Path, there: Option<bool>) -> Result<Self, CliError> {
        let shown = target.display();
        let slash = target.as_os_str().as_encoded_bytes().ends_with(b"/");
        let beside = || {
            let directory = target.parent().filter(|parent| !parent.as_os_str().is_empty());
            let directory = directory.unwrap_or_else(|| Path::new(".")).to_owned();
            Self { directory, name: target.file_name().unwrap_or_default().into() }
        };
        match there {
            Some(true) if source.contents => Ok(Self { directory: target.to_owned(), name: PathBuf::new() }),
            Some(true) => {
                let name = source.name.unwrap_or_default().into();
                Ok(Self { directory: target.to_owned(), name })
            }
            Some(false) if source.is_dir => {
                Err(CliError::Usage(format!("a directory cannot be copied to the file {shown}")))
            }
            Some(false) if slash => Err(CliError::Usage(format!("{shown} is not a directory"))),
            None if slash && !source.is_dir => Err(CliError::Usage(format!("there is no directory {shown}"))),
            Some(false) | None => Ok(beside()),
        }
    }
}

pub(super) fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    copy(args, context)?;
    if Place::parse(&args.target) == Place::Stream {
        // Standard output is the archive's.
        return Ok(());
    }
    context.print(&json!({ "source": args.source, "target": args.target }), |_| String::new())
}

fn copy(args: &Args, context: &Context) -> Result<(), CliError> {
    let what = format!("{} to {}", args.source, args.target);
    let progress = Progress::new(!context.json && std::io::stderr().is_terminal());
    let connect = async |sandbox: String| {
        let client = Client::connect(&context.config).await?;
        Ok::<_, CliError>(Remote { client, sandbox })
    };
    match (Place::parse(&args.source), Place::parse(&args.target)) {
        (Place::Here(source), Place::There { sandbox, path }) => {
            let metadata = if args.follow_link { source.metadata() } else { source.symlink_metadata() };
            let contents = is_contents(&args.source);
            let found = if contents { source.metadata() } else { metadata };
            let found = found.map_err(|source| CliError::Input { what: args.source.clone(), source })?;
            // Of "..", or of ".", the name that it has.
            let real = if source.file_name().is_some() { Ok(source.clone()) } else { source.canonicalize() };
            let real = real.map_err(|source| CliError::Input { what: args.source.clone(), source })?;
            let from = Source { is_dir: found.is_dir(), contents, name: real.file_name() };
            let (remote, goal) = wait_for("", async {
                let remote = connect(sandbox).await?;
                let there = remote.stat(&path).await?.map(|file| file.is_dir);
                Ok((remote, Goal::of(&from, Path::new(&path), there)?))
            })?;
            let follow = args.follow_link || contents || args.source.ends_with('/');
            copy::into(&remote, &source, follow, &goal.directory, &goal.name, &what, &progress)
        }
        (Place::There { sandbox, path }, Place::Here(target)) => {
            let contents = is_contents(&path);
            let (remote, found) = wait_for("", async {
                let remote = connect(sandbox).await?;
                let found = remote.stat(&path).await?;
                Ok((remote, found))
            })?;
            // A symlink that leads nowhere can be copied as itself.
            let is_dir = found.is_some_and(|file| file.is_dir);
            let from = Source { is_dir, contents, name: Path::new(&path).file_name() };
            let there = target.metadata().ok().map(|metadata| metadata.is_dir());
            let goal = Goal::of(&from, &target, there)?;
            if !goal.directory.is_dir() {
                return Err(CliError::Usage(format!("there is no directory {}", goal.directory.display())));
            }
            let follow = args.follow_link || contents || args.source.ends_with('/');
            copy::out(&remote, &path, follow, &goal.directory, &goal.name, &what, &progress)
        }
        (Place::Stream, Place::There { sandbox, path }) => wait_for("", async {
            let remote = connect(sandbox).await?;
            if !remote.stat(&path).await?.is_some_and(|file| file.is_dir) {
                return Err(CliError::Usage(format!("there is no directory {path} in the sandbox")));
            }
            copy::from_stdin(&remote, &path, &progress).await
        }),
        (Place::There { sandbox, path }, Place::Stream) => {
            if std::io::stdout().is_terminal() {
                let wrong = "a tar stream is nothing for a terminal: redirect standard output";
                return Err(CliError::Usage(wrong.to_owned()));
            }
            wait_for("", async {
                let remote = connect(sandbox).await?;
                copy::to_stdout(&remote, &path, args.follow_link, &progress).await
            })
        }
        _ => {
            let wrong = "one of SRC and DST is in a sandbox, as SANDBOX:PATH, and the other is not";
            Err(CliError::Usage(wrong.to_owned()))
        }
    }
}

fn is_contents(path: &str) -> bool {
    path == "." || path.ends_with("/.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let there = |path: &str| Place::There { sandbox: "dev".to_owned(), path: path.to_owned() };
        assert_eq!(Place::parse("dev:/a:b"), there("/a:b"));
        assert_eq!(Place::parse("dev:a"), there("/a"));
        assert_eq!(Place::parse("dev:"), there("/"));
        assert_eq!(Place::parse("-"), Place::Stream);
        for here in ["./a:b", "/a:b", "a", ":a", "../dev:a"] {
            assert_eq!(Place::parse(here), Place::Here(here.into()));
        }
    }

    #[test]
    fn goals() {
        let name = Some(OsStr::new("s"));
        let file = Source { is_dir: false, contents: false, name };
        let dir = Source { is_dir: true, contents: false, name };
        let contents = Source { is_dir: true, contents: true, name };
        let root = Source { is_dir: true, contents: false, name: None };
        for (source, target, there, expected) in [
            (&file, "/d/t", None, Some(("/d", "t"))),
            (&file, "t", None, Some((".", "t"))),
            (&file, "/d/t", Some(false), Some(("/d", "t"))),
            (&file, "/d/", Some(true), Some(("/d/", "s"))),
            (&file, "/d/", None, None),
            (&file, "/d/", Some(false), None),
            (&dir, "/d/t", None, Some(("/d", "t"))),
            (&dir, "/d/t/", None, Some(("/d", "t"))),
            (&dir, "/d/t", Some(true), Some(("/d/t", "s"))),
            (&dir, "/d/t", Some(false), None),
            (&contents, "/d/t", Some(true), Some(("/d/t", ""))),
            (&contents, "/d/t", None, Some(("/d", "t"))),
            (&root, "/d", Some(true), Some(("/d", ""))),
            (&file, "/", Some(true), Some(("/", "s"))),
        ] {
            let found = Goal::of(source, Path::new(target), there).ok();
            let expected =
                expected.map(|(directory, name)| Goal { directory: directory.into(), name: name.into() });
            assert_eq!(found, expected, "{source:?} {target} {there:?}");
        }
    }
}
