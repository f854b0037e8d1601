//! What the daemon serves itself: the mesh and the VPC API, changed in place and all or nothing.

use std::sync::Arc;

use tokio::sync::watch;

use crate::api::{Api, ApiSettings, ApiStatus};
use crate::desired::ListenerSettings;
use crate::identity::Identity;
use crate::mesh::Mesh;
use crate::paths::StateDir;

/// The open listeners.
pub(super) struct BuiltIn {
    mesh: Mesh,
    api: Option<Api>,
    /// What is to be so once everything is proven; until then more is served than this.
    goal: ListenerSettings,
}

impl BuiltIn {
    pub(super) async fn start(
        settings: &ListenerSettings,
        identity: watch::Receiver<Option<Arc<Identity>>>,
        state: &StateDir,
    ) -> Result<Self, String> {
        let api = match &settings.api {
            Some(api) => Some(start_api(api, state)?),
            None => None,
        };
        let mesh = match Mesh::start(settings.mesh.clone(), identity) {
            Ok(mesh) => mesh,
            Err(error) => {
                if let Some(api) = api {
                    api.shutdown().await;
                }
                return Err(error.to_string());
            }
        };
        Ok(Self {
            mesh,
            api,
            goal: settings.clone(),
        })
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
        }
        // nginx asks by the old names until it has reloaded: a backend that goes is known until then.
        let mut both = settings.mesh.clone();
        for (name, allowed) in &self.mesh.settings().backends {
            both.backends
                .entry(name.clone())
                .or_insert_with(|| allowed.clone());
        }
        self.mesh.update(both).await.map_err(|error| error.to_string())?;
        self.goal.clone_from(settings);
        Ok(())
    }

    /// Lets go of what only the former state needed.
    pub(super) async fn settle(&mut self) {
        // No listener moves here, so nothing can fail.
        if *self.mesh.settings() != self.goal.mesh
            && let Err(error) = self.mesh.update(self.goal.mesh.clone()).await
        {
            tracing::error!(%error, "the listeners keep a former backend");
        }
        self.mesh.retire().await;
        match (self.goal.api.is_some(), self.api.take()) {
            (true, Some(api)) => {
                api.retire().await;
                self.api = Some(api);
            }
            (false, Some(api)) => api.shutdown().await,
            (_, None) => {}
        }
    }

    /// Drains and closes everything.
    pub(super) async fn close(self) {
        // The API's callers come through the mesh of others, so both drain at once.
        let api = async {
            if let Some(api) = self.api {
                api.shutdown().await;
            }
        };
        tokio::join!(self.mesh.shutdown(), api);
    }
}

fn start_api(settings: &ApiSettings, state: &StateDir) -> Result<Api, String> {
    Api::start(settings.clone(), state).map_err(|error| error.to_string())
}
