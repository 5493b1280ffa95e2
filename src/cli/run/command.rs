//! What is run: the image's configuration and the command line, put together as docker does.

use rootfs_builder::image::ImageConfig;

use super::Args;
use crate::cli::error::CliError;

/// The words of the command: at least one.
pub(super) fn words(args: &Args, image: &ImageConfig) -> Result<Vec<String>, CliError> {
    let words = argv(args.entrypoint.as_deref(), &args.command, image);
    if words.is_empty() {
        return Err(CliError::Usage(format!(
            "the image {} does not say what to run: name a command behind it, as in `voidrun run {0} /bin/sh`",
            args.image
        )));
    }
    Ok(words)
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

    fn parse(line: &[&str]) -> Args {
        Line::try_parse_from([&["run"], line].concat()).unwrap_or_else(|e| panic!("{e}")).args
    }

    #[test]
    fn entrypoint_and_command() {
        let image = ImageConfig {
            entrypoint: vec!["/entry".into(), "-x".into()],
            cmd: vec!["default".into()],
            ..ImageConfig::default()
        };
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
            assert_eq!(words(&parse(line), &image).unwrap(), argv, "{line:?}");
        }
        let nothing = ImageConfig::default();
        for line in [&["tool"][..], &["--entrypoint", "", "tool"]] {
            let message = words(&parse(line), &nothing).unwrap_err().to_string();
            assert!(message.contains("tool") && message.contains("what to run"), "{message}");
        }
    }

    #[test]
    fn flags() {
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
        assert!(args.streams.interactive && args.streams.tty && args.rm);
        let exec = parse(&["-w", "/w", "-u", "0:0", "-e", "A=here", "--timeout", "1.5", "i"]).process;
        let exec = exec.exec(vec!["a".into(), "b".into()]).unwrap();
        assert_eq!((&*exec.command, exec.args.unwrap()), ("a", vec!["b".to_owned()]));
        assert_eq!((exec.cwd.as_deref(), exec.user.as_deref()), (Some("/w"), Some("0:0")));
        assert_eq!(exec.env.unwrap()["A"].as_deref(), Some("here"));
        assert_eq!(exec.timeout, Some(1.5));
    }
}
