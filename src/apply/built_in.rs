//! What the daemon serves itself: the mesh, the VPC API, the metrics and the status page, changed in place.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use axum::Router;
use tokio::sync::watch;

use super::real::Own;
use crate::api::{Api, ApiSettings, ApiStatus};
use crate::desired::ListenerSettings;
use crate::listen::{Listeners, Site};
use crate::mesh::{BindError, Mesh, MeshSettings};
use crate::metrics::{self, ApiSide, Gather};
use crate::names::BackendName;
use crate::page::{self, Page};
use crate::paths::StateDir;
use crate::spec::AllowedApps;

/// Connections of a listener for whoever looks at this machine: more than there are; others wait.
const MOST_WATCHERS: usize = 64;

/// Who may call which backend.
pub type Backends = BTreeMap<BackendName, AllowedApps>;

/// The open listeners.
pub(super) struct BuiltIn {
    mesh: Mesh,
    api: Option<Api>,
    gather: Gather,
    metrics: Optional,
    page: (Page, Optional),
    /// What is to be so once everything is proven; until then more is served than this.
    goal: ListenerSettings,
}

impl BuiltIn {
    pub(super) async fn start(
        settings: &ListenerSettings,
        own: &Own,
        state: &StateDir,
    ) -> Result<Self, String> {
        let api = match &settings.api {
            Some(api) => Some(start_api(api, state)?),
            None => None,
        };
        let mesh = match Mesh::start(with_former(settings, own.former.clone()), own.identity.clone()) {
            Ok(mesh) => mesh,
            Err(error) => {
                if let Some(api) = api {
                    api.shutdown().await;
                }
                return Err(error.to_string());
            }
        };
        let gather = Gather::new(own.sources.clone(), mesh.tallies());
        let page = Page::new(gather.clone(), state.clone());
        let mut open = Self {
            metrics: Optional::new(metrics::KEY, metrics::router(gather.clone())),
            page: (page.clone(), Optional::new(page::KEY, page.router())),
            gather,
            mesh,
            api,
            goal: settings.clone(),
        };
        open.tell_of_api();
        if let Err(error) = open.open_optional(settings).await {
            open.close().await;
            return Err(error.to_string());
        }
        Ok(open)
    }

    /// What only some want. A listener that is no longer wanted is left to [`BuiltIn::settle`].
    async fn open_optional(&mut self, settings: &ListenerSettings) -> Result<(), BindError> {
        self.metrics.open(settings.metrics).await?;
        let (page, listener) = &mut self.page;
        if let Some(wanted) = &settings.page {
            listener.open(Some(wanted.listen)).await?;
            page.answer_to(wanted.names.clone());
        }
        Ok(())
    }

    /// Closes at once what only some want where it is wanted no longer.
    async fn leave_optional(&self, settings: &ListenerSettings) {
        self.metrics.leave(settings.metrics).await;
        let page = settings.page.as_ref().map(|page| page.listen);
        self.page.1.leave(page).await;
    }

    fn tell_of_api(&self) {
        self.mesh.publish(self.api.as_ref().map(Api::inside));
        self.gather.set_api(self.api.as_ref().map(|api| ApiSide {
            requests: api.requests(),
            status: api.status(),
            directory: api.directory(),
        }));
    }

    pub(super) fn settings(&self) -> &ListenerSettings {
        &self.goal
    }

    pub(super) fn api(&self) -> Option<&Api> {
        self.api.as_ref()
    }

    pub(super) fn api_status(&self) -> Option<watch::Receiver<ApiStatus>> {
        self.api.as_ref().map(Api::status)
    }

    /// On an error a part of it may be done: going back is another update.
    pub(super) async fn update(
        &mut self,
        settings: &ListenerSettings,
        state: &StateDir,
    ) -> Result<(), String> {
        // An API that is no longer wanted serves until nginx has stopped to ask it.
        if let Some(wanted) = &settings.api {
            match &self.api {
                Some(api) => api
                    .update(wanted.clone())
                    .await
                    .map_err(|error| error.to_string())?,
                None => self.api = Some(start_api(wanted, state)?),
            }
            self.tell_of_api();
        }
        let opened = self.open_optional(settings).await;
        // What one of them wants the other may be about to give up.
        let is_too_soon = opened.as_ref().is_err_and(is_ours);
        if !is_too_soon {
            opened.map_err(|error| error.to_string())?;
        }
        // Until it has reloaded, and afterwards for requests on connections that an old worker had accepted, nginx asks
        // by the old names: a backend that goes is known until the next change. Nobody else asks.
        let both = with_former(settings, self.goal.mesh.backends.clone());
        let mut updated = self.mesh.update(both.clone()).await;
        if updated.as_ref().is_err_and(is_ours) {
            self.leave_optional(settings).await;
            updated = self.mesh.update(both).await;
        }
        updated.map_err(|error| error.to_string())?;
        if is_too_soon {
            self.mesh.make_room().await;
            let opened = self.open_optional(settings).await;
            opened.map_err(|error| error.to_string())?;
        }
        self.goal.clone_from(settings);
        Ok(())
    }

    /// See [`Mesh::bid_farewell`]; [`BuiltIn::settle`] ends it.
    pub(super) fn bid_farewell(&self) {
        self.mesh.bid_farewell(true);
    }

    /// Closes at once where it listens no longer: nobody is there who could still be calling, and the next nginx may
    /// want the addresses.
    pub(super) async fn make_room(&self) {
        self.mesh.make_room().await;
        let goal = self.goal.clone();
        self.leave_optional(&goal).await;
    }

    /// Lets go of what only the former state needed.
    pub(super) async fn settle(&mut self) {
        self.mesh.bid_farewell(false);
        self.mesh.retire().await;
        match (self.goal.api.is_some(), self.api.take()) {
            (true, Some(api)) => {
                api.retire().await;
                self.api = Some(api);
            }
            (false, Some(api)) => {
                self.tell_of_api();
                api.shutdown().await;
            }
            (_, None) => {}
        }
        self.metrics.settle(self.goal.metrics.is_some()).await;
        self.page.1.settle(self.goal.page.is_some()).await;
    }

    /// Drains and closes everything.
    pub(super) async fn close(self) {
        // The API's callers come through the mesh of others, so both drain at once.
        let api = async {
            if let Some(api) = self.api {
                api.shutdown().await;
            }
        };
        let (mut metrics, (_, mut page)) = (self.metrics, self.page);
        tokio::join!(
            self.mesh.shutdown(),
            api,
            metrics.settle(false),
            page.settle(false)
        );
    }
}

/// A listener that is there only where it is wanted, for whoever looks at this machine.
struct Optional {
    site: Site,
    open: Option<Listeners>,
}

impl Optional {
    fn new(key: &'static str, router: Router) -> Self {
        let most = MOST_WATCHERS;
        let site = Site { key, most, router };
        Self { site, open: None }
    }

    /// Opens it or moves it; that it is not wanted is heeded by [`Optional::settle`].
    async fn open(&mut self, wanted: Option<SocketAddr>) -> Result<(), BindError> {
        let Some(addr) = wanted else { return Ok(()) };
        match &mut self.open {
            Some(open) if open.is_at(addr) => Ok(()),
            Some(open) => open.move_to(addr).await,
            None => Listeners::start(addr, self.site.clone()).map(|open| self.open = Some(open)),
        }
    }

    /// Listens nowhere but where it is wanted, from now on.
    async fn leave(&self, wanted: Option<SocketAddr>) {
        if let Some(open) = &self.open {
            open.leave(wanted).await;
        }
    }

    async fn settle(&mut self, wanted: bool) {
        match (wanted, &mut self.open) {
            (true, Some(open)) => open.retire(),
            (false, Some(open)) => {
                open.close().await;
                self.open = None;
            }
            (_, None) => {}
        }
    }
}

/// Whether it is this process that has the address.
fn is_ours(error: &BindError) -> bool {
    let BindError::Taken { holder, .. } = error else {
        return false;
    };
    let process = holder.as_ref().and_then(|holder| holder.process.as_ref());
    process.is_some_and(|(pid, _)| *pid == std::process::id())
}

/// The new settings, and who may call what goes with them.
fn with_former(settings: &ListenerSettings, former: Backends) -> MeshSettings {
    let mut both = settings.mesh.clone();
    for (name, allowed) in former {
        both.backends.entry(name).or_insert(allowed);
    }
    both
}

fn start_api(settings: &ApiSettings, state: &StateDir) -> Result<Api, String> {
    Api::start(settings.clone(), state).map_err(|error| error.to_string())
}
