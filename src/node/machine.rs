//! What to do next, decided from what is seen now: nothing is remembered that can be seen, so whatever happens to
//! the server, to tailscaled or to this process, the next look starts from the truth.

use super::credentials::Membership;
use super::pace::Errand;
use super::server::{Announcement, reachable};
use super::tailscale::Up;
use super::view::{Backend, SHARED_SPACE, View};
use super::{NodeSettings, Server, Step};
use crate::names::{AppId, NodeId};

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
    /// It was in the VPN a moment ago.
    pub(super) joined: bool,
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
    let ours = |it: &&Membership| it.server == goal.server && it.instance_id == goal.id;
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
    match (seen.published, seen.joined) {
        (false, false) => return Do::Publish(Step::Address),
        (false, true) if !seen.publish_later => return Do::Publish(Step::Joined),
        _ => {}
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
            netfilter: now.is_none_or(|now| now.prefs.netfilter_mode != 0 && !now.lacks_netfilter()),
        }
    }

    /// Whether tailscaled runs on other settings than these.
    fn differs(&self, now: &View) -> bool {
        let prefs = &now.prefs;
        !prefs.want_running
            || prefs.hostname != self.settings.name.as_str()
            || prefs.accept_dns != self.accept_dns()
            || (!prefs.accept_routes && (self.settings.accept_routes || outside(now)))
            || (prefs.netfilter_mode != 0 && now.lacks_netfilter())
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
