//! The rendered formats, read as their programs read them.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::str::Chars;

/// A directive of nginx, with what stands in its braces.
#[derive(Debug, Default)]
pub(super) struct Directive {
    pub(super) name: String,
    pub(super) args: Vec<String>,
    pub(super) block: Vec<Directive>,
}

impl Directive {
    pub(super) fn named(&self, name: &str) -> impl Iterator<Item = &Directive> {
        self.block.iter().filter(move |it| it.name == name)
    }

    pub(super) fn the_only<'d>(block: &'d [Directive], name: &str) -> &'d Directive {
        let mut all = block.iter().filter(|it| it.name == name);
        match (all.next(), all.next()) {
            (Some(one), None) => one,
            _ => panic!("{name} is not there once"),
        }
    }

    /// At any depth.
    pub(super) fn all(block: &[Directive]) -> impl Iterator<Item = &Directive> {
        let mut left: Vec<_> = block.iter().collect();
        std::iter::from_fn(move || {
            let next = left.pop()?;
            left.extend(&next.block);
            Some(next)
        })
    }
}

/// nginx.conf; nginx: `src/core/ngx_conf_file.c`, `ngx_conf_read_token`.
pub(super) fn nginx(conf: &str) -> Option<Vec<Directive>> {
    let mut chars = conf.chars().peekable();
    let read = block(&mut chars)?;
    chars.next().is_none().then_some(read)
}

/// Up to the brace that ends it, or the end.
fn block(chars: &mut Peekable<Chars<'_>>) -> Option<Vec<Directive>> {
    let (mut all, mut words) = (Vec::new(), Vec::new());
    let directive = |mut words: Vec<String>, block| match words.is_empty() {
        true => None,
        false => Some(Directive {
            name: words.remove(0),
            args: words,
            block,
        }),
    };
    loop {
        match chars.peek().copied() {
            None | Some('}') => return words.is_empty().then_some(all),
            Some(c) if c.is_ascii_whitespace() => drop(chars.next()),
            Some('#') => while chars.next_if(|c| *c != '\n').is_some() {},
            Some(';') => {
                chars.next();
                all.push(directive(std::mem::take(&mut words), Vec::new())?);
            }
            Some('{') => {
                chars.next();
                let inner = block(chars)?;
                chars.next_if_eq(&'}')?;
                all.push(directive(std::mem::take(&mut words), inner)?);
            }
            Some(quote @ ('"' | '\'')) => {
                chars.next();
                let mut word = String::new();
                loop {
                    match chars.next()? {
                        c if c == quote => break,
                        '\\' => match chars.next()? {
                            c @ ('"' | '\'' | '\\') => word.push(c),
                            'n' => word.push('\n'),
                            'r' => word.push('\r'),
                            't' => word.push('\t'),
                            c => word.extend(['\\', c]),
                        },
                        c => word.push(c),
                    }
                }
                // Nothing may follow a quoted word but a space or the end of the directive.
                let next = *chars.peek()?;
                (next.is_ascii_whitespace() || next == ';' || next == '{').then_some(())?;
                words.push(word);
            }
            Some(_) => {
                let mut word = String::new();
                while let Some(c) = chars.next_if(|c| !c.is_ascii_whitespace() && !";{".contains(*c)) {
                    word.push(c);
                }
                words.push(word);
            }
        }
    }
}

/// supervisord.conf, as Python's `configparser` reads it with `;` and `#` for comments, and `%` expanded.
pub(super) fn ini(conf: &str) -> Option<BTreeMap<String, BTreeMap<String, String>>> {
    let mut sections = BTreeMap::<String, BTreeMap<String, String>>::new();
    let mut section = None;
    for line in conf.lines() {
        let comment = line.char_indices().find(|(at, c)| {
            ";#".contains(*c) && line[..*at].chars().next_back().is_none_or(char::is_whitespace)
        });
        let begins_with_space = line.starts_with(char::is_whitespace);
        let line = comment.map_or(line, |(at, _)| &line[..at]).trim();
        if line.is_empty() {
            continue;
        }
        // A continued value, which none of ours is.
        (!begins_with_space).then_some(())?;
        if let Some(name) = line.strip_prefix('[') {
            let name = name.split_once(']')?.0;
            section = Some(name.to_owned());
            sections
                .insert(name.to_owned(), BTreeMap::new())
                .is_none()
                .then_some(())?;
            continue;
        }
        let (key, value) = line.split_at(line.find(['=', ':'])?);
        let value = expanded(value[1..].trim())?;
        let keys = sections.get_mut(section.as_ref()?)?;
        keys.insert(key.trim().to_lowercase(), value)
            .is_none()
            .then_some(())?;
    }
    Some(sections)
}

/// Python's `%`: `%%` is one.
fn expanded(value: &str) -> Option<String> {
    let mut chars = value.chars();
    let mut out = String::new();
    while let Some(c) = chars.next() {
        if c == '%' {
            (chars.next()? == '%').then_some(())?;
        }
        out.push(c);
    }
    Some(out)
}

/// Python's `shlex.split`, which is what a POSIX shell would do without expanding anything.
pub(super) fn words(line: &str) -> Option<Vec<String>> {
    let mut chars = line.chars();
    let (mut all, mut word) = (Vec::new(), None::<String>);
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\r' | '\n' => all.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next()? {
                        '\'' => break,
                        c => word.push(c),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next()? {
                        '"' => break,
                        '\\' => match chars.next()? {
                            c @ ('"' | '\\') => word.push(c),
                            c => word.extend(['\\', c]),
                        },
                        c => word.push(c),
                    }
                }
            }
            '\\' => word.get_or_insert_default().push(chars.next()?),
            c => word.get_or_insert_default().push(c),
        }
    }
    all.extend(word);
    Some(all)
}
