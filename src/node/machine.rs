//! What to do next, decided from what is seen now: nothing is remembered that can be seen, so whatever happens to
//! the server, to tailscaled or to this process, the next look starts from the truth.

use super::credentials::Membership;
use super::pace::Errand;
use super::server::Announcement;
use super::tailscale::Up;
use super::view::{Backend, View};
use super::{NodeSettings, Server, Step};
use crate::facts::ports::reachable;
use crate::names::{AppId, NodeId, SHARED_SPACE};

/// Who this node is to be, and where.
pub(super) struct Goal<'a> {
    pub(super) settings: &'a NodeSettings,
    pub(super) server: AppId,
    pub(super) id: NodeId,
}

/// Everything the decision rests on.
pub(super) struct Seen<'a> {
    pub(super) membership: Option<&'a Membership>,
    /// A key to join with lies ready.
    pub(super) key: bool,
    /// Or why it cannot be seen.
    pub(super) tailscaled: Result<&'a View, String>,
    /// The server says that Headscale does not know this node.
    pub(super) disowned: bool,
    /// Headscale has been out of touch for so long that it may have moved.
    pub(super) out_of_touch: bool,
    /// `vpc/0/*` is up to date.
    pub(super) published: bool,
    /// It could not be written a moment ago.
    pub(super) publish_later: bool,
    /// Where it stood a moment ago.
    pub(super) step: Step,
    /// What the server was told last.
    pub(super) told: Option<&'a Announcement>,
    /// It is time to tell it again.
    pub(super) due: bool,
}

/// The next thing to do; each is seen as the step it belongs to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Do {
    /// Nothing to be done from here but to look again.
    Wait(Step, Option<String>),
    Register(Step),
    /// With a key.
    LogIn(Up),
    /// Without.
    Adjust(Up),
    /// In `vpc/0/*`.
    Publish(Step),
    Announce(Step, Announcement),
    Rest,
}

impl Do {
    pub(super) fn step(&self) -> Step {
        match self {
            Self::Wait(step, _) | Self::Register(step) | Self::Publish(step) | Self::Announce(step, _) => {
                *step
            }
            Self::LogIn(_) | Self::Adjust(_) => Step::Up,
            Self::Rest => Step::Joined,
        }
    }

    pub(super) fn errand(&self) -> Errand {
        match self {
            Self::Publish(_) => Errand::Publishing,
            Self::Announce(..) => Errand::Announcing,
            _ => Errand::Joining,
        }
    }
}

pub(super) fn next(goal: &Goal<'_>, seen: &Seen<'_>) -> Do {
    let ours =
        |it: &&Membership| it.server == goal.server && it.here == goal.is_here() && it.instance_id == goal.id;
    let Some(membership) = seen.membership.filter(ours) else {
        return Do::Register(Step::Register);
    };
    let view = match &seen.tailscaled {
        Ok(view) => *view,
        Err(why) => return Do::Wait(Step::Tailscaled, Some(why.clone())),
    };
    let login_server = goal.login_server(membership);
    if seen.disowned || !view.is_logged_in(&login_server) {
        return match seen.key {
            true => Do::LogIn(goal.up(login_server, None)),
            false => Do::Register(Step::Register),
        };
    }
    if goal.differs(view) {
        return Do::Adjust(goal.up(login_server, Some(view)));
    }
    let Some(announcement) = goal.announcement(view) else {
        return match (seen.out_of_touch, view.backend) {
            (_, Backend::NeedsMachineAuth) => {
                let words = "the VPN waits for an operator of Headscale to approve this node";
                Do::Wait(Step::Address, Some(words.to_owned()))
            }
            (true, _) => Do::Register(Step::Address),
            (false, _) => Do::Wait(Step::Address, view.trouble()),
        };
    };
    match (seen.published, seen.step) {
        (false, step @ (Step::Announce | Step::Joined)) if !seen.publish_later => return Do::Publish(step),
        (true, _) | (false, Step::Announce | Step::Joined) => {}
        (false, _) => return Do::Publish(Step::Address),
    }
    if goal.settings.node_type.is_some() {
        if seen.told != Some(&announcement) {
            return Do::Announce(Step::Announce, announcement);
        }
        if seen.due {
            return Do::Announce(Step::Joined, announcement);
        }
    }
    match seen.out_of_touch {
        true => Do::Register(Step::Joined),
        false => Do::Rest,
    }
}

impl Goal<'_> {
    pub(super) fn is_here(&self) -> bool {
        matches!(self.settings.server, Server::Here { .. })
    }

    /// In one machine the public URL would be a detour through the gateway.
    pub(super) fn login_server(&self, membership: &Membership) -> String {
        match self.settings.server {
            Server::Here { headscale, .. } => format!("http://{}", reachable(headscale)),
            Server::App(_) | Server::SameApp => membership.server_url.clone(),
        }
    }

    /// `None`: as for a machine that was never in the VPN.
    fn up(&self, login_server: String, now: Option<&View>) -> Up {
        Up {
            login_server,
            hostname: self.settings.name.to_string(),
            accept_dns: self.accept_dns(),
            // Once on it stays on: the address that asks for it is not known all the time.
            accept_routes: now.is_some_and(|now| now.prefs.accept_routes || outside(now))
                || self.settings.accept_routes,
        }
    }

    /// Whether tailscaled runs on other settings than these.
    fn differs(&self, now: &View) -> bool {
        let prefs = &now.prefs;
        !prefs.want_running
            || prefs.hostname != self.settings.name.as_str()
            || prefs.accept_dns != self.accept_dns()
            || (!prefs.accept_routes && (self.settings.accept_routes || outside(now)))
    }

    /// In userspace there is no resolver to change.
    fn accept_dns(&self) -> bool {
        self.settings.accept_dns && self.settings.device
    }

    /// `None`: it is not in the VPN.
    fn announcement(&self, view: &View) -> Option<Announcement> {
        let address = view.address.filter(|_| view.is_up())?;
        Some(Announcement {
            server: self.server,
            id: self.id.clone(),
            name: self.settings.name.to_string(),
            node_type: self
                .settings
                .node_type
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            address,
            hostname: view.dns_name.clone()?,
            silence: self.settings.silence,
        })
    }
}

/// The server hands out other addresses than our vpc.toml says.
fn outside(now: &View) -> bool {
    now.address
        .is_some_and(|address| !SHARED_SPACE.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::super::view::tests::{prefs, status, view};
    use super::*;
    use serde_json::{Value, json};
    use std::time::Duration;

    const URL: &str = "https://headscale.example.com";

    /// All that a decision depends on; as it stands, all is well.
    struct Case {
        settings: NodeSettings,
        membership: Option<Membership>,
        /// `None`: tailscaled does not answer.
        status: Option<Value>,
        prefs: Value,
        key: bool,
        disowned: bool,
        out_of_touch: bool,
        published: bool,
        step: Step,
        told: bool,
        due: bool,
    }

    fn well() -> Case {
        Case {
            settings: NodeSettings {
                name: "db-1".parse().unwrap(),
                node_type: Some("mongodb".parse().unwrap()),
                server: Server::App(AppId::from_bytes([5; 20])),
                app_id: Some(AppId::from_bytes([1; 20])),
                instance_id: None,
                mesh: "127.0.0.1:8091".parse().unwrap(),
                tailscale: None,
                device: true,
                accept_dns: true,
                accept_routes: true,
                heartbeat: Duration::from_secs(30),
                silence: Duration::from_secs(300),
                readers: None,
            },
            membership: Some(Membership {
                server: AppId::from_bytes([5; 20]),
                here: false,
                instance_id: "i-1".parse().unwrap(),
                server_url: URL.to_owned(),
                shared_key: String::new(),
            }),
            status: Some(status("Running")),
            prefs: prefs(URL),
            key: false,
            disowned: false,
            out_of_touch: false,
            published: true,
            step: Step::Joined,
            told: true,
            due: false,
        }
    }

    impl Case {
        fn decided(&self) -> Do {
            let goal = Goal {
                settings: &self.settings,
                server: AppId::from_bytes([5; 20]),
                id: "i-1".parse().unwrap(),
            };
            let view = self.status.as_ref().map(|status| view(status, &self.prefs));
            let announcement = view.as_ref().and_then(|view| goal.announcement(view));
            next(
                &goal,
                &Seen {
                    membership: self.membership.as_ref(),
                    key: self.key,
                    tailscaled: view.as_ref().ok_or("away".to_owned()),
                    disowned: self.disowned,
                    out_of_touch: self.out_of_touch,
                    published: self.published,
                    publish_later: false,
                    step: self.step,
                    told: announcement.as_ref().filter(|_| self.told),
                    due: self.due,
                },
            )
        }
    }

    fn after(change: impl FnOnce(&mut Case)) -> Do {
        let mut case = well();
        change(&mut case);
        case.decided()
    }

    fn is_log_in(act: &Do) -> bool {
        matches!(act, Do::LogIn(up) if up.login_server == URL)
    }

    #[test]
    fn what_is_true_already_is_not_done_again() {
        assert_eq!(well().decided(), Do::Rest);
        assert_eq!(after(|it| it.key = true), Do::Rest);
        assert_eq!(after(|it| it.settings.node_type = None), Do::Rest);
        // Packets travel before a relay is found.
        assert_eq!(after(|it| it.status = Some(status("Starting"))), Do::Rest);
        // The first time after a restart of the daemon.
        let restarted = |it: &mut Case| (it.published, it.step, it.told) = (false, Step::Identity, false);
        assert_eq!(after(restarted), Do::Publish(Step::Address));
    }

    #[test]
    fn who_is_not_let_in_registers_and_logs_in() {
        let register = Do::Register(Step::Register);
        assert_eq!(after(|it| it.membership = None), register);
        assert_eq!(
            after(|it| it.membership.as_mut().unwrap().instance_id = "i-2".parse().unwrap()),
            register
        );
        let other_server =
            |it: &mut Case| it.membership.as_mut().unwrap().server = AppId::from_bytes([6; 20]);
        assert_eq!(after(other_server), register);
        // The server moved from this machine to another one of the same app.
        assert_eq!(after(|it| it.membership.as_mut().unwrap().here = true), register);
        // One reason to log in after the other, without a key and with one.
        let reasons: [fn(&mut Case); 4] = [
            |it| it.status = Some(status("NeedsLogin")),
            |it| it.status.as_mut().unwrap()["HaveNodeKey"] = json!(false),
            |it| it.prefs["ControlURL"] = json!("https://elsewhere.example.com"),
            |it| it.disowned = true,
        ];
        for reason in reasons {
            assert_eq!(after(reason), register);
            let with_key = after(|it| {
                reason(it);
                it.key = true;
            });
            assert!(is_log_in(&with_key), "{with_key:?}");
        }
        assert_eq!(
            after(|it| it.status = None),
            Do::Wait(Step::Tailscaled, Some("away".into()))
        );
    }

    #[test]
    fn in_one_machine_headscale_is_reached_without_a_detour() {
        let act = after(|it| {
            it.settings.server = Server::Here {
                api: "127.0.0.1:8000".parse().unwrap(),
                headscale: "0.0.0.0:8080".parse().unwrap(),
            };
            it.membership.as_mut().unwrap().here = true;
            it.key = true;
        });
        assert!(matches!(act, Do::LogIn(up) if up.login_server == "http://127.0.0.1:8080"));
    }

    #[test]
    fn tailscaled_is_told_what_differs_and_nothing_else() {
        let differences: [fn(&mut Case); 5] = [
            |it| it.prefs["Hostname"] = json!("other"),
            |it| it.prefs["WantRunning"] = json!(false),
            |it| it.settings.accept_dns = false,
            |it| it.settings.device = false,
            // The server's addresses are not within 100.64.0.0/10, whatever our vpc.toml says.
            |it| (it.settings.accept_routes, it.prefs["RouteAll"]) = (false, json!(false)),
        ];
        for (nth, difference) in differences.into_iter().enumerate() {
            let act = after(difference);
            let Do::Adjust(up) = act else {
                panic!("{nth}: {act:?}");
            };
            assert!(up.accept_routes && up.hostname == "db-1", "{nth}: {up:?}");
        }
        // The address that asked for routes is not known at the moment.
        let quiet = after(|it| {
            it.settings.accept_routes = false;
            it.status = Some(status("NoState"));
        });
        assert!(matches!(quiet, Do::Wait(Step::Address, _)), "{quiet:?}");
    }

    #[test]
    fn the_server_hears_what_is_new_at_once_and_else_now_and_then() {
        assert!(matches!(
            after(|it| it.told = false),
            Do::Announce(Step::Announce, _)
        ));
        let due = after(|it| it.due = true);
        let Do::Announce(Step::Joined, told) = due else {
            panic!("{due:?}");
        };
        assert_eq!(told.hostname.as_str(), "db-1.dstack.internal");
        assert_eq!((told.name.as_str(), told.node_type.as_str()), ("db-1", "mongodb"));
        // Files come first, or in between.
        assert_eq!(
            after(|it| (it.published, it.due) = (false, true)),
            Do::Publish(Step::Joined)
        );
    }

    #[test]
    fn a_headscale_that_is_long_out_of_touch_may_be_elsewhere() {
        assert_eq!(after(|it| it.out_of_touch = true), Do::Register(Step::Joined));
        let lost = |it: &mut Case| it.status = Some(status("NoState"));
        assert!(matches!(after(lost), Do::Wait(Step::Address, _)));
        let long_lost = after(|it| {
            lost(it);
            it.out_of_touch = true;
        });
        assert_eq!(long_lost, Do::Register(Step::Address));
        let unapproved = after(|it| it.status = Some(status("NeedsMachineAuth")));
        assert!(matches!(unapproved, Do::Wait(Step::Address, Some(why)) if why.contains("approve")));
    }
}
