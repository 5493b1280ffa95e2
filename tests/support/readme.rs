//! What the README shows of the API, and what there is of it.
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]

use std::collections::BTreeSet;
use std::path::Path;

/// A line of the README that asks the API, with what it says comes.
pub struct Line {
    pub command: String,
    /// Empty where it shows nothing.
    pub answer: String,
}

/// The commands of the blocks that use `api`, in order; a continued one is one.
pub fn lines() -> Vec<Line> {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let blocks = readme.split("```console\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let mut lines: Vec<Line> = Vec::new();
    for line in
        blocks.filter(|block| block.contains("\n$ api ") || block.starts_with("$ api")).flat_map(str::lines)
    {
        if let Some(command) = line.strip_prefix("$ ") {
            lines.push(Line { command: command.to_owned(), answer: String::new() });
        } else if let Some(more) = line.strip_prefix('>') {
            lines.last_mut().unwrap().command.push_str(more);
        } else {
            lines.last_mut().unwrap().answer.push_str(line);
        }
    }
    lines
}

/// What these lines ask for: methods and paths, by curl's rules.
pub fn asked() -> BTreeSet<(String, String)> {
    let lines = lines();
    let words = lines.iter().flat_map(|line| line.command.split("api ").skip(1));
    let requests = words.map(|words| {
        let path = words.trim_start_matches('\'').split(['?', '\'', ' ', ';']).next().unwrap();
        let given = words.split_once("-X ").map(|(_, rest)| rest.split([' ', ';']).next().unwrap());
        let method = match given {
            Some(method) => method,
            None if words.contains(" -d ") || words.contains(" --data") => "POST",
            None if words.contains(" -T ") => "PUT",
            None => "GET",
        };
        (method.to_owned(), path.to_owned())
    });
    requests.collect()
}

/// All routes, by the OpenAPI document: methods and paths. Those that answer that they are not there yet are not among them.
pub fn routes() -> BTreeSet<(String, String)> {
    let document = std::fs::read(root().join("docs/openapi.json")).unwrap();
    let document: serde_json::Value = serde_json::from_slice(&document).unwrap();
    let paths = document["paths"].as_object().unwrap().iter();
    let routes = paths.flat_map(|(path, operations)| {
        let operations = operations.as_object().unwrap().iter();
        let there = operations.filter(|(_, operation)| {
            operation["operationId"].is_string() && operation["responses"]["501"].is_null()
        });
        // One that takes all of the rest, slashes too, is written as the router has it.
        let path = path.replace("{reference}", "{*reference}");
        there.map(move |(method, _)| (method.to_uppercase(), path.clone()))
    });
    routes.collect()
}

/// The route that a path leads to: the one with the most words of its own.
pub fn route_of<'a>(
    routes: &'a BTreeSet<(String, String)>,
    method: &str,
    path: &str,
) -> Option<&'a (String, String)> {
    let fits = |pattern: &str| {
        let (mut pattern, mut path) = (pattern.split('/'), path.split('/'));
        loop {
            match (pattern.next(), path.next()) {
                (None, None) => return true,
                (Some(word), Some(_)) if word.starts_with("{*") => return true,
                (Some(word), Some(found)) if word.starts_with('{') || word == found => {}
                _ => return false,
            }
        }
    };
    let fitting = routes.iter().filter(|(verb, pattern)| verb == method && fits(pattern));
    fitting.min_by_key(|(_, pattern)| (pattern.contains('*'), pattern.matches('{').count()))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
