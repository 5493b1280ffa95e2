//! The languages, and what runs them.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// What code is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Language {
    Python,
    JavaScript,
    TypeScript,
    Bash,
}

impl Language {
    /// The names for people, with the others that are taken.
    pub(crate) const NAMES: &str = "python (py), javascript (js, node), typescript (ts) or bash (sh, shell)";

    /// The interpreter.
    pub(crate) fn program(self) -> &'static str {
        match self {
            Self::Python => "python3",
            Self::JavaScript | Self::TypeScript => "node",
            Self::Bash => "bash",
        }
    }

    /// The interpreter and its arguments, for code that comes from its standard input.
    pub(crate) fn words(self) -> Vec<String> {
        let arguments: &[&str] = match self {
            // Unbuffered: what is printed is there at once, and at a deadline it is not lost.
            Self::Python => &["-u", "-c", include_str!("run.py")],
            // Node tells a CommonJS script from an ES module by what is in it.
            Self::JavaScript => &["-"],
            // Without the option types are taken out, but nothing is made of enums, namespaces and parameter properties.
            Self::TypeScript => {
                &["--experimental-transform-types", "--disable-warning=ExperimentalWarning", "-"]
            }
            // As a script, bash would read it line by line, and what the code reads would be the rest of it.
            Self::Bash => &["-c", r#"eval "$(</dev/stdin)""#],
        };
        std::iter::once(&self.program()).chain(arguments).map(|word| (*word).to_owned()).collect()
    }

    /// The language of a file with this name.
    pub(crate) fn of_file(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "py" => Some(Self::Python),
            "js" | "mjs" | "cjs" => Some(Self::JavaScript),
            "ts" | "mts" | "cts" => Some(Self::TypeScript),
            "sh" | "bash" => Some(Self::Bash),
            _ => None,
        }
    }

    /// That `place`, as in "the image debian", does not have the interpreter.
    pub(crate) fn missing(self, place: &str) -> String {
        let program = self.program();
        format!("{self} code is run by {program}, and {place} has none in its PATH: the image code has it")
    }
}

impl FromStr for Language {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "python" | "python3" | "py" => Ok(Self::Python),
            "javascript" | "js" | "node" | "nodejs" => Ok(Self::JavaScript),
            "typescript" | "ts" => Ok(Self::TypeScript),
            "bash" | "sh" | "shell" => Ok(Self::Bash),
            _ => {
                let text: String = text.chars().take(50).collect();
                Err(format!("{text:?} is none of the languages {}", Self::NAMES))
            }
        }
    }
}

impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Python => "Python",
            Self::JavaScript => "JavaScript",
            Self::TypeScript => "TypeScript",
            Self::Bash => "bash",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (name, language) in [
            ("python", Language::Python),
            ("py", Language::Python),
            ("javascript", Language::JavaScript),
            ("js", Language::JavaScript),
            ("node", Language::JavaScript),
            ("TypeScript", Language::TypeScript),
            ("ts", Language::TypeScript),
            ("bash", Language::Bash),
            ("sh", Language::Bash),
            ("shell", Language::Bash),
        ] {
            assert_eq!(name.parse(), Ok(language), "{name}");
        }
        let error = "ruby".parse::<Language>().unwrap_err();
        assert!(error.contains("ruby") && error.contains("python"), "{error}");
    }

    #[test]
    fn files() {
        assert_eq!(Language::of_file(Path::new("/a/b.py")), Some(Language::Python));
        assert_eq!(Language::of_file(Path::new("b.mjs")), Some(Language::JavaScript));
        assert_eq!(Language::of_file(Path::new("b.ts")), Some(Language::TypeScript));
        assert_eq!(Language::of_file(Path::new("b.sh")), Some(Language::Bash));
        for unknown in ["py", "b.rb", "-", ""] {
            assert_eq!(Language::of_file(Path::new(unknown)), None, "{unknown}");
        }
    }

    #[test]
    fn what_is_missing_and_where_it_is() {
        let text = Language::JavaScript.missing("the image debian");
        assert!(
            ["node", "the image debian", "the image code"].iter().all(|word| text.contains(word)),
            "{text}"
        );
    }
}
