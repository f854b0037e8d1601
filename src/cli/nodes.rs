//! `nodes`: what the registry of this server knows.

use std::fmt::Display;
use std::process::ExitCode;

use anstyle::Style;
use anyhow::bail;
use jiff::Timestamp;

use super::{Context, block_on, out};
use crate::api::NodeRow;
use crate::reconcile::control::Daemon;
use crate::words;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print the nodes as JSON
    #[arg(long)]
    json: bool,
}

/// Exit 0 when the registry could be read, with or without nodes.
pub(super) fn nodes(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let mut rows = match block_on(Daemon(&context.state).nodes())?? {
        None => bail!(
            "this machine is no server, so it keeps no registry. Ask on the server; what this node knows of its peers \
             is in `dstack-vpc status`"
        ),
        Some(Err(why)) => bail!("the registry cannot be read: {why}"),
        Some(Ok(rows)) => rows,
    };
    rows.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    match args.json {
        true => out::line(serde_json::to_string_pretty(&rows)?)?,
        false => out::print(table(&rows, Timestamp::now()))?,
    }
    Ok(ExitCode::SUCCESS)
}

const HEAD: [&str; 6] = ["NAME", "TYPE", "ADDRESS", "HOST NAME", "APP", "SEEN"];
const FAINT: Style = Style::new().dimmed();

fn table(rows: &[NodeRow], now: Timestamp) -> String {
    if rows.is_empty() {
        return "no nodes: none has registered yet\n".to_owned();
    }
    let cells: Vec<[String; 6]> = rows.iter().map(|row| cells(row, now)).collect();
    let widths = std::array::from_fn(|column| {
        let width = |cell: &str| cell.chars().count();
        let widest = cells.iter().map(|row| width(&row[column])).max();
        widest.unwrap_or(0).max(width(HEAD[column]))
    });
    let mut text = format!("{FAINT}{}{FAINT:#}\n", line(&HEAD, &widths));
    for (row, cells) in rows.iter().zip(&cells) {
        let style = if row.present { Style::new() } else { FAINT };
        text += &format!("{style}{}{style:#}\n", line(cells, &widths));
    }
    let present = rows.iter().filter(|row| row.present).count();
    text += &format!(
        "\n{} node{}, {present} present\n",
        rows.len(),
        if rows.len() == 1 { "" } else { "s" }
    );
    text
}

fn cells(row: &NodeRow, now: Timestamp) -> [String; 6] {
    fn or_none(value: &Option<impl Display>) -> String {
        value.as_ref().map_or("-".to_owned(), ToString::to_string)
    }
    let silent = if row.present { "" } else { ", silent" };
    [
        row.name.clone(),
        or_none(&row.node_type),
        or_none(&row.ip),
        or_none(&row.hostname),
        row.owner.to_string()[..8].to_owned(),
        format!("{} ago{silent}", words::since(row.last_seen, now)),
    ]
}

fn line(cells: &[impl AsRef<str>; 6], widths: &[usize; 6]) -> String {
    let padded = cells
        .iter()
        .zip(widths)
        .map(|(cell, width)| format!("{:<width$}", cell.as_ref()));
    padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_nodes_that_are_there_and_one_that_is_silent() {
        let now: Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
        let row = |name: &str, seconds: i64, present: bool| NodeRow {
            id: name.parse().unwrap(),
            name: name.to_owned(),
            owner: "c11e000000000000000000000000000000000001".parse().unwrap(),
            node_type: present.then(|| "mongodb".parse().unwrap()),
            ip: present.then(|| [100, 64, 0, 1].into()),
            hostname: present.then(|| format!("{name}.dstack.internal").parse().unwrap()),
            registered: now,
            last_seen: now - jiff::SignedDuration::from_secs(seconds),
            present,
        };
        let text = table(&[row("db-1", 12, true), row("old", 4 * 3600, false)], now);
        insta::assert_snapshot!(anstream::adapter::strip_str(&text).to_string(), @r"
        NAME  TYPE     ADDRESS     HOST NAME             APP       SEEN
        db-1  mongodb  100.64.0.1  db-1.dstack.internal  c11e0000  12s ago
        old   -        -           -                     c11e0000  4 h ago, silent

        2 nodes, 1 present
        ");
        assert_eq!(table(&[], now), "no nodes: none has registered yet\n");
    }
}
