//! How a value is written in each rendered format, so that it is read back as exactly that value.
//!
//! Each template engine has one of these as its escape function: every `{{ value }}` that is a string passes
//! through it, and no value from the file, the environment or the host can add a directive. What a format
//! cannot express is an error, never an approximation.

use std::io::{self, Write};

/// nginx: a double-quoted string. There is no escape for `$`, which starts a variable in most directives.
pub(super) fn nginx(value: &str, out: &mut dyn Write) -> io::Result<()> {
    refuse_control(value)?;
    if value.contains('$') {
        return Err(refused(value, "`$` would start an nginx variable"));
    }
    out.write_all(b"\"")?;
    for c in value.chars() {
        if matches!(c, '"' | '\\') {
            out.write_all(b"\\")?;
        }
        write!(out, "{c}")?;
    }
    out.write_all(b"\"")
}

/// YAML: a double-quoted scalar in printable ASCII, which every YAML version reads the same way.
pub(super) fn yaml(value: &str, out: &mut dyn Write) -> io::Result<()> {
    out.write_all(b"\"")?;
    for c in value.chars() {
        match c {
            '"' | '\\' => write!(out, "\\{c}")?,
            ' '..='~' => write!(out, "{c}")?,
            _ => write!(out, "\\U{:08x}", u32::from(c))?,
        }
    }
    out.write_all(b"\"")
}

/// supervisord's ini: the bare value with `%` doubled. There are no quotes, so what its reader would strip or
/// take for a comment is refused.
pub(super) fn ini(value: &str, out: &mut dyn Write) -> io::Result<()> {
    refuse_control(value)?;
    if value.trim() != value || value.is_empty() {
        return Err(refused(value, "it is empty, or begins or ends with a space"));
    }
    let mut before = ' ';
    for c in value.chars() {
        if matches!(c, ';' | '#') && before.is_whitespace() {
            return Err(refused(value, "`;` or `#` after a space would start a comment"));
        }
        before = c;
        write!(out, "{c}")?;
        if c == '%' {
            out.write_all(b"%")?;
        }
    }
    Ok(())
}

/// Words for a reader that splits like a POSIX shell (supervisord's `command`), with no `;` or `#` after a
/// space, so that [`ini`] can write the line.
pub(super) fn words<'a>(argv: impl IntoIterator<Item = &'a str>) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_-+=:,./@".contains(&b);
    let quote = |word: &'a str| {
        if !word.is_empty() && word.bytes().all(plain) {
            return word.to_owned();
        }
        let inner = word
            .replace('\'', r#"'"'"'"#)
            .replace(';', "'';")
            .replace('#', "''#");
        format!("'{inner}'")
    };
    argv.into_iter().map(quote).collect::<Vec<_>>().join(" ")
}

/// `value` as nginx writes it, for the one place outside a template: the `-g` argument.
pub(super) fn nginx_string(value: &str) -> io::Result<String> {
    let mut out = Vec::new();
    nginx(value, &mut out)?;
    String::from_utf8(out).map_err(io::Error::other)
}

fn refuse_control(value: &str) -> io::Result<()> {
    match value.chars().any(char::is_control) {
        true => Err(refused(value, "it has a control character such as a line break")),
        false => Ok(()),
    }
}

fn refused(value: &str, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{value:?}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quoted(quote: fn(&str, &mut dyn Write) -> io::Result<()>, value: &str) -> Option<String> {
        let mut out = Vec::new();
        quote(value, &mut out).ok()?;
        String::from_utf8(out).ok()
    }

    #[test]
    fn each_format_quotes_in_its_own_way_or_refuses() {
        for (value, in_nginx, in_yaml, in_ini) in [
            ("a b", Some(r#""a b""#), r#""a b""#, Some("a b")),
            (r#"a"\b"#, Some(r#""a\"\\b""#), r#""a\"\\b""#, Some(r#"a"\b"#)),
            ("a%d", Some(r#""a%d""#), r#""a%d""#, Some("a%%d")),
            ("a;b#c", Some(r#""a;b#c""#), r#""a;b#c""#, Some("a;b#c")),
            ("a ;b", Some(r#""a ;b""#), r#""a ;b""#, None),
            ("a$b", None, r#""a$b""#, Some("a$b")),
            ("a\nb", None, r#""a\U0000000ab""#, None),
            ("é", Some("\"é\""), r#""\U000000e9""#, Some("é")),
            (" a", Some("\" a\""), "\" a\"", None),
            ("", Some(r#""""#), r#""""#, None),
        ] {
            assert_eq!(quoted(nginx, value).as_deref(), in_nginx, "{value:?}");
            assert_eq!(quoted(yaml, value).as_deref(), Some(in_yaml), "{value:?}");
            assert_eq!(quoted(ini, value).as_deref(), in_ini, "{value:?}");
        }
    }

    #[test]
    fn words_are_joined_so_that_a_shell_would_split_them_again() {
        let line = words(["/bin/a", "--b=c", "", "d e", "f'g", "h ;i #j"]);
        assert_eq!(line, r#"/bin/a --b=c '' 'd e' 'f'"'"'g' 'h '';i ''#j'"#);
    }
}
