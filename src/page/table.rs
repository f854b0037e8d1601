//! A table of the page: each cell says itself how it is, in its colour and in words.

use serde::Serialize;

/// Nodes and peers on the page; `dstack-vpc nodes` has all of them.
const MOST_ROWS: usize = 200;

#[derive(Debug, Serialize)]
pub(super) struct Table {
    caption: String,
    head: Vec<&'static str>,
    /// Columns of numbers stand to the right; the first is the row's own head.
    numbers: Vec<bool>,
    pub(super) rows: Vec<Vec<Cell>>,
    /// Said instead of, or below, the rows.
    note: Option<String>,
}

impl Table {
    pub(super) fn new(
        caption: impl Into<String>,
        head: &[&'static str],
        rows: impl IntoIterator<Item = Vec<Cell>>,
    ) -> Self {
        let mut rows: Vec<_> = rows.into_iter().collect();
        let more = rows.len().saturating_sub(MOST_ROWS);
        rows.truncate(MOST_ROWS);
        Self {
            caption: caption.into(),
            head: head.to_vec(),
            numbers: vec![false; head.len()],
            rows,
            note: (more > 0).then(|| format!("and {more} more")),
        }
    }

    pub(super) fn numbers(mut self, columns: &[usize]) -> Self {
        columns.iter().for_each(|column| self.numbers[*column] = true);
        self
    }

    /// What is said where there are no rows.
    pub(super) fn or_else(mut self, note: &str) -> Self {
        if self.rows.is_empty() {
            self.note = Some(note.to_owned());
        }
        self
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Cell {
    text: String,
    /// `good`, `bad`, or neither.
    class: &'static str,
    /// What its colour says, for those who hear the page, where the text does not say it.
    heard: &'static str,
}

impl Cell {
    /// Words that say themselves how it is.
    pub(super) fn judged(text: impl Into<String>, well: bool) -> Self {
        let class = if well { "good" } else { "bad" };
        Self {
            text: text.into(),
            class,
            heard: "",
        }
    }

    /// A number, and what is wrong with it.
    pub(super) fn number(number: u64, wrong: Option<&'static str>) -> Self {
        let class = if wrong.is_some() { "bad" } else { "" };
        Self {
            text: number.to_string(),
            class,
            heard: wrong.unwrap_or_default(),
        }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self {
            text,
            class: "",
            heard: "",
        }
    }
}
