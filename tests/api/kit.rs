//! A running API in a temporary state directory, and a client of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dstack_vpc::api::{Api, ApiSettings, ApiStatus};
use dstack_vpc::names::AppId;
use dstack_vpc::paths::StateDir;
use dstack_vpc::registry::RegistrySettings;
use dstack_vpc::spec::{AllowedApps, Store};
use hyper::Method;
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::common::http::{self, Reply, With};
use crate::common::poll;
use crate::place::Place;

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Two apps that may, and one that may not.
pub(crate) const OURS: &str = "aa00000000000000000000000000000000000001";
pub(crate) const THEIRS: &str = "bb00000000000000000000000000000000000002";
pub(crate) const NOBODY: &str = "cc00000000000000000000000000000000000003";

pub(crate) fn app(id: &str) -> AppId {
    id.parse().expect("an app id")
}

/// On a free port; everybody but [`NOBODY`] may; no Headscale.
pub(crate) fn settings() -> ApiSettings {
    ApiSettings {
        listen: "127.0.0.1:0".parse().expect("an address"),
        allowed_apps: AllowedApps::from_iter([app(OURS), app(THEIRS)]),
        own_app: None,
        server_url: Ok("https://vpn.example.com:8443".to_owned()),
        prefix: "100.128.0.0/10".parse().expect("a prefix"),
        join_key_lifetime: Duration::from_secs(3600),
        join_key_reusable: false,
        requests_per_hour: 0,
        registrations_per_hour: 0,
        registry: RegistrySettings {
            store: Store::Embedded,
            endpoints: Vec::new(),
            silence: Duration::from_secs(24 * 3600),
            forget_after: Duration::ZERO,
        },
        headscale: None,
    }
}

pub(crate) struct Server {
    pub(crate) api: Api,
    pub(crate) dir: Arc<TempDir>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::with(|_| ()).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut ApiSettings)) -> Self {
        let mut settings = settings();
        change(&mut settings);
        let dir = Arc::new(tempfile::tempdir().expect("a temporary directory"));
        Self::again(dir, settings).await
    }

    /// With a Headscale that can be used.
    pub(crate) async fn with_headscale(place: &Place) -> Self {
        let server = Self::with(|settings| settings.headscale = Some(place.access())).await;
        server.until_well().await;
        server
    }

    /// In a state directory that may have been used before.
    pub(crate) async fn again(dir: Arc<TempDir>, settings: ApiSettings) -> Self {
        let api = Api::start(settings, &StateDir::new(dir.path())).expect("the API");
        Self { api, dir }
    }

    pub(crate) async fn addr(&self) -> SocketAddr {
        self.api.local_addr().await
    }

    pub(crate) fn state(&self) -> StateDir {
        StateDir::new(self.dir.path())
    }

    pub(crate) async fn get(&self, app: &str, path: &str) -> Reply {
        self.send(Method::GET, app, path).await
    }

    pub(crate) async fn post(&self, app: &str, path: &str) -> Reply {
        self.send(Method::POST, app, path).await
    }

    pub(crate) async fn send(&self, method: Method, app: &str, path: &str) -> Reply {
        let request = http::request(method, path, http_body_util::Empty::<bytes::Bytes>::new());
        http::send(self.addr().await, request.with("x-dstack-app-id", app))
            .await
            .expect("an answer")
    }

    /// The same, for an answer that may take longer than a test's usual patience.
    pub(crate) async fn get_at_last(&self, app: &str, path: &str) -> Reply {
        let stream = TcpStream::connect(self.addr().await).await.expect("connected");
        let request = http::get(path).with("x-dstack-app-id", app);
        let answer = http::open(stream, request).await.expect("an answer");
        Reply::read(answer).await.expect("a body")
    }

    /// A node as it announces itself.
    pub(crate) async fn announce(&self, app: &str, id: &str, node_type: &str, ip: &str) {
        let reply = self
            .post(
                app,
                &format!(
                    "/api/nodes/update?uuid={id}&node_type={node_type}&tailscale_ip={ip}&hostname={id}.dstack.internal"
                ),
            )
            .await;
        assert_eq!(
            reply.status,
            200,
            "{} {:?}",
            reply.text(),
            self.api.status().borrow()
        );
    }

    /// Writes `text` as it is and reads all that comes back.
    pub(crate) async fn raw(&self, text: impl AsRef<[u8]>) -> String {
        let stream = TcpStream::connect(self.addr().await).await.expect("connected");
        http::raw(stream, text).await.expect("an answer")
    }

    pub(crate) async fn until(&self, wanted: impl Fn(&ApiStatus) -> bool) -> ApiStatus {
        let mut status = self.api.status();
        let found = tokio::time::timeout(PATIENCE, status.wait_for(|status| wanted(status))).await;
        match found {
            Ok(found) => found.expect("the API lives").clone(),
            Err(_) => panic!("{:?}", self.api.status().borrow()),
        }
    }

    pub(crate) async fn until_well(&self) {
        let registers = poll(PATIENCE, async || {
            let reply = self.get(OURS, "/api/register?instance_id=probe").await;
            (reply.status == 200).then_some(())
        });
        assert!(registers.await.is_some(), "{:?}", self.api.status().borrow());
    }
}

/// What an error says.
pub(crate) fn words(reply: &Reply) -> String {
    reply.json()["error"].as_str().unwrap_or_default().to_owned()
}
