//! What single values cannot tell: whether they go together.

use super::keys::Spec;
use super::problem::Problem;
use super::table::Reader;

/// Errors and warnings.
pub(super) fn check(_spec: &Spec, _reader: &Reader<'_>) -> (Vec<Problem>, Vec<Problem>) {
    (Vec::new(), Vec::new())
}
