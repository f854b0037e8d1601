//! When a certificate is renewed.

use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};

use crate::spec::IdentityPolicy;

/// The moment to renew the certificate `leaf`, obtained at `obtained` and valid until `not_after`.
///
/// That is `renew_before` its end, but never before two thirds of its life are over: an agent that makes shorter
/// certificates than were asked for must not be asked again and again. Up to a tenth of the margin is taken
/// off at the front, by the certificate's hash, so that machines that started together do not ask together,
/// and the moment is the same after a restart.
pub fn renew_at(
    leaf: &CertificateDer<'_>,
    obtained: SystemTime,
    not_after: SystemTime,
    policy: &IdentityPolicy,
) -> SystemTime {
    // Not the certificate's own start: a KMS dates it back to 1975.
    let life = not_after.duration_since(obtained).unwrap_or_default();
    let margin = policy.renew_before.min(life / 3);
    let jitter = margin / 10 * u32::from(Sha256::digest(leaf)[0]) / 255;
    not_after - margin - jitter
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const DAY: u64 = 86_400;

    /// Days before the end, for a certificate that lives `life` days.
    fn days_before_end(life: u64, renew_before: u64) -> f64 {
        let policy = IdentityPolicy {
            lifetime: Duration::from_secs(30 * DAY),
            renew_before: Duration::from_secs(renew_before * DAY),
        };
        let obtained = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let not_after = obtained + Duration::from_secs(life * DAY);
        let at = renew_at(&CertificateDer::from(vec![1]), obtained, not_after, &policy);
        not_after.duration_since(at).unwrap().as_secs_f64() / DAY as f64
    }

    #[test]
    fn renewed_before_the_end_but_never_at_once() {
        let within = |value: f64, margin: f64| value >= margin && value <= margin * 1.1;
        assert!(within(days_before_end(30, 10), 10.0));
        assert!(
            within(days_before_end(3650, 10), 10.0),
            "ten years are used up, too"
        );
        assert!(
            within(days_before_end(3, 10), 1.0),
            "a short one is not renewed at once"
        );
        assert_eq!(days_before_end(0, 10), 0.0);
    }
}
