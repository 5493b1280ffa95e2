//! `voidrun code`

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::Exit;
use rootfs_builder::store::{Image, Store};

use super::environment::{self, Variable};
use super::error::CliError;
use super::image::{self, PullPolicy};
use super::session::{Command, Outcome, Session, Signals, Stdin};
use super::{Context, values};
use crate::api::types::{self, CodeResult};
use crate::client::{Client, Remote};
use crate::code::{Language, MAX_CODE, Transcript, check};
use crate::sandbox::{Kernel, Launch, Record, Sandboxes, launch};

/// So much of each output is in the result that --json prints, in bytes.
const MAX_OUTPUT: usize = 8 << 20;

/// Run code in a language
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Python, JavaScript, TypeScript and bash, by the interpreters of the image: python3, node and bash. Without --sandbox
the code gets a sandbox of its own, of which nothing remains. What the code reads from its standard input is empty; what it
imports is looked for in its working directory.

With --json the result is printed when the code has ended: its output, its exit code, and as `results` the last line that
it has printed, parsed if it is JSON. The exit code is the code's, as for `voidrun run`.

Examples:
  voidrun code script.py
  echo 'console.log(6 * 7)' | voidrun code --language js
  voidrun code --sandbox dev -w /app --timeout 30s --json task.ts | jq .results"
)]
pub(crate) struct Args {
    /// The language: python, javascript (js, node), typescript (ts) or bash (sh) [default: by the file's extension]
    #[arg(short, long)]
    language: Option<Language>,
    /// Where it runs: a sandbox's name, its id, or the beginning of that [default: in a new one, which is removed]
    #[arg(long, conflicts_with = "image")]
    sandbox: Option<String>,
    /// The image of the new sandbox [default: default_image in the configuration]
    #[arg(long)]
    image: Option<String>,
    /// A variable of its environment; without a value this environment's
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<Variable>,
    /// The directory that it starts in [default: the image's]
    #[arg(short, long, value_name = "DIR", value_parser = values::absolute)]
    workdir: Option<String>,
    /// Who it runs as, as name, uid, name:group or uid:gid [default: the image's, else root]
    #[arg(short, long)]
    user: Option<String>,
    /// End it after this time, as 30s or 5m [default: never]
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    timeout: Option<Duration>,
    /// The file with the code; - for standard input
    #[arg(default_value = "-")]
    file: PathBuf,
}

/// Code, and how it is to be run.
struct Run<'a> {
    args: &'a Args,
    context: &'a Context,
    language: Language,
    code: String,
}

/// Returns the code's exit code.
pub(super) fn run(args: &Args, context: &Context) -> Result<u8, CliError> {
    let unknown = || {
        let (file, names) = (args.file.display(), Language::NAMES);
        CliError::Usage(format!("the name {file} does not tell the language: --language does, as {names}"))
    };
    let language = args.language.or_else(|| Language::of_file(&args.file)).ok_or_else(unknown)?;
    let run = Run { args, context, language, code: read(&args.file)? };
    // One thread is enough to move bytes.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CliError::Runtime)?;
    if let Some(sandbox) = &args.sandbox {
        return runtime.block_on(run.in_sandbox(sandbox));
    }
    let store = context.store()?;
    let text = args.image.as_deref().unwrap_or(&context.config.default_image.value);
    // Outside of the runtime: a pull has its own.
    let image = image::get(context, &store, text, None, PullPolicy::Missing)?;
    runtime.block_on(run.in_new(&store, &image))
}

/// The code in `file`.
fn read(file: &Path) -> Result<String, CliError> {
    let what = if file == Path::new("-") { "standard input".to_owned() } else { file.display().to_string() };
    // One more than is allowed, so that what is too long shows.
    let limit = MAX_CODE as u64 + 1;
    let mut bytes = Vec::new();
    let read = if file == Path::new("-") {
        std::io::stdin().lock().take(limit).read_to_end(&mut bytes)
    } else {
        File::open(file).and_then(|file| file.take(limit).read_to_end(&mut bytes))
    };
    read.map_err(|source| CliError::Input { what: what.clone(), source })?;
    let wrong = |wrong: String| CliError::Usage(format!("{what}: the code {wrong}"));
    if bytes.len() > MAX_CODE {
        return Err(wrong(format!("is longer than {MAX_CODE} bytes")));
    }
    let code = String::from_utf8(bytes)
        .map_err(|e| wrong(format!("is not UTF-8 at byte {}", e.utf8_error().valid_up_to())))?;
    check(&code).map_err(wrong)?;
    Ok(code)
}

impl Run<'_> {
    /// In a sandbox of the daemon.
    async fn in_sandbox(&self, sandbox: &str) -> Result<u8, CliError> {
        let mut signals = Signals::new()?;
        let client = tokio::select! {
            client = Client::connect(&self.context.config) => client?,
            signal = signals.next() => return Err(CliError::Interrupted { signal, advice: "" }),
        };
        let exec = types::Exec {
            command: self.language.program().to_owned(),
            args: Some(self.language.arguments()),
            cwd: self.args.workdir.clone(),
            env: Some(environment::merge(&[], &self.args.env, |name| std::env::var_os(name))?),
            user: self.args.user.clone(),
            timeout: self.args.timeout.map(|timeout| timeout.as_secs_f64()),
            tty: None,
            stdin: Some(true),
        };
        let remote = Remote { client, sandbox: sandbox.to_owned() };
        let command = Command::There { remote: &remote, exec };
        self.session(command, &mut signals, &format!("the sandbox {sandbox}")).await
    }

    /// In a sandbox of its own, of which nothing remains.
    async fn in_new(&self, store: &Store, image: &Image) -> Result<u8, CliError> {
        let (args, config) = (self.args, &self.context.config);
        let or_default = |given: &Option<String>, image: &str| {
            given.clone().or_else(|| (!image.is_empty()).then(|| image.to_owned()))
        };
        let defaults = &image.record.config;
        let program = self.language.program().to_owned();
        let words = std::iter::once(program).chain(self.language.arguments()).collect();
        let exec = protocol::Exec {
            cwd: or_default(&args.workdir, &defaults.working_dir),
            env: environment::merge(&defaults.env, &args.env, |name| std::env::var_os(name))?,
            user: or_default(&args.user, &defaults.user),
            timeout_ms: args.timeout.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            stdin: true,
            ..protocol::Exec::new(protocol::Command::Argv(words))
        };
        let kernel = Kernel::find(&config.kernel, store.root())?;
        let record = Record::new(image, &kernel, config.cpus.value, config.memory.value.mib());
        let machine = Launch { record: &record, rootfs: &image.rootfs, kernel, cmdline: "" };
        let name = image.reference.name.to_string();
        let sandboxes = Sandboxes::new(store.root());
        let mut signals = Signals::new()?;
        let mut no_steps = |_| {};
        let handle = tokio::select! {
            launched = launch(&sandboxes, machine, &mut no_steps) => {
                launched.map_err(|e| CliError::Launch { image: name.clone(), source: e.into() })?
            }
            signal = signals.next() => return Err(CliError::Interrupted { signal, advice: "" }),
        };
        let command = Command::Here { handle: &handle, exec };
        let code = self.session(command, &mut signals, &format!("the image {name}")).await;
        if let Err(error) = handle.remove() {
            CliError::from(error).warn();
        }
        code
    }

    /// `place` is where the interpreter is looked for.
    async fn session(
        &self,
        command: Command<'_>,
        signals: &mut Signals,
        place: &str,
    ) -> Result<u8, CliError> {
        let timeout = self.args.timeout;
        let mut transcript = Transcript::new(MAX_OUTPUT);
        let session = Session {
            command,
            what: self.language.program().to_owned(),
            stdin: Stdin::Bytes(self.code.as_bytes()),
            tty: false,
            timeout,
            transcript: self.context.json.then_some(&mut transcript),
            mark: &|_| {},
        };
        let outcome = session.run(signals).await.map_err(|error| {
            if error.exit_code_of_run() == 127 {
                CliError::NoInterpreter(self.language.missing(place))
            } else {
                error
            }
        })?;
        if self.context.json {
            let exit = match &outcome {
                Outcome::Exit(exit) => Some(*exit),
                Outcome::Deadline => Some(Exit { timed_out: true, ..Exit::default() }),
                Outcome::Killed(_) | Outcome::NobodyReads => None,
            };
            if let Some(exit) = exit {
                self.context.print(&CodeResult::new(exit, &transcript), |_| String::new())?;
            }
        }
        Ok(outcome.exit_code(timeout))
    }
}
