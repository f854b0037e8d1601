//! The etcd example as a whole: three machines join, find each other, and make a cluster over the VPN.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::process::Watchdog;
use crate::common::run;
use crate::compose::Compose;
use crate::container::{Member, app, example, mount, start};
use crate::site::Site;
use crate::vpc::until;
use crate::vpn::{SOON, run_service, until_joined};

/// One of three machines, with the volumes of its compose.
struct Instance {
    name: String,
    member: Member,
    volumes: TempDir,
    etcd: Option<(Child, Watchdog)>,
}

impl Instance {
    async fn start(site: &Site, compose: &Compose, number: u8) -> Self {
        let name = format!("etcd-{number}");
        let server = example('3').app;
        let filled = [("NODE_NAME", &*name), ("VPC_SERVER_APP_ID", &server)];
        let id = app(&example('1').app, number);
        let member = start(site, &name, &id, compose, &filled).await;
        let volumes = tempfile::tempdir().expect("a temporary directory");
        for volume in &compose.services["etcd"].volumes {
            let (source, target) = volume.split_once(':').expect("SOURCE:TARGET");
            let source = volumes.path().join(source);
            std::fs::create_dir(&source).expect("a folder");
            mount(&member.host, &source, target).await;
        }
        Self {
            name,
            member,
            volumes,
            etcd: None,
        }
    }

    /// What the compose does, in its order.
    async fn bring_up(&mut self, compose: &Compose) {
        run_service(&self.member.host, compose, "configure")
            .await
            .expect("it ends well");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log())
            .expect("a log file");
        let words = &compose.services["etcd"].command;
        let mut etcd = self.member.host.inside.command(&words[0]);
        etcd.args(&words[1..]).stdin(Stdio::null());
        etcd.stdout(log.try_clone().expect("the log file")).stderr(log);
        let child = etcd.spawn().expect("nsenter");
        let watchdog = Watchdog::over(child.id());
        self.etcd = Some((child, watchdog));
    }

    fn log(&self) -> PathBuf {
        self.volumes.path().join("log")
    }

    /// As when its power fails.
    fn lose(&mut self) {
        self.stop_etcd();
        self.member.machine.crash();
    }

    fn stop_etcd(&mut self) {
        if let Some((mut child, _)) = self.etcd.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Asks the member `of` by its name in the VPN.
    async fn ask(&self, of: &str, method: &str, body: Value) -> Result<Value, String> {
        let url = format!("http://{of}.dstack.internal:2379/v3/{method}");
        let body = body.to_string();
        let words = ["curl", "-sS", "--fail", "--max-time", "5", "-d", &*body, &*url];
        let said = self.member.host.inside.tell(&words).await?;
        serde_json::from_str(&said).map_err(|error| format!("{error}: {said}"))
    }

    async fn put(&self, of: &str, value: &str) -> Result<(), String> {
        self.ask(of, "kv/put", json!({"key": "a2V5", "value": value}))
            .await
            .map(drop)
    }

    /// What the member `of` has itself, without asking the others.
    async fn holds(&self, of: &str, value: &str) -> Result<(), String> {
        let found = self
            .ask(of, "kv/range", json!({"key": "a2V5", "serializable": true}))
            .await?;
        match found["kvs"][0]["value"] == value {
            true => Ok(()),
            false => Err(format!("{of} has {found}")),
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.stop_etcd();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.log()).unwrap_or_default();
            let skip = log.lines().count().saturating_sub(20);
            eprintln!("--- {} (the last lines)", self.name);
            log.lines().skip(skip).for_each(|line| eprintln!("{line}"));
        }
    }
}

#[test]
#[ignore = "takes half a minute; `make examples` runs it"]
fn three_machines_make_an_etcd_that_outlives_one_of_them() {
    run(async {
        let site = Site::new().await;
        let compose = Compose::read("etcd/compose.yaml");
        let server = Compose::read("compose/server.yaml");
        let server = start(&site, "server", &example('3'), &server, &[]).await;
        let mut instances = join_all([1, 2, 3].map(|number| Instance::start(&site, &compose, number))).await;
        server.machine.until_ready().await;
        // The scripts wait for the nodes by themselves.
        join_all(instances.iter_mut().map(|it| it.bring_up(&compose))).await;

        let names = ["etcd-1", "etcd-2", "etcd-3"];
        let [value, later] = ["Zmlyc3Q=", "c2Vjb25k"];
        until(SOON, "the cluster takes a value", || {
            instances[0].put("etcd-2", value)
        })
        .await
        .expect("a leader");
        for (of, asker) in names.iter().zip([1, 2, 0]) {
            until(SOON, "it is everywhere", || instances[asker].holds(of, value))
                .await
                .expect("the value");
        }
        let listed = instances[0]
            .ask("etcd-3", "cluster/member/list", json!({}))
            .await
            .expect("the members");
        let mut urls: Vec<_> = listed["members"]
            .as_array()
            .expect("members")
            .iter()
            .map(|it| it["peerURLs"][0].as_str().expect("a URL").to_owned())
            .collect();
        urls.sort();
        assert_eq!(
            urls,
            names.map(|name| format!("http://{name}.dstack.internal:2380"))
        );

        // The leader is the one whose loss is felt most.
        let mut lost = None;
        for (number, name) in names.iter().enumerate() {
            let status = instances[0]
                .ask(name, "maintenance/status", json!({}))
                .await
                .expect("a status");
            if status["leader"] == status["header"]["member_id"] {
                lost = Some(number);
            }
        }
        let lost = lost.expect("a leader");
        let [one, other] = [(lost + 1) % 3, (lost + 2) % 3];
        instances[lost].lose();
        until(SOON, "two go on", || instances[one].put(names[other], later))
            .await
            .expect("a new leader");
        until(SOON, "both have it", || instances[other].holds(names[one], later))
            .await
            .expect("the value");

        // It comes back with what it had, and catches up.
        instances[lost].member.machine.spawn_again();
        until_joined(&instances[lost].member.machine).await;
        instances[lost].bring_up(&compose).await;
        let caught_up = until(SOON, "it has caught up", || {
            instances[one].holds(names[lost], later)
        });
        caught_up.await.expect("the value");
    });
}
