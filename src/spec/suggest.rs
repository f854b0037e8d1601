//! "Did you mean …?"

/// Longer words are not compared: that takes long, and nobody mistypes them.
pub(super) const LONGEST_KEY: usize = 64;

/// The candidate a person most likely meant, if any is near.
pub(super) fn nearest<'a>(written: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if written.len() > LONGEST_KEY {
        return None;
    }
    let written = written.to_ascii_lowercase();
    candidates
        .into_iter()
        .map(|candidate| {
            (
                strsim::damerau_levenshtein(&written, &candidate.to_ascii_lowercase()),
                candidate,
            )
        })
        // One slip in three letters still reads as a slip.
        .filter(|(distance, candidate)| {
            *distance <= (candidate.len() / 3).max(1) && *distance < candidate.len()
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// The sentence for it.
pub fn did_you_mean<'a>(written: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    nearest(written, candidates).map(|word| format!("did you mean `{word}`?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_recognised_and_strangers_are_not() {
        let keys = ["client_listen", "auth_listen", "front"];
        assert_eq!(nearest("clinet_listen", keys), Some("client_listen"));
        assert_eq!(nearest("Front", keys), Some("front"));
        assert_eq!(nearest("frnt", keys), Some("front"));
        assert_eq!(nearest("password", keys), None);
        assert_eq!(nearest("", ["a"]), None);
    }
}
