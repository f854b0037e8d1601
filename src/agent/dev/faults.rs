//! What a stand-in does wrong on purpose. Each listener has its own, changed at run time at `/dev/faults`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The present faults; by default none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Faults {
    /// So many of the next calls fail.
    pub fail_next: u32,
    /// Each call waits this long before it is answered.
    pub delay_ms: u64,
    /// `GetTlsKey` waits this much longer, as with a slow KMS.
    pub kms_delay_ms: u64,
    /// `GetTlsKey` fails as when the KMS cannot be reached.
    pub kms_down: bool,
    /// Certificates as without a KMS: a self-signed CA, no app id.
    pub no_kms: bool,
    /// Certificates live this long whatever was asked for; 0 = as asked.
    pub lifetime_s: u64,
    /// The agent is an older one: it ignores `not_before` and `not_after`, and has no `Version`.
    pub old: bool,
    /// The certificate is another app's.
    pub wrong_app: bool,
    /// The chain lacks its App CA, as the 0.5.4 release image makes it.
    pub broken_chain: bool,
    /// The gateway stand-in has no domain.
    pub gateway_unconfigured: bool,
}

/// A change: what is left out stays.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FaultsPatch {
    pub fail_next: Option<u32>,
    pub delay_ms: Option<u64>,
    pub kms_delay_ms: Option<u64>,
    pub kms_down: Option<bool>,
    pub no_kms: Option<bool>,
    pub lifetime_s: Option<u64>,
    pub old: Option<bool>,
    pub wrong_app: Option<bool>,
    pub broken_chain: Option<bool>,
    pub gateway_unconfigured: Option<bool>,
}

impl Faults {
    pub fn patch(&mut self, patch: FaultsPatch) {
        fn set<T>(target: &mut T, value: Option<T>) {
            if let Some(value) = value {
                *target = value;
            }
        }
        set(&mut self.fail_next, patch.fail_next);
        set(&mut self.delay_ms, patch.delay_ms);
        set(&mut self.kms_delay_ms, patch.kms_delay_ms);
        set(&mut self.kms_down, patch.kms_down);
        set(&mut self.no_kms, patch.no_kms);
        set(&mut self.lifetime_s, patch.lifetime_s);
        set(&mut self.old, patch.old);
        set(&mut self.wrong_app, patch.wrong_app);
        set(&mut self.broken_chain, patch.broken_chain);
        set(&mut self.gateway_unconfigured, patch.gateway_unconfigured);
    }

    pub(super) fn delay(&self, method: &str) -> Duration {
        let kms = if method == "GetTlsKey" {
            self.kms_delay_ms
        } else {
            0
        };
        Duration::from_millis(self.delay_ms.saturating_add(kms))
    }

    /// True when this call is one of those that fail.
    pub(super) fn take_failure(&mut self) -> bool {
        let fails = self.fail_next > 0;
        self.fail_next = self.fail_next.saturating_sub(1);
        fails
    }
}
