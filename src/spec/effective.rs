//! A spec written out again: every key with its value, as a file that needs no environment.

use super::keys::Spec;

impl Spec {
    /// A complete `vpc.toml` that loads as exactly this spec, whatever the environment was.
    pub fn to_toml(&self) -> String {
        let mut out = String::from("version = 1\n");
        let mut section = String::new();
        for (path, value) in self.values() {
            let (here, key) = path.rsplit_once('.').unwrap_or(("", &path));
            if path == "version" {
                continue;
            }
            if here != section {
                match here.split_once('[') {
                    Some((name, _)) => out += &format!("\n[[{name}]]\n"),
                    None => out += &format!("\n[{here}]\n"),
                }
                here.clone_into(&mut section);
            }
            out += &format!("{key} = {value}\n");
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::{ConfigText, load};

    #[test]
    fn what_is_written_out_loads_as_the_same() {
        let env: BTreeMap<String, String> = [
            ("VPC_SERVER_ENABLED", "true"),
            ("VPC_NODE_NAME", "db-1"),
            ("VPC_NODE_TYPE", "mongodb"),
            (
                "VPC_ALLOWED_APPS",
                "aa00000000000000000000000000000000000001,bb00000000000000000000000000000000000002",
            ),
            ("VPC_SERVER_APP_ID", "aa00000000000000000000000000000000000001"),
            ("DSTACK_GATEWAY_DOMAIN", "fixed/127.0.0.1:8443"),
            ("MESH_BACKEND", "127.0.0.1:27017"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        let text = "[[backends]]\nname = \"web\"\nserver_name = \"web.example.com\"\nupstream = [\"10.0.0.1:80\", \"10.0.0.2:80\"]\nallowed_apps = \"any\"\n";
        for (text, env) in [("", BTreeMap::new()), ("", env.clone()), (text, env)] {
            let text = ConfigText::new("vpc.toml", text);
            let spec = load(Some(&text), &env).unwrap().spec;
            let written = spec.to_toml();
            let again = load(
                Some(&ConfigText::new("effective", written.clone())),
                &BTreeMap::new(),
            );
            assert_eq!(again.unwrap().spec, spec, "{written}");
        }
    }
}
