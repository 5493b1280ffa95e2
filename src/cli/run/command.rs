//! What is run: the image's configuration and the command line, put together as docker does.

use std::ffi::OsString;

use protocol::{Command, Exec};
use rootfs_builder::image::ImageConfig;

use super::Args;
use crate::cli::environment;
use crate::cli::error::CliError;
use crate::cli::session::window_size;

/// The request to the agent. `here` is this environment.
pub(super) fn exec(
    args: &Args,
    image: &ImageConfig,
    tty: bool,
    here: impl Fn(&str) -> Option<OsString>,
) -> Result<Exec, CliError> {
    let words = argv(args.entrypoint.as_deref(), &args.command, image);
    if words.is_empty() {
        return Err(CliError::Usage(format!(
            "the image {} does not say what to run: name a command behind it, as in `voidrun run {0} /bin/sh`",
            args.image
        )));
    }
    let changes = environment::given(&args.env_file, &args.env)?;
    let or_image = |given: &Option<String>, image: &str| {
        given.clone().or_else(|| (!image.is_empty()).then(|| image.to_owned()))
    };
    Ok(Exec {
        cwd: or_image(&args.workdir, &image.working_dir),
        env: environment::merge(&image.env, &changes, here)?,
        user: or_image(&args.user, &image.user),
        timeout_ms: args.timeout.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
        tty: tty.then(window_size),
        stdin: args.interactive,
        ..Exec::new(Command::Argv(words))
    })
}

/// The image's entrypoint, then the command, or the image's where none is given. Another entrypoint comes without the image's
/// command; an empty one is none.
fn argv(entrypoint: Option<&str>, command: &[String], image: &ImageConfig) -> Vec<String> {
    match entrypoint {
        None => image.argv(command).into_iter().map(str::to_owned).collect(),
        Some("") => command.to_vec(),
        Some(program) => std::iter::once(program.to_owned()).chain(command.iter().cloned()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn image() -> ImageConfig {
        ImageConfig {
            entrypoint: vec!["/entry".into(), "-x".into()],
            cmd: vec!["default".into()],
            env: vec!["PATH=/bin".into(), "A=image".into()],
            user: "app".into(),
            working_dir: "/app".into(),
            ..ImageConfig::default()
        }
    }

    fn parse(line: &[&str]) -> Args {
        Line::try_parse_from([&["run"], line].concat()).unwrap_or_else(|e| panic!("{e}")).args
    }

    fn exec_of(line: &[&str], image: &ImageConfig) -> Result<Exec, CliError> {
        exec(&parse(line), image, false, |_| None)
    }

    #[test]
    fn entrypoint_and_command() {
        for (line, argv) in [
            (&["i"][..], &["/entry", "-x", "default"][..]),
            (&["i", "a", "b"], &["/entry", "-x", "a", "b"]),
            (&["i", "--", "a", "-b"], &["/entry", "-x", "a", "-b"]),
            // What is behind the image is the command's, whatever it looks like.
            (
                &["i", "a", "--memory", "1g", "--json", "-i"],
                &["/entry", "-x", "a", "--memory", "1g", "--json", "-i"],
            ),
            (&["i", "-c", "x"], &["/entry", "-x", "-c", "x"]),
            (&["i", "a", "--", "b"], &["/entry", "-x", "a", "--", "b"]),
            (&["--entrypoint", "sh", "i"], &["sh"]),
            (&["--entrypoint", "sh", "i", "-c", "x"], &["sh", "-c", "x"]),
            (&["--entrypoint", "", "i", "a"], &["a"]),
        ] {
            let exec = exec_of(line, &image()).unwrap();
            let argv = argv.iter().map(|word| (*word).to_owned()).collect();
            assert_eq!(exec.command, Command::Argv(argv), "{line:?}");
        }
        let nothing = ImageConfig::default();
        for line in [&["tool"][..], &["--entrypoint", "", "tool"]] {
            let message = exec_of(line, &nothing).unwrap_err().to_string();
            assert!(message.contains("tool") && message.contains("what to run"), "{message}");
        }
    }

    #[test]
    fn what_is_given_before_what_the_image_says() {
        let exec = exec_of(&["i"], &image()).unwrap();
        assert_eq!((exec.cwd.as_deref(), exec.user.as_deref()), (Some("/app"), Some("app")));
        assert_eq!((exec.stdin, exec.timeout_ms, exec.tty), (false, None, None));
        let line = ["-w", "/w", "-u", "0:0", "-e", "A=here", "-i", "--timeout", "1.5", "i"];
        let exec = exec_of(&line, &image()).unwrap();
        assert_eq!((exec.cwd.as_deref(), exec.user.as_deref()), (Some("/w"), Some("0:0")));
        assert_eq!(exec.env["A"], "here");
        assert_eq!((exec.stdin, exec.timeout_ms), (true, Some(1500)));
        let exec = exec_of(&["i"], &ImageConfig { cmd: vec!["a".into()], ..ImageConfig::default() }).unwrap();
        assert_eq!((exec.cwd, exec.user, exec.env.len()), (None, None, 0));
    }

    #[test]
    fn bad_arguments() {
        for line in [
            &[][..],
            &["--cpus", "0", "i"],
            &["--cpus", "33", "i"],
            &["--memory", "1", "i"],
            &["--memory", "64m", "i"],
            &["--disk", "1k", "i"],
            &["-w", "relative", "i"],
            &["-e", "=x", "i"],
            &["--timeout", "soon", "i"],
            &["--timeout", "-1", "i"],
            &["--pull", "sometimes", "i"],
            &["--nonsense", "i"],
        ] {
            assert!(Line::try_parse_from([&["run"], line].concat()).is_err(), "{line:?}");
        }
        let args = parse(&["--rm", "-it", "--memory", "512m", "--timeout", "2m", "i"]);
        assert!(args.interactive && args.tty);
        assert_eq!(args.memory.unwrap().mib().bytes(), 512 << 20);
        assert_eq!(args.timeout, Some(std::time::Duration::from_mins(2)));
    }
}
