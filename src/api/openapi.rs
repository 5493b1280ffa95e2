//! The OpenAPI document. It is made of the routes and of the types that serve them; what holds for all of them is said here.

use axum::Extension;
use axum::http::header;
use axum::response::IntoResponse;
use bytes::Bytes;
use serde_json::{Value, json};
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, Schema, SchemaFormat, Type};
use utoipa::openapi::{OpenApi as Api, RefOr};
use utoipa::{OpenApi, PartialSchema, ToSchema};

use super::answers::Progress;
use super::problem::Document;
use super::stream::Piece;
use super::types::{CodeEnd, End};
use super::watch::Event;

/// What is not found out from the routes. The other schemas are of what streams are made of.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "voidrun",
        description = "Sandboxes: microVMs that run untrusted code on this machine. `/v1` refuses members that it does not know \
            in the body of a request; `/api` is the same tree and ignores them. A member that is null is the same as an absent \
            one. Each answer has an `x-request-id`, and each that is an error is a problem document (RFC 9457)."
    ),
    servers((url = "/v1")),
    components(schemas(CodeEnd, Document, End, Event, Piece, Progress)),
    tags(
        (name = "sandboxes", description = "Made, shown, changed, removed, and their states"),
        (name = "commands", description = "Run in a sandbox, in the foreground and in the background"),
        (name = "code", description = "Run by an interpreter of the image"),
        (name = "files", description = "Of a sandbox, by absolute paths. All of it is done as root"),
        (name = "terminals", description = "WebSockets with raw bytes both ways"),
        (name = "ports", description = "Of a sandbox, reached at ports of this machine"),
        (name = "snapshots", description = "Of sandboxes, memory and disk; others go on from them"),
        (name = "images", description = "Of the store"),
        (name = "daemon", description = "About the daemon")
    )
)]
pub(super) struct Base;

/// The schema of bytes as they are: files, and archives.
pub(super) enum Binary {}

impl PartialSchema for Binary {
    fn schema() -> RefOr<Schema> {
        let format = SchemaFormat::KnownFormat(KnownFormat::Binary);
        ObjectBuilder::new().schema_type(Type::String).format(Some(format)).into()
    }
}

impl ToSchema for Binary {}

/// The document, as it is served.
#[derive(Clone)]
pub(super) struct Served(Bytes);

/// The OpenAPI document.
///
/// It describes all of this.
#[utoipa::path(
    get, path = "/openapi.json", operation_id = "getOpenApi", tag = "daemon",
    responses((status = 200, description = "An OpenAPI 3.1 document", body = Value))
)]
pub(super) async fn serve(Extension(Served(document)): Extension<Served>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], document)
}

impl Served {
    pub(super) fn new(api: &Api) -> Self {
        Self(complete(api).to_string().into())
    }
}

/// With what all operations have in common.
fn complete(api: &Api) -> Value {
    // Nothing in it is what JSON cannot say.
    let mut document = serde_json::to_value(api).unwrap_or_default();
    let content =
        json!({ "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } });
    document["components"]["responses"] =
        json!({ "Problem": { "description": "A problem document (RFC 9457)", "content": content } });
    document["components"]["securitySchemes"]["key"] = json!({
        "type": "apiKey", "in": "header", "name": "X-API-Key",
        "description": "The key of the daemon's key file, by TCP alone: the Unix socket asks for none. A WebSocket may have it as \
            the parameter `apiKey`.",
    });
    document["security"] = json!([{ "key": [] }, {}]);
    let mut bodies = Vec::new();
    if let Value::Object(paths) = &mut document["paths"] {
        // What axum takes with its slashes is a parameter as others are.
        *paths =
            std::mem::take(paths).into_iter().map(|(path, item)| (path.replace("{*", "{"), item)).collect();
        for (path, item) in paths {
            let parameters: Vec<Value> =
                path.split('{').filter_map(|part| part.split_once('}')).map(parameter).collect();
            for operation in item.as_object_mut().into_iter().flat_map(|item| item.values_mut()) {
                let problem = json!({ "$ref": "#/components/responses/Problem" });
                for range in ["4XX", "5XX"] {
                    operation["responses"][range] = problem.clone();
                }
                if let Some(own) = operation["responses"].get_mut("501") {
                    *own = problem;
                }
                let body = operation.pointer("/requestBody/content/application~1json/schema/$ref");
                if let Some(name) = body.and_then(Value::as_str).and_then(|path| path.rsplit('/').next()) {
                    bodies.push(name.to_owned());
                }
            }
            if !parameters.is_empty() {
                item["parameters"] = parameters.into();
            }
        }
    }
    for name in bodies {
        document["components"]["schemas"][name]["additionalProperties"] = false.into();
    }
    document
}

/// A part of a path.
fn parameter((name, _): (&str, &str)) -> Value {
    if name == "hostPort" {
        let schema = json!({ "type": "integer", "minimum": 0, "maximum": 65535 });
        return json!({
            "name": name, "in": "path", "required": true, "description": "A port of this machine", "schema": schema
        });
    }
    let description = match name {
        "id" => "A name, an id or the beginning of an id of a sandbox",
        "name" => "The name of a snapshot",
        "reference" => "The name of an image, as python:3.12; its slashes may be written as they are",
        _ => "The id of a session",
    };
    let schema = json!({ "type": "string", "minLength": 1 });
    json!({ "name": name, "in": "path", "required": true, "description": description, "schema": schema })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const COPY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json");

    fn generated() -> Value {
        complete(super::super::tree().get_openapi())
    }

    fn operations(document: &Value) -> impl Iterator<Item = (&String, &String, &Value)> {
        let paths = document["paths"].as_object().unwrap().iter();
        let operations = paths.flat_map(|(path, item)| {
            item.as_object().unwrap().iter().map(move |(method, operation)| (path, method, operation))
        });
        operations.filter(|(_, method, _)| *method != "parameters")
    }

    #[test]
    fn the_copy_is_what_the_code_says() {
        let text = format!("{:#}\n", generated());
        if std::env::var_os("VOIDRUN_WRITE_OPENAPI").is_some() {
            std::fs::write(COPY, &text).unwrap();
        }
        assert!(
            std::fs::read_to_string(COPY).unwrap() == text,
            "docs/openapi.json is not what the code says: VOIDRUN_WRITE_OPENAPI=1 cargo test openapi renews it"
        );
    }

    #[test]
    fn every_operation_is_described() {
        let document = generated();
        assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
        let mut ids = BTreeSet::new();
        for (path, method, operation) in operations(&document) {
            let at = format!("{method} {path}");
            assert!(ids.insert(operation["operationId"].as_str().unwrap()), "{at}: its id is another's too");
            assert!(
                operation["summary"].as_str().is_some_and(|text| !text.is_empty()),
                "{at} has no summary"
            );
            assert_eq!(operation["tags"].as_array().map(Vec::len), Some(1), "{at}");
            for (status, response) in operation["responses"].as_object().unwrap() {
                let told = response.get("$ref").is_some() || response["description"].as_str() != Some("");
                assert!(told, "{at}: {status} is not described");
            }
        }
        // A schema that is named is there.
        let text = document.to_string();
        for name in text.split("#/components/schemas/").skip(1).filter_map(|rest| rest.split('"').next()) {
            assert!(document["components"]["schemas"].get(name).is_some(), "{name}");
        }
    }
}
