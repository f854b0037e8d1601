//! The way to etcd: one of its members after the other, until one answers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE};
use hyper::{Request, Response};
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::{ClientConfig, RootCertStore};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};
use url::Url;

use super::stream::Watch;
use super::wire::{self, Keys, Kv, LeaseAnswer, Line, RangeAnswer, Refusal, TokenAnswer, Txn, TxnAnswer};
use crate::ratls;
use crate::words::root_cause;

/// For one answer of one member. An election takes about a second.
const ATTEMPT: Duration = Duration::from_secs(3);
/// For a call in all: a leader that died is replaced within this.
const PATIENCE: Duration = Duration::from_secs(10);
/// After the last member.
const PAUSE: Duration = Duration::from_millis(100);
/// Records of one page; each has about 600 bytes. For every page etcd looks at all keys that are left, so many small
/// ones would cost it more than they are worth.
const PAGE: u32 = 50_000;
/// For a page: etcd puts it together before it sends the first byte.
const PAGE_ATTEMPT: Duration = Duration::from_secs(60);

// gRPC's codes.
const DEADLINE_EXCEEDED: u32 = 4;
const NOT_FOUND: u32 = 5;
const UNAVAILABLE: u32 = 14;
const UNAUTHENTICATED: u32 = 16;

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum EtcdError {
    /// No member answered in time. Whether a write was done is not known.
    #[error("no member of etcd answers: {0}")]
    Unreachable(String),
    /// It does not do it, and would not the next time.
    #[error("etcd refuses: {message}")]
    Refused { code: u32, message: String },
    /// What is asked for is compacted away.
    #[error("etcd has dropped this revision")]
    Compacted,
}

impl EtcdError {
    /// E.g. a lease that expired.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { code: NOT_FOUND, .. })
    }

    /// The second is what it says when there is no token at all.
    fn wants_login(&self) -> bool {
        match self {
            Self::Refused { code, message } => {
                *code == UNAUTHENTICATED || message.contains("user name is empty")
            }
            _ => false,
        }
    }
}

pub(super) struct Client {
    http: hyper_util::client::legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    /// Without user and password.
    members: Vec<Url>,
    /// The one that answered last.
    preferred: AtomicUsize,
    login: Option<Login>,
}

/// From the first address that names a user.
struct Login {
    name: String,
    password: String,
    /// As etcd gave it; it expires.
    token: Mutex<Option<String>>,
}

impl Client {
    pub(super) fn new(endpoints: &[Url]) -> Result<Self, EtcdError> {
        let mut login = None;
        let member = |url: &Url| {
            let mut url = url.clone();
            let decoded = |text: &str| {
                percent_encoding::percent_decode_str(text)
                    .decode_utf8_lossy()
                    .into_owned()
            };
            if !url.username().is_empty() && login.is_none() {
                login = Some(Login {
                    name: decoded(url.username()),
                    password: decoded(url.password().unwrap_or_default()),
                    token: Mutex::default(),
                });
            }
            // Refused by addresses that cannot have any.
            let _ = (url.set_username(""), url.set_password(None));
            url
        };
        let members = endpoints.iter().map(member).collect();
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(ATTEMPT / 2));
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(tls()?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        Ok(Self {
            http: hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(https),
            members,
            preferred: AtomicUsize::new(0),
            login,
        })
    }

    /// Every key in order, as of one revision, which is returned. `0` for `revision` is the newest.
    pub(super) async fn range(
        &self,
        keys: &Keys,
        mut revision: u64,
        keys_only: bool,
        mut each: impl FnMut(Kv),
    ) -> Result<u64, EtcdError> {
        let mut keys = keys.clone();
        loop {
            // Whoever answers this will not keep us waiting for a page in vain.
            let _: Value = self
                .call("kv/range", &wire::range(&Keys::nothing(), 1, 0, true))
                .await?;
            let wanted = wire::range(&keys, PAGE, revision, keys_only);
            let page = self
                .on_members("kv/range", &wanted, take_whole, PAGE_ATTEMPT)
                .await?;
            let page: RangeAnswer = parse(&page)?;
            if revision == 0 {
                revision = page.header.revision;
            }
            if let Some(last) = page.kvs.last() {
                keys.0 = format!("{}\0", last.key);
            }
            page.kvs.into_iter().for_each(&mut each);
            if !page.more {
                return Ok(revision);
            }
        }
    }

    pub(super) async fn txn(&self, txn: &Txn) -> Result<TxnAnswer, EtcdError> {
        self.call("kv/txn", &txn.body()).await
    }

    /// A lease that ends after `ttl` seconds unless it is kept.
    pub(super) async fn grant(&self, ttl: u64) -> Result<u64, EtcdError> {
        let answer: LeaseAnswer = self.call("lease/grant", &json!({"TTL": ttl.to_string()})).await?;
        Ok(answer.id)
    }

    /// False: there is no such lease.
    pub(super) async fn keep(&self, lease: u64) -> Result<bool, EtcdError> {
        let answer: Line<LeaseAnswer> = self
            .call("lease/keepalive", &json!({"ID": lease.to_string()}))
            .await?;
        Ok(answer.result.is_some_and(|kept| kept.ttl > 0))
    }

    /// Ends a lease and all that hangs on it.
    pub(super) async fn revoke(&self, lease: u64) -> Result<(), EtcdError> {
        let answer: Result<Value, _> = self.call("lease/revoke", &json!({"ID": lease.to_string()})).await;
        answer.map(drop)
    }

    /// What happens to `keys` from revision `start` on.
    pub(super) async fn watch(&self, keys: &Keys, start: u64) -> Result<Watch, EtcdError> {
        let stream = |answer: Response<Incoming>| ready(Ok(answer.into_body())).boxed();
        let wanted = wire::watch(keys, start);
        let body = self.on_members("watch", &wanted, stream, ATTEMPT).await?;
        Ok(Watch::new(body))
    }

    /// The next call goes to another member: this one answers, but not as it should.
    pub(super) fn prefer_another(&self) {
        self.preferred.fetch_add(1, Ordering::Relaxed);
    }

    async fn call<T: DeserializeOwned>(&self, method: &str, body: &Value) -> Result<T, EtcdError> {
        let answer = self.on_members(method, body, take_whole, ATTEMPT).await?;
        parse(&answer)
    }

    /// Until one answers, or our patience ends; `patience` is that with one of them. `take` is what is taken of a
    /// good answer.
    async fn on_members<T>(
        &self,
        method: &str,
        body: &Value,
        take: Take<T>,
        patience: Duration,
    ) -> Result<T, EtcdError> {
        let give_up = Instant::now() + PATIENCE;
        let mut failures = BTreeMap::new();
        let mut number = self.preferred.load(Ordering::Relaxed);
        loop {
            number %= self.members.len().max(1);
            let Some(member) = self.members.get(number) else {
                return Err(EtcdError::Unreachable("it has no address".to_owned()));
            };
            let answer = match timeout(patience, self.attempt(member, method, body, take)).await {
                Ok(Err(Failure::Final(error))) if error.wants_login() && self.login.is_some() => {
                    // With the new token, in the next round.
                    self.log_in(member).await.map(|()| None)
                }
                Ok(answer) => answer.map(Some),
                Err(_) => Err(Failure::Passing(format!(
                    "no answer within {}s",
                    patience.as_secs()
                ))),
            };
            match answer {
                Ok(Some(answer)) => {
                    self.preferred.store(number, Ordering::Relaxed);
                    return Ok(answer);
                }
                Ok(None) => {}
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(why)) => drop(failures.insert(number, why)),
            }
            if Instant::now() >= give_up {
                let shown = |(number, why): (usize, String)| {
                    format!("{}: {why}", self.members[number].as_str().trim_end_matches('/'))
                };
                let failures: Vec<_> = failures.into_iter().map(shown).collect();
                return Err(EtcdError::Unreachable(failures.join("; ")));
            }
            number += 1;
            if number == self.members.len() {
                sleep(PAUSE).await;
            }
        }
    }

    async fn attempt<T>(
        &self,
        member: &Url,
        method: &str,
        body: &Value,
        take: Take<T>,
    ) -> Result<T, Failure> {
        let answer = self.send(member, method, body).await?;
        match answer.status().is_success() {
            true => take(answer).await,
            false => Err(refusal(&whole(answer).await?)),
        }
    }

    async fn send(&self, member: &Url, method: &str, body: &Value) -> Result<Response<Incoming>, Failure> {
        let path = format!("{}/v3/{method}", member.as_str().trim_end_matches('/'));
        let mut request = Request::post(path).header(CONTENT_TYPE, "application/json");
        if let Some(login) = &self.login {
            let token = login.token.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(token) = token {
                request = request.header(AUTHORIZATION, token);
            }
        }
        let request = request
            .body(Full::from(body.to_string()))
            .map_err(|e| Failure::Passing(e.to_string()))?;
        self.http
            .request(request)
            .await
            .map_err(|e| Failure::Passing(root_cause(&e)))
    }

    async fn log_in(&self, member: &Url) -> Result<(), Failure> {
        let Some(login) = &self.login else { return Ok(()) };
        let body = json!({"name": login.name, "password": login.password});
        let answer = self
            .attempt(member, "auth/authenticate", &body, take_whole)
            .await?;
        let answer: TokenAnswer = parse(&answer).map_err(Failure::Final)?;
        *login.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer.token);
        Ok(())
    }
}

/// What one member made of a call.
enum Failure {
    /// Another member, or the same one a little later, may do it.
    Passing(String),
    Final(EtcdError),
}

/// How an answer is taken.
type Take<T> = fn(Response<Incoming>) -> BoxFuture<'static, Result<T, Failure>>;

fn parse<T: DeserializeOwned>(answer: &[u8]) -> Result<T, EtcdError> {
    serde_json::from_slice(answer)
        .map_err(|e| EtcdError::Unreachable(format!("the answer is not etcd's: {e}")))
}

fn take_whole(answer: Response<Incoming>) -> BoxFuture<'static, Result<Bytes, Failure>> {
    whole(answer).boxed()
}

async fn whole(answer: Response<Incoming>) -> Result<Bytes, Failure> {
    let body = answer.into_body().collect().await;
    Ok(body.map_err(|e| Failure::Passing(root_cause(&e)))?.to_bytes())
}

fn refusal(body: &[u8]) -> Failure {
    let Ok(Refusal { code, message }) = serde_json::from_slice(body) else {
        // 404 is also what etcd says where a configuration file leaves its gateway for JSON off.
        let words = "the answer is not etcd's: is this the address for clients, with `enable-grpc-gateway: true` in etcd's file?";
        return Failure::Passing(words.to_owned());
    };
    match code {
        // No leader, or not the right one any more, or too slow.
        UNAVAILABLE | DEADLINE_EXCEEDED => Failure::Passing(message),
        _ => Failure::Final(EtcdError::Refused { code, message }),
    }
}

/// With the system's roots. To have none is no error where etcd is asked in plain HTTP.
fn tls() -> Result<ClientConfig, EtcdError> {
    let builder = || {
        ClientConfig::builder_with_provider(ratls::provider().clone())
            .with_safe_default_protocol_versions()
            .map_err(|e| EtcdError::Unreachable(e.to_string()))
    };
    let builder = match builder()?.with_native_roots() {
        Ok(with_roots) => with_roots,
        Err(_) => builder()?.with_root_certificates(RootCertStore::empty()),
    };
    Ok(builder.with_no_client_auth())
}
