//! `voidrun code`

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use protocol::Exit;

use super::Context;
use super::error::CliError;
use super::flags::{Hosts, Networking, Process};
use super::image;
use super::inherit::Inherited;
use super::session::{self, Command, Outcome, Place, Session, Signals, Stdin};
use crate::api::types::{CodeResult, Create, Exec};
use crate::client::{Client, Remote};
use crate::code::{Language, MAX_CODE, Transcript, check};
use crate::images::PullPolicy;

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
  voidrun code --network none untrusted.py
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
    #[command(flatten)]
    networking: Networking,
    #[command(flatten)]
    inherited: Inherited,
    #[command(flatten)]
    hosts: Hosts,
    #[command(flatten)]
    process: Process,
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
    let exec = args.process.exec(language.words())?;
    let Some(sandbox) = &args.sandbox else {
        let text = args.image.as_deref().unwrap_or(&context.config.default_image.value);
        let network = args.networking.wanted();
        args.inherited.check(network.as_ref(), context)?;
        let image = image::get(context, &context.store()?, text, None, PullPolicy::Missing)?;
        let name = image.reference.name.to_string();
        let place = format!("the image {name}");
        let kernel = context.kernel()?;
        let hosts = args.hosts.wanted();
        let image = Some(name);
        let create = Create { image, ephemeral: Some(true), kernel, network, hosts, ..Create::default() };
        let create = args.inherited.add_to(create, context)?;
        return session::block_on(async |signals| {
            let made = async { Place::make(Client::connect(&context.config).await?, &create).await };
            let made = signals.guard(made, "").await?;
            let code = run.session(made.remote(), exec, signals, &place).await;
            made.leave().await;
            code
        });
    };
    if args.inherited.is_some() {
        let wrong = "--inherit with --sandbox: a sandbox gets such settings when it is made".to_owned();
        return Err(CliError::Usage(wrong));
    }
    if args.networking.wanted().is_some() {
        let wrong =
            format!("--network and its rules with --sandbox: `voidrun network {sandbox}` changes its policy");
        return Err(CliError::Usage(wrong));
    }
    if args.hosts.wanted().is_some() {
        return Err(CliError::Usage("--add-host is of a new sandbox, without --sandbox".to_owned()));
    }
    session::block_on(async |signals| {
        let client = signals.guard(Client::connect(&context.config), "").await?;
        let remote = Remote { client, sandbox: sandbox.clone() };
        run.session(&remote, exec, signals, &format!("the sandbox {sandbox}")).await
    })
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
    /// `place` is where the interpreter is looked for.
    async fn session(
        &self,
        remote: &Remote,
        exec: Exec,
        signals: &mut Signals,
        place: &str,
    ) -> Result<u8, CliError> {
        let timeout = self.args.process.timeout;
        let mut transcript = Transcript::new(MAX_OUTPUT);
        let (what, code) = (exec.command.clone(), Stdin::Bytes(self.code.as_bytes()));
        let session = Session {
            transcript: self.context.json.then_some(&mut transcript),
            ..Session::new(remote, Command::Run(Exec { stdin: Some(true), ..exec }), what, code)
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
                Outcome::Killed(_) | Outcome::NobodyReads | Outcome::Left => None,
            };
            if let Some(exit) = exit {
                self.context.print(&CodeResult::new(exit, &transcript), |_| String::new())?;
            }
        }
        Ok(outcome.exit_code(timeout))
    }
}
