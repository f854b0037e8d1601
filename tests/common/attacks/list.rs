//! The attacks, as data.

use super::Attack;
use super::May::{self, NotOurs, Nothing, Once, Perhaps};

/// A request inside another.
const INNER: &str = "GET /smuggled HTTP/1.1\r\nHost: app.local\r\n\r\n";
const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";

/// Every attack, for the app that is called. Where it names a path it is `/attack/<number>`.
pub fn all(app: &str) -> Vec<Attack> {
    let mut all = Vec::new();
    let us = format!("Host: app.local\r\nx-dstack-target-app: {app}\r\n");
    let mut add = |name: &str, bytes: String, may: May| {
        let path = format!("/attack/{}", all.len());
        all.push(Attack {
            name: name.escape_debug().to_string(),
            // Latin-1, so that any byte can be written here.
            bytes: bytes.replace("/PATH", &path).chars().map(|c| c as u8).collect(),
            may,
        });
    };

    for (value, may) in [
        ("chunked", Once("hello")),
        ("CHUNKED", Once("hello")),
        ("\tchunked", Perhaps("hello")),
        ("chunked\t", Perhaps("hello")),
        ("xchunked", Nothing),
        ("chunkedx", Nothing),
        ("identity", Nothing),
        ("chunked, identity", Nothing),
        ("identity, chunked", Nothing),
        ("gzip, chunked", Nothing),
        ("chunked, chunked", Nothing),
        ("chunked,", Nothing),
        (",chunked", Nothing),
        ("chunked;q=1", Nothing),
        ("\"chunked\"", Nothing),
        ("chunked\u{0b}", Nothing),
        ("\u{0b}chunked", Nothing),
        ("chunked\0", Nothing),
        ("chun ked", Nothing),
        ("", Nothing),
        ("chunked\r\nTransfer-Encoding: chunked", Nothing),
        ("chunked\r\nTransfer-Encoding: identity", Nothing),
        ("identity\r\nTransfer-Encoding: chunked", Nothing),
        ("\r\n chunked", Nothing),
        ("chunked\r\nContent-Length: 5", Perhaps("hello")),
    ] {
        let body = "5\r\nhello\r\n0\r\n\r\n";
        add(
            &format!("coding {value}"),
            format!("POST /PATH HTTP/1.1\r\n{us}Transfer-Encoding: {value}\r\n\r\n{body}"),
            may,
        );
    }
    for (line, may) in [
        ("Transfer-Encoding : chunked\r\n", Nothing),
        (" Transfer-Encoding: chunked\r\n", Nothing),
        ("Transfer-Encoding\0: chunked\r\n", Nothing),
        ("X: y\rTransfer-Encoding: chunked\r\n", Nothing),
        ("X: y\nTransfer-Encoding: chunked\n", Perhaps("hello")),
        // Headers of no meaning to anyone: what follows is no request.
        ("Transfer_Encoding: chunked\r\n", Perhaps("")),
        ("X-Transfer-Encoding: chunked\r\n", Once("")),
    ] {
        add(
            &format!("coding line {line}"),
            format!("POST /PATH HTTP/1.1\r\n{us}{line}\r\n5\r\nhello\r\n0\r\n\r\n"),
            may,
        );
    }
    add(
        "coding in HTTP/1.0",
        format!("POST /PATH HTTP/1.0\r\n{us}{CHUNKED}\r\n0\r\n\r\n"),
        Nothing,
    );
    let hidden = format!("0\r\n\r\nGET /smuggled HTTP/1.1\r\n{us}\r\n");
    for both in [
        format!("Content-Length: {}\r\n{CHUNKED}", hidden.len()),
        format!("{CHUNKED}Content-Length: {}\r\n", hidden.len()),
    ] {
        add(
            "length and coding",
            format!("POST /PATH HTTP/1.1\r\n{us}{both}\r\n{hidden}"),
            Perhaps(""),
        );
    }
    add(
        "coding and a length that hides a chunk",
        format!("POST /PATH HTTP/1.1\r\n{us}Content-Length: 4\r\n{CHUNKED}\r\n5\r\nhello\r\n0\r\n\r\n"),
        Perhaps("hello"),
    );

    for (value, may) in [
        ("5", Once("hello")),
        ("05", Perhaps("hello")),
        ("5\r\nContent-Length: 5", Perhaps("hello")),
        ("+5", Nothing),
        ("-5", Nothing),
        ("-0", Nothing),
        ("5, 5", Nothing),
        ("5,6", Nothing),
        ("5 5", Nothing),
        ("5;", Nothing),
        ("5.0", Nothing),
        ("0x5", Nothing),
        ("5e0", Nothing),
        ("", Nothing),
        ("five", Nothing),
        ("5\u{0b}", Nothing),
        ("5\0", Nothing),
        ("\u{b2}", Nothing),
        ("5\r\nContent-Length: 6", Nothing),
        ("6\r\nContent-Length: 5", Nothing),
        ("5\r\n 5", Nothing),
        ("9223372036854775807", Nothing),
        ("18446744073709551615", Nothing),
        ("18446744073709551621", Nothing),
        ("99999999999999999999999999", Nothing),
    ] {
        add(
            &format!("length {value}"),
            format!("POST /PATH HTTP/1.1\r\n{us}Content-Length: {value}\r\n\r\nhello"),
            may,
        );
    }

    for (chunks, may) in [
        ("5\r\nhello\r\n0\r\n\r\n", Once("hello")),
        ("2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", Once("hello")),
        ("005\r\nhello\r\n00\r\n\r\n", Perhaps("hello")),
        ("5 \r\nhello\r\n0\r\n\r\n", Perhaps("hello")),
        ("5;a=b;c=\"d\"\r\nhello\r\n0;x\r\n\r\n", Perhaps("hello")),
        ("5;a\nb\r\nhello\r\n0\r\n\r\n", Nothing),
        ("5\nhello\r\n0\r\n\r\n", NotOurs),
        ("5\rhello\r\n0\r\n\r\n", Nothing),
        ("5\r\nhello\n0\r\n\r\n", NotOurs),
        ("5\r\nhelloX\r\n0\r\n\r\n", Nothing),
        ("5\r\nhello0\r\n\r\n", Nothing),
        ("+5\r\nhello\r\n0\r\n\r\n", Nothing),
        ("-5\r\nhello\r\n0\r\n\r\n", Nothing),
        ("0x5\r\nhello\r\n0\r\n\r\n", Nothing),
        (" 5\r\nhello\r\n0\r\n\r\n", Nothing),
        ("5 5\r\nhello\r\n0\r\n\r\n", NotOurs),
        ("g\r\nhello\r\n0\r\n\r\n", Nothing),
        ("\r\nhello\r\n0\r\n\r\n", Nothing),
        ("5,\r\nhello\r\n0\r\n\r\n", Nothing),
        ("10000000000000005\r\nhello\r\n0\r\n\r\n", Nothing),
        ("ffffffffffffffff\r\nhello\r\n0\r\n\r\n", Nothing),
        ("fffffffffffffffff0\r\nhello\r\n0\r\n\r\n", Nothing),
        ("5\r\nhello\r\n", Nothing),
        ("5\r\nhello\r\n0\r\n", Nothing),
        ("5\r\nhello\r\n0\r\nX", Nothing),
        ("5\r\nhello\r\n0\r\n\n", Perhaps("hello")),
        (
            "5\r\nhello\r\n0\r\nContent-Length: 99\r\nHost: evil\r\nTransfer-Encoding: chunked\r\nX-Dstack-App-Id: 1\r\n\r\n",
            Perhaps("hello"),
        ),
        ("5\r\nhello\r\n0\r\n: x\r\n\r\n", Perhaps("hello")),
        ("5\r\nhello\r\n0\r\nx y: 1\r\n\r\n", Perhaps("hello")),
    ] {
        let chunks =
            format!("POST /PATH HTTP/1.1\r\n{us}{CHUNKED}Trailer: host, content-length\r\n\r\n{chunks}");
        add(
            &format!(
                "chunks {}",
                &chunks[chunks.rfind("length\r\n").unwrap_or(0) + 10..]
            ),
            chunks,
            may,
        );
    }
    for (name, chunks) in [
        (
            "megabytes of extensions",
            format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(2_000_000)),
        ),
        (
            "many small extensions",
            format!("{}0\r\n\r\n", "1;aaaaaaaa\r\nx\r\n".repeat(20_000)),
        ),
        ("many trailers", format!("0\r\n{}\r\n", "x: 1\r\n".repeat(20_000))),
        (
            "a large trailer",
            format!("0\r\nx: {}\r\n\r\n", "a".repeat(2_000_000)),
        ),
    ] {
        add(
            name,
            format!("POST /PATH HTTP/1.1\r\n{us}{CHUNKED}\r\n{chunks}"),
            NotOurs,
        );
    }

    for (name, line, may) in [
        ("a folded header", "X-A: 1\r\n 2\r\n", Nothing),
        ("a header folded by a tab", "X-A: 1\r\n\t2\r\n", Nothing),
        ("space before a colon", "X-A : 1\r\n", Nothing),
        ("tab before a colon", "X-A\t: 1\r\n", Nothing),
        ("no colon", "X-A\r\n", NotOurs),
        ("no name", ": 1\r\n", Nothing),
        ("NUL in a name", "X\0A: 1\r\n", Nothing),
        ("NUL in a value", "X-A: \0\r\n", Nothing),
        ("a control in a value", "X-A: \u{1}\r\n", Perhaps("")),
        ("DEL in a value", "X-A: \u{7f}\r\n", Perhaps("")),
        ("a bare CR in a value", "X-A: 1\r2\r\n", Nothing),
        ("a bare CR before CRLF", "X-A: 1\r\r\n", NotOurs),
        ("a bare LF after a header", "X-A: 1\n", Perhaps("")),
        ("Latin-1 in a name", "X-\u{e4}: 1\r\n", Perhaps("")),
        ("Latin-1 in a value", "X-A: \u{e4}\r\n", Once("")),
        (
            "a header that injects another",
            "X-A: 1\rX-Dstack-App-Id: 1\r\n",
            Nothing,
        ),
        ("two hosts", "Host: other.local\r\n", Nothing),
        ("the same host twice", "Host: app.local\r\n", Nothing),
        ("Connection names Host", "Connection: host, close\r\n", Once("")),
        (
            "Connection names the target",
            "Connection: x-dstack-target-app\r\n",
            Once(""),
        ),
        (
            "an upgrade to HTTP/2",
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n",
            Once(""),
        ),
        ("two targets", "x-dstack-target-app: 00\r\n", Nothing),
        (
            "an expectation without a body",
            "Expect: 100-continue\r\n",
            Once(""),
        ),
    ] {
        add(name, format!("GET /PATH HTTP/1.1\r\n{us}{line}\r\n"), may);
    }
    for named in [
        "content-length",
        "Content-Length, close",
        "close, content-length, host, te",
    ] {
        let headers = format!("Connection: {named}\r\nContent-Length: 5\r\n");
        add(
            &format!("Connection names {named}"),
            format!("GET /PATH HTTP/1.1\r\n{us}{headers}\r\nhello"),
            Once("hello"),
        );
    }
    for method in ["GET", "DELETE", "OPTIONS", "POST", "PROPFIND"] {
        let length = format!("Content-Length: {}\r\n", INNER.len());
        add(
            &format!("a request in the body of {method}"),
            format!("{method} /PATH HTTP/1.1\r\n{us}{length}\r\n{INNER}"),
            Once(INNER),
        );
        let chunk = format!("{:x}\r\n{INNER}\r\n0\r\n\r\n", INNER.len());
        add(
            &format!("a request in a chunk of {method}"),
            format!("{method} /PATH HTTP/1.1\r\n{us}{CHUNKED}\r\n{chunk}"),
            Once(INNER),
        );
    }
    for (name, count, may) in [
        ("many headers", "x: 1\r\n".repeat(20_000), Nothing),
        (
            "a large header",
            format!("x: {}\r\n", "a".repeat(2_000_000)),
            Nothing,
        ),
        (
            "a large name",
            format!("{}: x\r\n", "a".repeat(2_000_000)),
            Nothing,
        ),
    ] {
        add(name, format!("GET /PATH HTTP/1.1\r\n{us}{count}\r\n"), may);
    }
    add(
        "a long path",
        format!("GET /PATH{} HTTP/1.1\r\n{us}\r\n", "a".repeat(2_000_000)),
        Nothing,
    );

    for (line, may) in [
        ("GET  /PATH HTTP/1.1", Perhaps("")),
        ("GET /PATH  HTTP/1.1", Perhaps("")),
        ("GET\t/PATH\tHTTP/1.1", Nothing),
        (" GET /PATH HTTP/1.1", Nothing),
        ("\r\nGET /PATH HTTP/1.1", Perhaps("")),
        ("GET /PATH HTTP/1.1 ", Perhaps("")),
        ("GET /PATH HTTP/1.1\rX: y", Nothing),
        ("GET /PATH HTTP/1.2", Perhaps("")),
        ("GET /PATH HTTP/2.0", Nothing),
        ("GET /PATH HTTP/01.1", Nothing),
        ("GET /PATH http/1.1", Nothing),
        ("GET /PATH HTTP/1.", Nothing),
        ("GET /PATH HTTPS/1.1", Nothing),
        ("GET /PATH", Nothing),
        ("G\u{0}T /PATH HTTP/1.1", Nothing),
        ("G(T /PATH HTTP/1.1", Nothing),
        ("GET /PATH\0 HTTP/1.1", Nothing),
        ("GET /PATH\r\nX HTTP/1.1", Nothing),
        ("GET /PATH x HTTP/1.1", Perhaps("")),
        ("GET PATH HTTP/1.1", Nothing),
        ("GET * HTTP/1.1", Nothing),
        ("GET ?/PATH HTTP/1.1", Nothing),
        ("GET /PATH#fragment HTTP/1.1", Perhaps("")),
        ("GET app.local:80 HTTP/1.1", Nothing),
        ("GET http://app.local/PATH HTTP/1.1", Once("")),
        ("GET http://other.local/PATH HTTP/1.1", Once("")),
        ("GET http://user@other.local/PATH HTTP/1.1", Nothing),
        ("GET http:///PATH HTTP/1.1", Nothing),
        ("GET http://a b/PATH HTTP/1.1", Nothing),
        ("CONNECT app.local:443 HTTP/1.1", Nothing),
        ("CONNECT /PATH HTTP/1.1", Nothing),
        ("PRI * HTTP/2.0", Nothing),
    ] {
        add(&format!("line {line}"), format!("{line}\r\n{us}\r\n"), may);
    }

    for (host, may) in [
        ("app.local", Once("")),
        ("app.local:8443", Once("")),
        ("[::1]:80", Once("")),
        ("", Nothing),
        (" ", Nothing),
        ("a b", Nothing),
        ("user@app.local", Nothing),
        ("app.local/path", Nothing),
        ("app.local?x", Nothing),
        ("app.local#x", Nothing),
        ("app.local:http", Perhaps("")),
        ("app.local:80:80", Nothing),
        ("app.local, other.local", Nothing),
        ("[::1", Nothing),
        ("app.local\0", Nothing),
        ("app.local\u{0b}", Nothing),
        ("http://app.local", Nothing),
    ] {
        add(
            &format!("host {host}"),
            format!("GET /PATH HTTP/1.1\r\nHost: {host}\r\nx-dstack-target-app: {app}\r\n\r\n"),
            may,
        );
    }
    add(
        "no host",
        format!("GET /PATH HTTP/1.1\r\nx-dstack-target-app: {app}\r\n\r\n"),
        Nothing,
    );
    all
}
