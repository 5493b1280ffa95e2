//! What is run: the image's configuration and the command line, put together as docker does.

use rootfs_builder::image::ImageConfig;

use super::Args;
use crate::cli::error::CliError;

/// The words of the command: at least one. Without an image there is no other command than the one that is given.
pub(super) fn words(args: &Args, image: Option<&ImageConfig>) -> Result<Vec<String>, CliError> {
    let first = args.image.as_deref().unwrap_or_default();
    let Some(image) = image else {
        let given: Vec<String> = args.image.iter().chain(&args.command).cloned().collect();
        let words = argv(args.entrypoint.as_deref(), &given, &ImageConfig::default());
        if words.is_empty() {
            let wrong =
                "--from-snapshot: name a command behind it, as in `voidrun run --from-snapshot NAME /bin/sh`";
            return Err(CliError::Usage(wrong.to_owned()));
        }
        return Ok(words);
    };
    let words = argv(args.entrypoint.as_deref(), &args.command, image);
    if words.is_empty() {
        return Err(CliError::Usage(format!(
            "the image {first} does not say what to run: name a command behind it, as in `voidrun run {first} /bin/sh`",
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
            assert_eq!(words(&parse(line), Some(&image)).unwrap(), argv, "{line:?}");
        }
        for (line, argv) in [
            (&["--from-snapshot", "s", "a", "-b"][..], &["a", "-b"][..]),
            (&["--from-snapshot", "s", "--entrypoint", "sh", "--", "-c", "x"], &["sh", "-c", "x"]),
        ] {
            assert_eq!(words(&parse(line), None).unwrap(), argv, "{line:?}");
        }
        let message = words(&parse(&["--from-snapshot", "s"]), None).unwrap_err().to_string();
        assert!(message.contains("name a command"), "{message}");
        let nothing = ImageConfig::default();
        for line in [&["tool"][..], &["--entrypoint", "", "tool"]] {
            let message = words(&parse(line), Some(&nothing)).unwrap_err().to_string();
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
            &["--from-snapshot", "s", "--cpus", "2", "i"],
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
