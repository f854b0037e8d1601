//! What is wrong with a configuration, and where, for a person and for a machine.

use std::fmt;

use annotate_snippets::{
    AnnotationKind, Element, Group, Level, Origin as SnippetOrigin, Renderer, Snippet,
    normalize_untrusted_str,
};
use serde::ser::{Serialize, SerializeStruct, Serializer};

use super::text::{ConfigText, Spot};

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// The file.
    File(Spot),
    /// An environment variable.
    Variable {
        /// Its name.
        name: String,
        /// Its text.
        value: String,
    },
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The configuration cannot be used.
    Error,
    /// It can, and probably is not meant so.
    Warning,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// The key, e.g. `mesh.client_listen`, where one is concerned.
    pub key: Option<String>,
    /// Where it was written.
    pub origin: Origin,
    /// One sentence.
    pub message: String,
    /// What was expected, shown at the place.
    pub expected: Option<String>,
    /// What to write instead.
    pub help: Option<String>,
}

impl Problem {
    /// A problem with nothing but a message, to be filled in.
    pub(super) fn new(message: impl Into<String>, origin: Origin) -> Self {
        Self {
            severity: Severity::Error,
            key: None,
            origin,
            message: message.into(),
            expected: None,
            help: None,
        }
    }

    pub(super) fn warning(mut self) -> Self {
        self.severity = Severity::Warning;
        self
    }

    pub(super) fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    pub(super) fn expected(mut self, expected: impl Into<String>) -> Self {
        self.expected = Some(expected.into());
        self
    }

    pub(super) fn help(mut self, help: impl Into<Option<String>>) -> Self {
        self.help = help.into();
        self
    }
}

/// Everything that is wrong, in the order of the file, then the environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems {
    list: Vec<Problem>,
    source: Option<ConfigText>,
}

/// After so many of one kind no more are looked for: that is another file, not a slip.
pub(super) const MOST_PROBLEMS: usize = 100;

/// More than this are counted, not shown.
const SHOWN: usize = 50;

impl Problems {
    pub(super) fn new(mut list: Vec<Problem>, source: Option<&ConfigText>) -> Self {
        list.sort_by_key(|p| match &p.origin {
            Origin::File(spot) => (0, spot.span.start),
            Origin::Variable { .. } => (1, 0),
            Origin::Default => (2, 0),
        });
        Self {
            list,
            source: source.cloned(),
        }
    }

    /// One by one.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Problem> {
        self.list.iter()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// As text: each with its place, the source line, a caret, and help.
    pub fn render(&self, color: bool) -> String {
        let renderer = if color {
            Renderer::styled()
        } else {
            Renderer::plain()
        };
        let mut out = String::new();
        for problem in self.list.iter().take(SHOWN) {
            out += &renderer.render(&[self.group(problem)]);
            out += "\n\n";
        }
        if let Some(more @ 1..) = self.list.len().checked_sub(SHOWN) {
            out += &format!("… and {more} more\n\n");
        }
        // The renderer makes harmless what stands before U+0080 only, and U+009B begins an order to a terminal, too.
        out.replace(|c| ('\u{80}'..='\u{9f}').contains(&c), "\u{fffd}")
    }

    fn group<'a>(&'a self, problem: &'a Problem) -> Group<'a> {
        let level = match problem.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let group = Group::with_title(level.primary_title(problem.message.as_str()));
        let marked = |span| {
            AnnotationKind::Primary
                .span(span)
                .label(problem.expected.as_deref())
        };
        let group = match (&problem.origin, &self.source) {
            (Origin::File(spot), Some(source)) => {
                let (start, line) = source.line(spot.line);
                let in_line = |at: usize| at.saturating_sub(start).min(line.len());
                let path = source.path.as_str();
                if may_be_shown(line) {
                    let span = in_line(spot.span.start)..in_line(spot.span.end);
                    let snippet = Snippet::source(line).path(path).line_start(spot.line);
                    group.element(snippet.annotation(marked(span)))
                } else {
                    let place = SnippetOrigin::path(path).line(spot.line).char_column(spot.column);
                    expected(group.element(Element::from(place)), problem)
                }
            }
            (Origin::Variable { name, value }, _) if may_be_shown(value) => {
                let source = format!("{name}={}", value.replace(char::is_control, " "));
                let span = name.len() + 1..source.len();
                let snippet = Snippet::source(source).line_numbering(false);
                group.element(snippet.annotation(marked(span)))
            }
            (Origin::Variable { name, .. }, _) => {
                let name = normalize_untrusted_str(name);
                let group = group.element(Level::NOTE.message(format!("set by {name}")));
                expected(group, problem)
            }
            _ => expected(group, problem),
        };
        match &problem.help {
            // Help quotes what was written, and messages below the title are not made harmless by the renderer.
            Some(help) => group.element(Level::HELP.message(normalize_untrusted_str(help))),
            None => group,
        }
    }
}

fn expected<'a>(group: Group<'a>, problem: &'a Problem) -> Group<'a> {
    match &problem.expected {
        Some(expected) => group.element(Level::NOTE.message(expected.as_str())),
        None => group,
    }
}

/// A line that helps its reader: not an endless one, and none with a password in it.
fn may_be_shown(line: &str) -> bool {
    const LONGEST: usize = 1000;
    line.len() <= LONGEST && !may_hold_password(line)
}

/// A URL with a user in it is refused everywhere, and nothing that may hold one is repeated.
pub(super) fn may_hold_password(text: &str) -> bool {
    text.contains("://") && text.contains('@')
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Problems {}

impl Serialize for Problems {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.list.iter().map(|problem| Entry { problem, of: self }))
    }
}

struct Entry<'a> {
    problem: &'a Problem,
    of: &'a Problems,
}

impl Serialize for Entry<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { problem, of } = self;
        let mut s = serializer.serialize_struct("Problem", 9)?;
        let severity = match problem.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        s.serialize_field("severity", severity)?;
        s.serialize_field("key", &problem.key)?;
        let (mut file, mut line, mut column, mut variable) = (None, None, None, None);
        match &problem.origin {
            Origin::File(spot) => {
                file = of.source.as_ref().map(|source| source.path.as_str());
                line = Some(spot.line);
                column = Some(spot.column);
            }
            Origin::Variable { name, .. } => variable = Some(name),
            Origin::Default => {}
        }
        s.serialize_field("file", &file)?;
        s.serialize_field("line", &line)?;
        s.serialize_field("column", &column)?;
        s.serialize_field("variable", &variable)?;
        s.serialize_field("message", &problem.message)?;
        s.serialize_field("expected", &problem.expected)?;
        s.serialize_field("help", &problem.help)?;
        s.end()
    }
}
