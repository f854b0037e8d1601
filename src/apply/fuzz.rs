//! What an apply that was cut off left behind.

use super::journal::Journal;

/// `data` is `run/journal.json`.
pub(crate) fn journal(data: &[u8]) {
    if let Ok(journal) = serde_json::from_slice::<Journal>(data) {
        let written = serde_json::to_vec(&journal).unwrap();
        assert_eq!(serde_json::from_slice::<Journal>(&written).unwrap(), journal);
    }
}
