//! The OpenAPI document of the public API: its operations are listed in [`operations`], their shapes come from the types
//! that are sent and read.

mod operations;

use std::collections::{BTreeMap, BTreeSet};

use http::header::{self, HeaderName};
use longhand_protocol::ErrorEnvelope;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Map, Value, json};

use self::operations::{Answer, Operation, Parameter, Takes, operations};

const COMPONENTS: &str = "/components/schemas";
/// Paths are also served under this, with a namespace that is not the token's.
const NAMESPACED: &str = "/namespaces/{namespace}";

/// What [`document`] gives, as the checks before a merge make sure: its text is smaller than what makes it.
const TEXT: &str = include_str!("../../../docs/openapi.json");

/// `GET /openapi.json`, for everybody.
pub async fn serve() -> ([(HeaderName, &'static str); 1], &'static str) {
    ([(header::CONTENT_TYPE, "application/json")], TEXT)
}

/// What bodies look like: those that are read may leave out what has a default, those that are sent have every key.
struct Shapes {
    read: SchemaGenerator,
    sent: SchemaGenerator,
}

impl Shapes {
    fn new() -> Self {
        let settings = || SchemaSettings::draft2020_12().with(|settings| settings.definitions_path = COMPONENTS.into());
        Self { read: settings().for_deserialize().into_generator(), sent: settings().for_serialize().into_generator() }
    }

    /// Every named shape, and what the shapes are called instead that are read otherwise than they are sent.
    fn components(mut self) -> (BTreeMap<String, Value>, Renamed) {
        let read: BTreeMap<String, Value> = self.read.take_definitions(true).into_iter().collect();
        let mut components: BTreeMap<String, Value> = self.sent.take_definitions(true).into_iter().collect();
        let differs = |name: &String| components.get(name).is_some_and(|sent| *sent != read[name]);
        let mut renamed: BTreeSet<&String> = read.keys().filter(|name| differs(name)).collect();
        // What refers to one of them is read otherwise, too.
        loop {
            let more: Vec<&String> = read
                .iter()
                .filter(|(name, shape)| {
                    components.contains_key(*name) && !renamed.contains(name) && refers(shape, &renamed)
                })
                .map(|(name, _)| name)
                .collect();
            if more.is_empty() {
                break;
            }
            renamed.extend(more);
        }
        let renamed = Renamed(renamed.into_iter().map(|name| (reference(name), format!("{name}Param"))).collect());
        for (name, mut shape) in read {
            renamed.apply(&mut shape);
            let name = renamed.0.get(&reference(&name)).cloned().unwrap_or(name);
            components.insert(name, shape);
        }
        (components, renamed)
    }
}

/// Shapes by the reference that they had, with the name that they have where they are read.
struct Renamed(BTreeMap<String, String>);

impl Renamed {
    /// Has every reference lead to the new name.
    fn apply(&self, value: &mut Value) {
        match value {
            Value::Object(fields) => {
                if let Some(Value::String(to)) = fields.get_mut("$ref")
                    && let Some(name) = self.0.get(to)
                {
                    *to = reference(name);
                }
                fields.values_mut().for_each(|value| self.apply(value));
            }
            Value::Array(values) => values.iter_mut().for_each(|value| self.apply(value)),
            _ => {}
        }
    }
}

fn reference(name: &str) -> String {
    format!("#{COMPONENTS}/{name}")
}

/// Whether a shape has one of these in it.
fn refers(shape: &Value, names: &BTreeSet<&String>) -> bool {
    match shape {
        Value::Object(fields) => {
            let to = fields.get("$ref").and_then(Value::as_str);
            to.is_some_and(|to| names.iter().any(|name| reference(name) == to))
                || fields.values().any(|value| refers(value, names))
        }
        Value::Array(values) => values.iter().any(|value| refers(value, names)),
        _ => false,
    }
}

/// The document.
#[must_use]
pub fn document() -> Value {
    let mut shapes = Shapes::new();
    let error = shapes.sent.subschema_for::<ErrorEnvelope>().to_value();
    let mut paths: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    for operation in operations() {
        for (prefix, suffix) in [("", ""), (NAMESPACED, "InNamespace")] {
            let described = describe(&operation, prefix, suffix, &mut shapes);
            let path = paths.entry(format!("{prefix}/v1{}", operation.path)).or_default();
            path.insert(operation.method.to_owned(), described);
        }
    }
    let (schemas, renamed) = shapes.components();
    let bodies = paths.values_mut().flat_map(Map::values_mut);
    bodies.filter_map(|operation| operation.get_mut("requestBody")).for_each(|body| renamed.apply(body));
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Longhand",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "The public API of the session service (Managed Agents, beta managed-agents-2026-04-01)",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "security": [{ "bearer": [] }, { "key": [] }],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": { "Error": {
                "description": "The request was not served; the body says why.",
                "headers": { "request-id": { "schema": { "type": "string" } } },
                "content": { "application/json": { "schema": error } },
            } },
            "securitySchemes": {
                "bearer": { "type": "http", "scheme": "bearer", "description": "A Kubernetes token of audience longhand" },
                "key": { "type": "apiKey", "in": "header", "name": "x-api-key", "description": "The same, as older SDKs send it" },
            },
        },
    })
}

fn describe(operation: &Operation, prefix: &str, suffix: &str, shapes: &mut Shapes) -> Value {
    let mut parameters: Vec<Value> = parameters_of(&format!("{prefix}{}", operation.path)).collect();
    parameters.extend(operation.query.iter().map(Parameter::describe));
    let mut described = json!({
        "operationId": format!("{}{suffix}", operation.id),
        "summary": operation.summary,
        "parameters": parameters,
        "responses": {
            operation.status(): answer(operation, shapes),
            "default": { "$ref": "#/components/responses/Error" },
        },
    });
    let (kind, schema, required) = match operation.takes {
        Takes::Nothing => return described,
        Takes::Json(shape) => ("application/json", shape(&mut shapes.read).to_value(), true),
        Takes::PerhapsJson(shape) => ("application/json", shape(&mut shapes.read).to_value(), false),
        Takes::Bytes(kind) => (kind, json!({ "type": "string", "format": "binary" }), true),
        Takes::File => {
            let file = json!({ "type": "string", "contentMediaType": "application/octet-stream" });
            let expiry = json!({ "type": "integer", "minimum": 3_600, "maximum": 7_776_000 });
            let parts = json!({ "expires_in_seconds": expiry, "file": file });
            let form = json!({ "type": "object", "required": ["file"], "properties": parts });
            ("multipart/form-data", form, true)
        }
        Takes::Lines => ("application/x-ndjson", json!({ "type": "string" }), true),
    };
    described["requestBody"] = json!({ "required": required, "content": { kind: { "schema": schema } } });
    described
}

fn answer(operation: &Operation, shapes: &mut Shapes) -> Value {
    let (kind, schema) = match operation.answer {
        Answer::Json(shape) => ("application/json", shape(&mut shapes.sent).to_value()),
        Answer::Text(kind) => (kind, json!({ "type": "string" })),
        Answer::Upgrade(protocol) => {
            let upgrade = json!({ "schema": { "const": protocol } });
            return json!({ "description": "The connection is upgraded.", "headers": { "upgrade": upgrade } });
        }
    };
    json!({
        "description": "Done.",
        "headers": { "request-id": { "schema": { "type": "string" } } },
        "content": { kind: { "schema": schema } },
    })
}

/// The names in braces.
fn parameters_of(path: &str) -> impl Iterator<Item = Value> {
    path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')).map(|name| {
        let schema = match name {
            "namespace" => json!({ "type": "string", "maxLength": 63, "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$" }),
            _ => json!({ "type": "string", "minLength": 1, "maxLength": 253 }),
        };
        json!({ "name": name, "in": "path", "required": true, "schema": schema })
    })
}

#[cfg(test)]
mod tests;
