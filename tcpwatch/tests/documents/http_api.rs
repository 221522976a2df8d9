//! docs/openapi.json and docs/http-api.md: the table of endpoints, the schemas of the answers, and what is written by hand
//! in docs/http-api/. The examples are answers about the recorded run of the tests.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::Path,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    http::Request,
};
use serde_json::{Map, Value};
use tcpwatch::{
    cli::replay::Replayed,
    http::{Api, Endpoint, Parameter, Place, endpoints, openapi, router},
    node::Question,
};
use tokio::sync::mpsc;
use tower::ServiceExt as _;

use crate::{assert_document, fixture};

#[test]
fn openapi_document_is_the_table_of_endpoints() {
    let document = serde_json::to_string_pretty(&openapi::document()).unwrap();
    assert_document("docs/openapi.json", &(document + "\n"));
}

#[tokio::test]
async fn reference_is_the_table_of_endpoints() {
    let document = openapi::document();
    let reference = Reference { document: &document, server: server() };
    assert_document("docs/http-api.md", &reference.render().await);
}

#[test]
fn every_value_of_an_answer_is_described() {
    let document = openapi::document();
    let missing: Vec<_> =
        schemas(&document).iter().flat_map(|(name, schema)| undescribed(name, schema)).collect();
    assert_eq!(missing, [] as [&str; 0]);
}

/// The values in a schema that have no description. An object needs none where its values have theirs.
fn undescribed(path: &str, schema: &Value) -> Vec<String> {
    let properties = schema["properties"].as_object().into_iter().flatten();
    let inner = properties
        .map(|(name, inner)| (format!("{path}.{name}"), inner))
        .chain(schema.get("additionalProperties").map(|inner| (format!("{path}.*"), inner)))
        .chain(schema.get("items").map(|inner| (format!("{path}[]"), inner)))
        .filter(|(_, inner)| inner.is_object());
    let mut inner = inner.peekable();
    let is_described = ["description", "$ref", "anyOf", "oneOf"].iter().any(|key| schema.get(key).is_some());
    if inner.peek().is_none() && !is_described {
        return vec![path.to_owned()];
    }
    // The values of a list or a map may be described with it.
    let is_object = schema.get("properties").is_some();
    inner
        .filter(|_| is_object || !is_described)
        .flat_map(|(path, schema)| undescribed(&path, schema))
        .collect()
}

/// Questions that are shown with their answers.
const EXAMPLES: [(&str, &str); 6] = [
    ("/connections", "/connections?local_port=7004"),
    ("/connections", "/connections?local_port=7004&limit=1&format=json"),
    ("/history", "/history?limit=3"),
    ("/processes", "/processes?sort=opened&limit=3"),
    ("/peers", "/peers?role=client&limit=3"),
    ("/ports", "/ports?limit=3"),
];

/// The recorded run, which never changes.
fn server() -> Router {
    let Replayed { node, clock, .. } = fixture::played();
    let (sender, mut questions) = mpsc::channel::<Question>(8);
    tokio::spawn(async move {
        while let Some(question) = questions.recv().await {
            (question.ask)(&node, clock);
        }
    });
    router(Api::of_recording(sender))
}

struct Reference<'a> {
    document: &'a Value,
    server: Router,
}

impl Reference<'_> {
    async fn render(&self) -> String {
        let mut text = by_hand("intro").expect("an introduction");
        text += "\n## Endpoints\n\n| path | answers |\n|---|---|\n";
        for endpoint in endpoints() {
            let path = endpoint.path;
            let _ = writeln!(text, "| [`{path}`](#{}) | {} |", anchor(path), endpoint.summary);
        }
        for endpoint in endpoints() {
            text += &self.endpoint(endpoint).await;
        }
        text += "\n## Objects\n\nThe objects that answers consist of. A later version may add fields.\n";
        let answers: BTreeSet<_> = endpoints().iter().filter_map(|endpoint| self.answer(endpoint)).collect();
        for (name, schema) in schemas(self.document) {
            if !answers.contains(name.as_str()) {
                let _ = write!(text, "\n### {name}\n\n{}", self.fields(name, schema));
            }
        }
        text
    }

    async fn endpoint(&self, endpoint: &Endpoint) -> String {
        let mut text = format!("\n## {}\n\n{}.\n", endpoint.path, capitalized(endpoint.summary));
        text += &parameters(&endpoint.parameters);
        if let Some(name) = self.answer(endpoint) {
            let schema = schemas(self.document).get(name).unwrap();
            text += &format!("\n{}", self.fields(name, schema));
        }
        if let Some(notes) = by_hand(&openapi::operation_id(endpoint.path)) {
            text += &format!("\n{notes}");
        }
        for (_, question) in EXAMPLES.iter().filter(|(path, _)| *path == endpoint.path) {
            let request = Request::builder().uri(*question).body(Body::empty()).unwrap();
            let answer = self.server.clone().oneshot(request).await.unwrap();
            let answer = to_bytes(answer.into_body(), usize::MAX).await.unwrap();
            let answer = String::from_utf8(answer.to_vec()).unwrap();
            text += &format!("\n```console\n$ curl 'http://127.0.0.1:18279{question}'\n{answer}```\n");
        }
        text
    }

    /// The object that the endpoint answers with in JSON.
    fn answer(&self, endpoint: &Endpoint) -> Option<&str> {
        let content = &self.document["paths"][endpoint.path]["get"]["responses"]["200"]["content"];
        let schema = &content["application/json"]["schema"];
        referenced(schema)
    }

    /// A table of the object's fields. Those that it shares with another object are not repeated.
    fn fields(&self, name: &str, schema: &Value) -> String {
        let mut text = String::new();
        let mut fields: BTreeMap<&String, &Value> = properties(schema).collect();
        if let Some((part, its_fields)) = self.largest_part(name, schema) {
            let _ = writeln!(text, "All fields of [{part}](#{}), and:\n", part.to_lowercase());
            fields.retain(|field, _| !its_fields.contains_key(*field));
        }
        if fields.is_empty() {
            return text;
        }
        text += "| field | type | |\n|---|---|---|\n";
        let order = properties(schema).filter(|(field, _)| fields.contains_key(field));
        for (field, one) in order {
            let is_required = schema["required"]
                .as_array()
                .is_some_and(|required| required.contains(&field.as_str().into()));
            let absent = if is_required { "" } else { ", may be absent" };
            let meaning = capitalized(&described(self.document, one));
            let _ = writeln!(text, "| `{field}` | {}{absent} | {meaning} |", type_of(one));
        }
        text
    }

    /// The object with the most fields of which all are among this one's.
    fn largest_part(&self, name: &str, schema: &Value) -> Option<(&str, &Map<String, Value>)> {
        let own = schema["properties"].as_object()?;
        let parts = schemas(self.document).iter().filter_map(|(other, schema)| {
            let fields = schema["properties"].as_object()?;
            let is_part = other != name
                && fields.len() > 2
                && fields.len() < own.len()
                && fields.iter().all(|(field, one)| own.get(field) == Some(one));
            is_part.then_some((other.as_str(), fields))
        });
        parts.max_by_key(|(_, fields)| fields.len())
    }
}

fn by_hand(name: &str) -> Option<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/http-api");
    std::fs::read_to_string(folder.join(name).with_extension("md")).ok()
}

/// GitHub's anchor of a heading.
fn anchor(heading: &str) -> String {
    heading.to_lowercase().chars().filter(|c| c.is_alphanumeric() || "-_ ".contains(*c)).collect()
}

fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
}

fn schemas(document: &Value) -> &Map<String, Value> {
    document["components"]["schemas"].as_object().unwrap()
}

fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema["properties"].as_object().into_iter().flatten()
}

/// The name of the object that a schema refers to.
fn referenced(schema: &Value) -> Option<&str> {
    schema["$ref"].as_str().and_then(|reference| reference.rsplit('/').next())
}

/// The description of a field, or of the object that it is.
fn described(document: &Value, schema: &Value) -> String {
    let own = schema["description"].as_str();
    let object = referenced(schema).and_then(|name| schemas(document)[name]["description"].as_str());
    own.or(object).unwrap_or_default().replace('\n', " ").replace('|', "\\|")
}

/// In words, with a link to an object.
fn type_of(schema: &Value) -> String {
    if let Some(name) = referenced(schema) {
        return format!("[{name}](#{})", name.to_lowercase());
    }
    for choice in ["anyOf", "oneOf", "allOf"] {
        if let Some(choices) = schema[choice].as_array() {
            let words: Vec<_> = choices.iter().map(type_of).collect();
            return words.join(" or ");
        }
    }
    if let Some(word) = schema["const"].as_str() {
        return format!("`{word}`");
    }
    if let Some(words) = schema["enum"].as_array() {
        let word = |word: &Value| word.as_str().map_or("null".to_owned(), |word| format!("`{word}`"));
        return words.iter().map(word).collect::<Vec<_>>().join(" or ");
    }
    let one = |kind: &str| match kind {
        "array" => format!("list of {}", type_of(&schema["items"])),
        "object" if schema["additionalProperties"].is_object() => {
            format!("map of {}", type_of(&schema["additionalProperties"]))
        }
        other => other.to_owned(),
    };
    match &schema["type"] {
        Value::String(kind) => one(kind),
        Value::Array(kinds) => {
            kinds.iter().filter_map(Value::as_str).map(one).collect::<Vec<_>>().join(" or ")
        }
        _ => String::new(),
    }
}

fn parameters(parameters: &[Parameter]) -> String {
    let mut text = "\n| parameter | value | |\n|---|---|---|\n".to_owned();
    for Parameter { name, place, meaning, schema } in parameters {
        let bound = |name: &str| schema[name].as_f64();
        let mut value = match (bound("minimum"), bound("exclusiveMinimum"), bound("maximum")) {
            (Some(least), _, Some(most)) => format!("{least} to {most}"),
            (_, Some(least), Some(most)) => format!("above {least}, at most {most}"),
            _ => match schema["format"].as_str() {
                Some(format) => format.replace('-', " "),
                None => type_of(schema),
            },
        };
        if *place == Place::Path {
            value += ", in the path";
        }
        if let Some(default) = schema.get("default") {
            let default = default.as_str().map_or_else(|| default.to_string(), ToOwned::to_owned);
            let _ = write!(value, "; `{default}` by default");
        }
        let choices = schema["description"].as_str().map_or(String::new(), |choices| format!(". {choices}"));
        let _ = writeln!(text, "| `{name}` | {value} | {}{choices} |", capitalized(meaning));
    }
    text
}
