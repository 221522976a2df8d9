//! The table of endpoints as an OpenAPI 3.1 document.

use schemars::{JsonSchema as _, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value as Json, json};

use crate::http::{
    ApiError,
    endpoints::{Content, Endpoint, endpoints},
    parameters::{Parameter, Place},
    request::Format,
};

/// Where schemas of the document are, as a JSON pointer.
pub const SCHEMAS: &str = "/components/schemas";

/// Schemas of what is answered; those that have a name are written once, below [`SCHEMAS`].
pub fn generator() -> SchemaGenerator {
    let mut settings = SchemaSettings::draft2020_12().for_serialize();
    SCHEMAS.clone_into(settings.definitions_path.to_mut());
    settings.meta_schema = None;
    settings.into_generator()
}

/// The whole document.
pub fn document() -> Json {
    let mut generator = generator();
    let mut paths = Map::new();
    for endpoint in endpoints() {
        paths.insert(endpoint.path.to_owned(), json!({"get": operation(endpoint, &mut generator)}));
    }
    let schemas = generator.take_definitions(true);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "tcpwatch",
            "summary": "The life of every TCP connection of a Linux node, and what is wrong with it",
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0"},
        },
        "servers": [{"url": "http://127.0.0.1:18279"}],
        "paths": paths,
        "components": {"schemas": schemas},
    })
}

fn operation(endpoint: &Endpoint, generator: &mut SchemaGenerator) -> Json {
    let mut responses = Map::new();
    let mut answer = json!({
        "description": "the answer",
        "content": content(&endpoint.content, generator),
    });
    if let Some(links) = links(endpoint) {
        answer["links"] = links;
    }
    responses.insert("200".to_owned(), answer);
    let error = [
        Content { media_type: Format::Text.media_type(), schema: None },
        Content { media_type: Format::Json.media_type(), schema: Some(ApiError::json_schema) },
    ];
    for (status, when) in &endpoint.failures {
        let failure = responses
            .entry(status.as_str())
            .or_insert_with(|| json!({"description": "", "content": content(&error, generator)}));
        let before = failure["description"].as_str().unwrap_or_default();
        failure["description"] =
            if before.is_empty() { json!(when) } else { json!(format!("{before}; {when}")) };
    }
    json!({
        "operationId": operation_id(endpoint.path),
        "summary": endpoint.summary,
        "parameters": endpoint.parameters.iter().map(parameter).collect::<Vec<_>>(),
        "responses": responses,
    })
}

/// What leads from an answer to other questions.
fn links(endpoint: &Endpoint) -> Option<Json> {
    let is_list = endpoint.parameters.iter().any(|parameter| parameter.name == "cursor");
    is_list.then(|| {
        let next = json!({
            "operationId": operation_id(endpoint.path),
            "parameters": {"cursor": "$response.body#/next_cursor"},
            "description": "the next page",
        });
        let mut links = json!({"next": next});
        if ["/connections", "/history"].contains(&endpoint.path) {
            links["connection"] = json!({
                "operationId": operation_id("/connections/{id}"),
                "parameters": {"id": "$response.body#/connections/0/id"},
                "description": "its first connection",
            });
        }
        links
    })
}

/// `/connections/{id}` is `connections_id`.
pub fn operation_id(path: &str) -> String {
    let words: Vec<_> = path.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    if words.is_empty() { "index".to_owned() } else { words.join("_") }
}

fn content(content: &[Content], generator: &mut SchemaGenerator) -> Json {
    let form = |one: &Content| {
        let schema = match one.schema {
            Some(schema) if one.media_type == Format::Json.media_type() => json!(schema(generator)),
            // A line or an event, of many.
            Some(schema) => json!({"type": "string", "contentSchema": schema(generator)}),
            None => json!({"type": "string"}),
        };
        (one.media_type.to_owned(), json!({"schema": schema}))
    };
    content.iter().map(form).collect::<Map<_, _>>().into()
}

fn parameter(parameter: &Parameter) -> Json {
    json!({
        "name": parameter.name,
        "in": match parameter.place { Place::Path => "path", Place::Query => "query" },
        "required": parameter.place == Place::Path,
        "description": parameter.meaning,
        "schema": parameter.schema,
    })
}
