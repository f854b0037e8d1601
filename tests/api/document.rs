//! The OpenAPI document is current, and says what is answered.
//! `UPDATE_GOLDEN=1 cargo test --test api document` writes `docs/openapi.json` anew.

use std::collections::BTreeSet;

use dstack_vpc::api::openapi;
use hyper::Method;
use serde_json::{Value, json};

use crate::kit::*;
use crate::place::Place;

fn document() -> Value {
    serde_json::to_value(openapi()).expect("the document")
}

#[tokio::test]
async fn it_is_served_to_everybody_and_beside_the_documentation() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json");
    let made = format!("{:#}\n", document());
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &made).expect("written");
    }
    let stands = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(stands, made, "run UPDATE_GOLDEN=1 cargo test --test api document");
    let server = Server::start().await;
    let served = server
        .raw("GET /api/openapi.json HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .await;
    let (head, body) = served.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert_eq!(serde_json::from_str::<Value>(body).expect("JSON"), document());
}

/// What was answered so far, so that nothing documented is left out.
#[derive(Default)]
struct Seen {
    statuses: BTreeSet<(String, String, String)>,
    fields: BTreeSet<(String, String)>,
}

impl Seen {
    /// Takes an answer, which has to be what the document says of it.
    async fn call(&mut self, server: &Server, method: Method, app: &str, path: &str, target: &str) {
        let reply = server.send(method.clone(), app, target).await;
        let (verb, status) = (method.as_str().to_lowercase(), reply.status.to_string());
        let document = document();
        let said = &document["paths"][path][&verb]["responses"][&status];
        assert!(
            said.is_object(),
            "{verb} {target} answers {status}, which is not documented"
        );
        let content = said["content"].as_object().expect("content");
        let (media, said) = content.iter().next().expect("a type");
        assert!(
            reply.all("content-type")[0].starts_with(media.as_str()),
            "{target}"
        );
        if media == "application/json" {
            let schema = json!({
                "$ref": said["schema"]["$ref"].as_str().unwrap_or("#/components/schemas/Any"),
                "components": closed(&document["components"]),
            });
            let body = reply.json();
            let validator = jsonschema::validator_for(&schema).expect("a schema");
            let faults: Vec<_> = validator
                .iter_errors(&body)
                .map(|fault| fault.to_string())
                .collect();
            assert!(faults.is_empty(), "{target}: {faults:?} in {body}");
            let name = said["schema"]["$ref"]
                .as_str()
                .and_then(|name| name.rsplit('/').next());
            self.note(name.unwrap_or_default(), &body);
        }
        self.statuses.insert((verb, path.to_owned(), status));
    }

    fn note(&mut self, schema: &str, body: &Value) {
        for (field, value) in body.as_object().into_iter().flatten() {
            self.fields.insert((schema.to_owned(), field.clone()));
            let items = value.as_array().into_iter().flatten();
            for field in items.flat_map(|item| item.as_object().into_iter().flatten()) {
                self.fields.insert((format!("{schema}/items"), field.0.clone()));
            }
        }
    }
}

/// The schemas with no room for fields that are not documented.
fn closed(components: &Value) -> Value {
    let mut components = components.clone();
    let schemas = components["schemas"].as_object_mut().expect("schemas");
    for schema in schemas.values_mut() {
        schema["additionalProperties"] = json!(false);
        for property in schema["properties"]
            .as_object_mut()
            .into_iter()
            .flat_map(|p| p.values_mut())
        {
            if property["items"]["properties"].is_object() {
                property["items"]["additionalProperties"] = json!(false);
            }
        }
    }
    schemas.insert("Any".to_owned(), json!({ "type": "object" }));
    components
}

#[tokio::test]
async fn each_status_and_field_it_names_exists_and_no_other() {
    const REGISTER: &str = "/api/register";
    const UPDATE: &str = "/api/nodes/update";
    const DISCOVER: &str = "/api/discover/{node_type}";
    const NODES: &str = "/api/nodes";
    let mut seen = Seen::default();
    let mut place = Place::running().await;
    let server = Server::with_headscale(&place).await;
    server.announce(OURS, "e-1", "etcd", "100.128.0.1").await;
    for (method, app, path, target) in [
        (Method::GET, OURS, "/health", "/health"),
        (Method::GET, OURS, "/api/ping", "/api/ping"),
        (Method::GET, OURS, "/api/openapi.json", "/api/openapi.json"),
        (Method::GET, OURS, REGISTER, "/api/register?instance_id=n-1"),
        (Method::GET, OURS, REGISTER, "/api/register"),
        (Method::GET, "junk", REGISTER, "/api/register?instance_id=n-1"),
        (Method::GET, NOBODY, REGISTER, "/api/register?instance_id=n-1"),
        (Method::GET, THEIRS, REGISTER, "/api/register?instance_id=n-1"),
        (Method::POST, OURS, UPDATE, "/api/nodes/update?uuid=n-1"),
        // Headscale has given that address to nobody.
        (
            Method::POST,
            OURS,
            UPDATE,
            "/api/nodes/update?uuid=n-1&tailscale_ip=100.128.0.2",
        ),
        (Method::POST, OURS, UPDATE, "/api/nodes/update"),
        (Method::POST, "junk", UPDATE, "/api/nodes/update?uuid=n-1"),
        (Method::POST, THEIRS, UPDATE, "/api/nodes/update?uuid=n-1"),
        (Method::GET, OURS, DISCOVER, "/api/discover/etcd?index=0"),
        (Method::GET, OURS, DISCOVER, "/api/discover/nothing?index=0"),
        (Method::GET, OURS, DISCOVER, "/api/discover/a%20b"),
        (Method::GET, "junk", DISCOVER, "/api/discover/etcd"),
        (Method::GET, NOBODY, DISCOVER, "/api/discover/etcd"),
        (Method::GET, OURS, NODES, "/api/nodes"),
        (Method::GET, "junk", NODES, "/api/nodes"),
        (Method::GET, NOBODY, NODES, "/api/nodes"),
    ] {
        seen.call(&server, method, app, path, target).await;
    }
    let everywhere = [
        (Method::GET, REGISTER, "/api/register?instance_id=n-1"),
        (Method::POST, UPDATE, "/api/nodes/update?uuid=n-1"),
        (Method::GET, DISCOVER, "/api/discover/etcd"),
        (Method::GET, NODES, "/api/nodes"),
    ];
    // Headscale was there, and does not answer now.
    place.stop();
    seen.call(
        &server,
        Method::GET,
        OURS,
        REGISTER,
        "/api/register?instance_id=n-1",
    )
    .await;
    let mut few = (*server.api.settings()).clone();
    few.requests_per_hour = 1;
    server.api.update(few).await.expect("updated");
    server.get(OURS, "/api/nodes").await;
    for (method, path, target) in everywhere.clone() {
        seen.call(&server, method, OURS, path, target).await;
    }
    let dir = std::sync::Arc::clone(&server.dir);
    server.api.shutdown().await;
    // A registry that cannot be opened.
    let registry = dstack_vpc::paths::StateDir::new(dir.path()).registry();
    std::fs::remove_dir_all(&registry).expect("removed");
    std::fs::write(&registry, "not a folder").expect("written");
    let server = Server::again(dir, settings()).await;
    for (method, path, target) in everywhere {
        seen.call(&server, method, OURS, path, target).await;
    }

    let document = document();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (verb, operation) in item.as_object().expect("an item") {
            for status in operation["responses"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(status, _)| status)
            {
                let one = (verb.clone(), path.clone(), status.clone());
                assert!(
                    seen.statuses.contains(&one),
                    "documented, but never seen: {one:?}"
                );
            }
        }
    }
    for (name, schema) in document["components"]["schemas"].as_object().expect("schemas") {
        for (field, about) in schema["properties"].as_object().into_iter().flatten() {
            assert!(
                seen.fields.contains(&(name.clone(), field.clone())),
                "never seen: {name}.{field}"
            );
            for item in about["items"]["properties"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(item, _)| item)
            {
                let one = (format!("{name}/items"), item.clone());
                assert!(seen.fields.contains(&one), "never seen: {one:?}");
            }
        }
    }
}
