//! The tables of `docs/http-api.md` are those of the OpenAPI document.

use std::fmt::Write as _;

use serde_json::Value as Json;

use super::{cell, parts};

#[test]
fn the_page_of_the_api_is_current() {
    let api = serde_json::to_value(dstack_vpc::api::openapi()).unwrap();
    parts("docs/http-api.md", &[("requests", requests(&api))]);
}

fn text<'a>(value: &'a Json, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn requests(api: &Json) -> String {
    let mut out = String::new();
    for (path, item) in api["paths"].as_object().expect("paths") {
        for (verb, request) in item.as_object().expect("requests") {
            let about = format!("{} {}", text(request, "summary"), text(request, "description"));
            let about = cell(&about);
            let _ = writeln!(
                out,
                "### {} {path}\n\n{}\n",
                verb.to_uppercase(),
                about.trim_end()
            );
            let parameters = request["parameters"]
                .as_array()
                .map(Vec::as_slice)
                .unwrap_or_default();
            if !parameters.is_empty() {
                out += "| parameter | | |\n|---|---|---|\n";
            }
            for parameter in parameters {
                let needed = match parameter["required"] == true {
                    true => "required",
                    false => "",
                };
                let (name, about) = (text(parameter, "name"), cell(text(parameter, "description")));
                let _ = writeln!(out, "| `{name}` | {needed} | {about} |");
            }
            if !parameters.is_empty() {
                out.push('\n');
            }
            out += "| status | answer |\n|---|---|\n";
            for (status, response) in request["responses"].as_object().expect("responses") {
                let _ = writeln!(out, "| {status} | {} |", answer(api, response));
            }
            out.push('\n');
        }
    }
    out
}

/// What an answer says, and of which fields it is made.
fn answer(api: &Json, response: &Json) -> String {
    let about = cell(text(response, "description"));
    let content = response["content"]
        .as_object()
        .and_then(|content| content.values().next());
    let schema = content.map_or("", |content| text(&content["schema"], "$ref"));
    match schema.rsplit('/').next().unwrap_or_default() {
        "" | "ErrorBody" => about,
        name => format!("{about} {}", fields(&api["components"]["schemas"][name])),
    }
}

/// Each field with what is said of it.
fn fields(schema: &Json) -> String {
    let fields = schema["properties"].as_object().into_iter().flatten();
    let fields = fields.map(|(name, field)| {
        let about = match &field["items"] {
            Json::Null => cell(text(field, "description")).trim_end_matches('.').to_owned(),
            item => format!("a list of {}", fields_in_brackets(item)),
        };
        match about.as_str() {
            "" => format!("`{name}`"),
            about => format!("`{name}`: {about}"),
        }
    });
    fields.collect::<Vec<_>>().join("; ")
}

fn fields_in_brackets(schema: &Json) -> String {
    format!("({})", fields(schema))
}
