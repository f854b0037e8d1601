//! Every reason of every condition: what it means, and what to do. A condition can be set to one of these only, and
//! `docs/errors.md` is made from them.

use super::status::ConditionKind;
use crate::node::Step;

/// Why a condition is as it is.
#[derive(Debug, Clone, Copy)]
pub struct Reason {
    pub of: ConditionKind,
    /// Whether the condition holds then.
    pub holds: bool,
    /// The word for machines.
    pub word: &'static str,
    pub means: &'static str,
    /// Empty where there is nothing to do.
    pub mend: &'static str,
}

/// The reason of each condition until the first reconcile has ended.
pub const STARTING: &str = "Starting";

macro_rules! reasons {
    ($($Of:ident { $($NAME:ident $holds:literal $word:literal $means:literal, $mend:literal;)+ })+) => {
        $($(
            pub(crate) const $NAME: Reason = Reason {
                of: ConditionKind::$Of,
                holds: $holds,
                word: $word,
                means: $means,
                mend: $mend,
            };
        )+)+
        /// All of them, in the order of `status`.
        pub const ALL: &[Reason] = &[$($($NAME),+),+];
    };
}

reasons! {
    Configured {
        LIVE true "Live" "what `vpc.toml` says serves", "";
        HELD false "Held" "an earlier generation is held: `rollback` was given, or nobody confirmed",
            "mend `vpc.toml` and save it, or `dstack-vpc apply`";
        INVALID false "Invalid" "`vpc.toml` or a variable is wrong; the last good version serves",
            "`dstack-vpc check` names every mistake and its place";
        REFUSED false "Refused" "it could not be brought about, or did not serve and was rolled back",
            "the message has the words of the program that refused; `dstack-vpc history`";
        NOT_REPAIRED false "NotRepaired" "what `vpc.toml` says has served; what has changed since (a file, a program, a certificate) could not be put right",
            "the message says what failed; it is tried again by itself, and by `dstack-vpc apply`";
        UNPROVEN false "Unproven" "it is rendered, and waits for supervisord",
            "`dstack-vpc up` starts it";
    }
    IdentityValid {
        VALID true "Valid" "there is a certificate, and it names our app", "";
        EXPIRED false "Expired" "the certificate's time is over",
            "why no new one came: the guest agent, its KMS, the clock (`dstack-vpc doctor`)";
        NO_APP_ID false "NoAppId" "the guest agent has no KMS, so the certificate names no app, and no peer believes it",
            "the app compose has to ask for a KMS";
        WAITING false "Waiting" "the guest agent has given none yet",
            "the message says what it answered; `dstack-vpc doctor`";
    }
    ServicesHealthy {
        RUNNING true "Running" "supervisord and every program of the role run", "";
        NO_SUPERVISOR false "NoSupervisor" "supervisord does not run",
            "start the container again, or `dstack-vpc up`";
        MISSING false "Missing" "something that is needed is not there: a program, a certificate, an address",
            "the message names it";
        GIVEN_UP false "GivenUp" "a program does not start, and supervisord tries no more",
            "its log; `dstack-vpc doctor`; then `dstack-vpc apply`";
        FAILING false "Failing" "a program ends as soon as it is started, and is tried again",
            "its log; `dstack-vpc doctor`";
        NOT_SERVING false "NotServing" "a program runs and does not answer, or another one has its port",
            "the message names the port; `dstack-vpc doctor` names who has it";
        NOT_RUNNING false "NotRunning" "a program does not run yet", "wait; its log if it stays so";
        STOPPED_BY_HAND false "StoppedByHand" "an operator stopped a program, and it stays so",
            "`supervisorctl start` and its name";
    }
    VpnJoined {
        IN_VPN true "InVpn" "this node has an address in the VPN", "";
        IDENTITY false "Identity" "it waits for the identity of this machine", "see `IdentityValid`";
        REGISTER false "Register" "it asks the server for a key",
            "the message has the server's answer: is `node.server_app_id` right, is our app in the server's `allowed_apps`, does the server run?";
        TAILSCALED false "Tailscaled" "it waits for tailscaled", "its log; `dstack-vpc doctor`";
        UP false "Up" "it joins with the key",
            "can `server.url` be reached from here? Does Headscale run there?";
        ADDRESS false "Address" "it waits for an address and a name", "tailscaled's log, Headscale's log";
        ANNOUNCE false "Announce" "it tells the server its type, and has no address at the moment",
            "tailscaled's log";
        JOINED false "Joined" "it had joined, and has no address at the moment", "tailscaled's log";
    }
    ApiServing {
        API_SERVING true "Serving" "nodes can register and be found", "";
        API_NOT_SERVING false "NotServing" "the registry or Headscale cannot be used",
            "the message says which, and which file or address";
    }
    Ready {
        READY true "Serving" "a generation serves, proven", "";
        NOT_READY false "NotServing" "something that this role needs is missing",
            "the message is that of the first condition that is not true";
    }
    Degraded {
        AS_CONFIGURED false "AsConfigured" "everything is as it should be", "";
        SEE_MESSAGE true "SeeMessage" "something is not as it should be; what serves goes on serving",
            "the message lists everything, a line each";
    }
}

/// A node that has no address in the VPN, by the step at which it is.
pub(super) fn joining(step: Step) -> Reason {
    match step {
        Step::Identity => IDENTITY,
        Step::Register => REGISTER,
        Step::Tailscaled => TAILSCALED,
        Step::Up => UP,
        Step::Address => ADDRESS,
        Step::Announce => ANNOUNCE,
        Step::Joined => JOINED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_condition_has_a_good_reason_and_says_what_to_do_about_the_others() {
        for reason in ALL {
            let good = reason.holds != (reason.of == ConditionKind::Degraded);
            assert_eq!(good, reason.mend.is_empty(), "{reason:?}");
            let same = ALL.iter().filter(|it| it.of == reason.of);
            assert_eq!(same.filter(|it| it.word == reason.word).count(), 1, "{reason:?}");
        }
    }
}
