//! The templates: compiled in, overridden by name from `<config dir>/templates/`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use serde::Serialize;
use tera::{Context, ErrorKind, EscapeFn, Tera};

use super::quote;

/// Why something could not be rendered. Nothing was written anywhere.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    #[error("cannot read the template override {path}: {source}", path = .path.display())]
    Unreadable { path: PathBuf, source: io::Error },

    #[error("{path} overrides no template; the names are {}", NAMES.join(", "), path = .path.display())]
    UnknownTemplate { path: PathBuf },

    #[error("template {template}, line {line}: {message}")]
    Template {
        template: String,
        line: usize,
        message: String,
    },

    #[error("template {template}: {message}")]
    TemplateSet { template: String, message: String },

    #[error("{file} cannot hold the value {why}; choose another")]
    Unquotable {
        file: String,
        /// The value, and what is wrong with it.
        why: String,
    },

    #[error("{path:?} is not valid UTF-8; choose another path")]
    NotUtf8 { path: PathBuf },
}

/// One engine for each format, because the escape function belongs to the engine.
#[derive(Debug, Clone)]
pub struct Templates {
    nginx: Arc<Tera>,
    headscale: Arc<Tera>,
    supervisord: Arc<Tera>,
    /// The texts that were not compiled in.
    overrides: BTreeMap<&'static str, String>,
}

/// Parsed once: that takes longer than to render them for a few backends.
static BUILTIN: LazyLock<Templates> = LazyLock::new(|| {
    let built = Templates::build(BTreeMap::new());
    built.expect("the templates in this binary parse: a test renders each of them")
});

pub(super) const NGINX: &str = "nginx.conf.tera";
pub(super) const HEADSCALE: &str = "headscale.yaml.tera";
pub(super) const SUPERVISORD: &str = "supervisord.conf.tera";
const NAMES: [&str; 3] = [NGINX, HEADSCALE, SUPERVISORD];

impl Templates {
    /// The templates this program was built with.
    pub fn builtin() -> Self {
        BUILTIN.clone()
    }

    /// Those, with each `*.tera` file in `dir` instead of the one of its name. A `dir` that does not exist
    /// overrides nothing.
    pub fn with_overrides(dir: &Path) -> Result<Self, RenderError> {
        let unreadable = |path: &Path, source| RenderError::Unreadable {
            path: path.to_owned(),
            source,
        };
        match fs::read_dir(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(unreadable(dir, e)),
            Ok(entries) => {
                for entry in entries {
                    let path = entry.map_err(|e| unreadable(dir, e))?.path();
                    let is_template = path.extension().is_some_and(|e| e == "tera");
                    if is_template && !NAMES.iter().any(|n| path.ends_with(n)) {
                        return Err(RenderError::UnknownTemplate { path });
                    }
                }
            }
        }
        let mut overrides = BTreeMap::new();
        for name in NAMES {
            let path = dir.join(name);
            match fs::read_to_string(&path) {
                Ok(text) => drop(overrides.insert(name, text)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(unreadable(&path, e)),
            }
        }
        match overrides.is_empty() {
            true => Ok(Self::builtin()),
            false => Self::build(overrides),
        }
    }

    fn build(overrides: BTreeMap<&'static str, String>) -> Result<Self, RenderError> {
        let engine = |name: &'static str, builtin: &str, escape: EscapeFn| {
            let mut tera = Tera::new();
            tera.set_escape_fn(escape);
            tera.autoescape_on([".tera"]);
            let text = overrides.get(name).map_or(builtin, String::as_str);
            tera.add_raw_template(name, text)
                .map_err(|e| describe(name, &e))?;
            Ok(Arc::new(tera))
        };
        Ok(Self {
            nginx: engine(
                NGINX,
                include_str!("../../templates/nginx.conf.tera"),
                quote::nginx,
            )?,
            headscale: engine(
                HEADSCALE,
                include_str!("../../templates/headscale.yaml.tera"),
                quote::yaml,
            )?,
            supervisord: engine(
                SUPERVISORD,
                include_str!("../../templates/supervisord.conf.tera"),
                quote::ini,
            )?,
            overrides,
        })
    }

    /// The texts of the templates that were overridden, by name.
    pub fn overrides(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.overrides.iter().map(|(name, text)| (*name, text.as_str()))
    }

    pub(super) fn nginx(&self, values: &impl Serialize) -> Result<Vec<u8>, RenderError> {
        render(&self.nginx, NGINX, values)
    }

    pub(super) fn headscale(&self, values: &impl Serialize) -> Result<Vec<u8>, RenderError> {
        render(&self.headscale, HEADSCALE, values)
    }

    pub(super) fn supervisord(&self, values: &impl Serialize) -> Result<Vec<u8>, RenderError> {
        render(&self.supervisord, SUPERVISORD, values)
    }
}

fn render(tera: &Tera, name: &str, values: &impl Serialize) -> Result<Vec<u8>, RenderError> {
    let context = Context::from_serialize(values).map_err(|e| describe(name, &e))?;
    let text = tera.render(name, &context).map_err(|e| describe(name, &e))?;
    Ok(text.into_bytes())
}

/// The engine's error by file and line, or as the value that a quote function refused.
fn describe(template: &str, error: &tera::Error) -> RenderError {
    let template = template.to_owned();
    match error.kind() {
        ErrorKind::SyntaxError(report) | ErrorKind::RenderingError(report) => RenderError::Template {
            template,
            line: report.span().start_line,
            message: report.message().to_owned(),
        },
        ErrorKind::Io(_) => RenderError::Unquotable {
            file: template.trim_end_matches(".tera").to_owned(),
            why: std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string),
        },
        _ => RenderError::TemplateSet {
            template,
            message: error.to_string(),
        },
    }
}

/// `path` as text: the rendered formats have no way to write other bytes.
pub(super) fn utf8(path: &Path) -> Result<&str, RenderError> {
    path.to_str().ok_or_else(|| RenderError::NotUtf8 {
        path: path.to_owned(),
    })
}
