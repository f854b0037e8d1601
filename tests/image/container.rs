//! One container, by podman.

use std::fs::{self, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use http_body_util::Empty;
use hyper::Request;
use hyper::body::Bytes;

use crate::common::http::{self, Reply};
use crate::common::netns::{Host, Switch};
use crate::common::poll;
use crate::site::{Id, Site};

/// What `podman run` is told beside the image.
pub(crate) struct Setup {
    options: Vec<String>,
    toml: Option<String>,
}

impl Setup {
    pub(crate) fn new() -> Self {
        Self {
            options: Vec::new(),
            toml: None,
        }
    }

    pub(crate) fn env(self, name: &str, value: &str) -> Self {
        self.option(&["--env", &format!("{name}={value}")])
    }

    /// Instead of root, and with no capability at all.
    pub(crate) fn user(self, user: &str) -> Self {
        self.option(&[
            "--user",
            user,
            "--cap-drop",
            "all",
            "--security-opt",
            "no-new-privileges",
        ])
    }

    /// As root, with no more than a node needs that is to have a device.
    pub(crate) fn with_device(self) -> Self {
        let capabilities = "CHOWN,DAC_OVERRIDE,KILL,NET_BIND_SERVICE,SETGID,SETUID,NET_ADMIN";
        self.option(&[
            "--cap-drop",
            "all",
            "--cap-add",
            capabilities,
            "--device",
            "/dev/net/tun",
        ])
    }

    /// Mounted where it is looked for.
    pub(crate) fn toml(mut self, toml: &str) -> Self {
        self.toml = Some(toml.to_owned());
        self
    }

    /// On a host of its own at `site`, with the mounts that a container has on the platform.
    pub(crate) async fn start(mut self, site: &Site, name: &'static str, id: &Id) -> Container {
        let host = site.host(name, id).await;
        // As containers of Docker and Kubernetes have it: whoever runs in them may listen on any port.
        let ports = "echo 0 > /proc/sys/net/ipv4/ip_unprivileged_port_start";
        host.inside
            .tell(&["sh", "-c", ports])
            .await
            .expect("a setting of the network");
        let socket = site.agent_socket(name);
        // As the platform's agent makes it.
        fs::set_permissions(&socket, Permissions::from_mode(0o777)).expect("chmod");
        let dir = socket.parent().expect("a folder");
        fs::set_permissions(dir, Permissions::from_mode(0o755)).expect("chmod");
        if let Some(toml) = self.toml.take() {
            let path = dir.join(format!("{name}.toml"));
            fs::write(&path, toml).expect("vpc.toml");
            self = self.mount(&path.display().to_string(), "/etc/dstack-vpc/vpc.toml:ro");
        }
        let ca = site.ca();
        let setup = self
            .mount(&socket.display().to_string(), "/var/run/dstack.sock")
            .mount(
                &dir.join(".sys-config.json").display().to_string(),
                "/dstack/.host-shared/.sys-config.json:ro",
            )
            .mount(&ca, "/ca.pem:ro")
            .env("SSL_CERT_FILE", "/ca.pem");
        let container = Container {
            full_name: format!("dstack-vpc-test-{}-{name}", std::process::id()),
            name,
            host,
        };
        let network = container.host.inside.network();
        let network = format!("ns:/proc/{}/fd/{}", std::process::id(), network.as_raw_fd());
        let dns = Switch::ADDRESS.to_string();
        let mut words = vec![
            "--detach",
            "--name",
            &container.full_name,
            "--network",
            &network,
            "--dns",
            &dns,
        ];
        words.extend(["--ulimit", "nofile=16384:16384", "--ulimit", "nproc=4096:4096"]);
        words.extend(setup.options.iter().map(String::as_str));
        let image = image();
        words.push(&image);
        podman("run", &words).unwrap_or_else(|why| panic!("{name}: {why}"));
        container
    }

    fn mount(self, from: &str, to: &str) -> Self {
        self.option(&["--volume", &format!("{from}:{to}")])
    }

    fn option(mut self, words: &[&str]) -> Self {
        self.options.extend(words.iter().map(|&word| word.to_owned()));
        self
    }
}

/// Dropping it removes it.
pub(crate) struct Container {
    pub(crate) name: &'static str,
    pub(crate) host: Host,
    full_name: String,
}

impl Container {
    /// What the image's HEALTHCHECK says now.
    pub(crate) async fn healthcheck(&self) -> Result<(), String> {
        podman("healthcheck", &["run", &self.full_name]).map(drop)
    }

    /// Runs a command by hand, and what it prints when it ends well.
    pub(crate) fn exec(&self, words: &[&str]) -> Result<String, String> {
        podman("exec", &[&[self.full_name.as_str()], words].concat())
    }

    /// Calls another app as a local app does.
    pub(crate) async fn call(&self, request: Request<Empty<Bytes>>) -> Reply {
        let reply = self.send("127.0.0.1", request).await;
        reply.unwrap_or_else(|why| panic!("{}: {why}\n{}", self.name, self.logs()))
    }

    /// Sends a request from where this one is to port 80 of that address.
    pub(crate) async fn send(&self, to: &str, request: Request<Empty<Bytes>>) -> Result<Reply, http::Error> {
        let stream = self.host.inside.connect(format!("{to}:80").parse()?).await?;
        http::send_on(stream, request).await
    }

    /// One column of what runs in it.
    pub(crate) fn top(&self, column: &str) -> Vec<String> {
        let said = podman("top", &[&self.full_name, column]).expect("it runs");
        said.lines().skip(1).map(str::to_owned).collect()
    }

    /// Tells it to end, and how it did.
    pub(crate) fn stop(&self) -> i32 {
        podman("stop", &["--time", "40", &self.full_name]).expect("it runs");
        let code = podman("wait", &[&self.full_name]).expect("it ends");
        code.parse().expect("an exit status")
    }

    pub(crate) fn logs(&self) -> String {
        podman("logs", &["--tail", "60", &self.full_name]).unwrap_or_else(|why| why)
    }

    /// Tries until it succeeds.
    pub(crate) async fn until(
        &self,
        what: &str,
        limit: Duration,
        mut attempt: impl AsyncFnMut() -> Result<(), String>,
    ) {
        let mut last = String::new();
        let found = poll(limit, async || match attempt().await {
            Ok(()) => Some(()),
            Err(why) => {
                last = why;
                None
            }
        });
        if found.await.is_none() {
            let status = self.exec(&["dstack-vpc", "status"]);
            panic!(
                "{}: waited {limit:?}, but not: {what}: {last}\n{status:?}\n{}",
                self.name,
                self.logs()
            );
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.name, self.logs());
        }
        let _ = podman("rm", &["--force", "--volumes", "--time", "0", &self.full_name]);
    }
}

/// Panics when there is no image to be tested.
pub(crate) fn require_image() {
    let image = image();
    if let Err(why) = podman("image", &["inspect", "--format", "{{.Id}}", &image]) {
        panic!("there is no image {image} ({why}): run `make image` first");
    }
}

fn image() -> String {
    std::env::var("IMAGE").unwrap_or_else(|_| format!("localhost/dstack-vpc:{}", env!("CARGO_PKG_VERSION")))
}

/// What it prints, on either stream, when it ends well.
fn podman(command: &str, words: &[&str]) -> Result<String, String> {
    let mut podman = Command::new("podman");
    // runc gets along with every arrangement of control groups.
    podman.args(["--runtime", "runc", command]).args(words);
    // The test asks for it; there need not be a systemd that does.
    podman.env("DISABLE_HC_SYSTEMD", "true").stdin(Stdio::null());
    let Output {
        status,
        stdout,
        stderr,
    } = podman
        .output()
        .map_err(|e| format!("podman: {e}; run `make image-test`"))?;
    let said = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).trim_end().to_owned());
    match status.success() {
        true => Ok(said
            .into_iter()
            .filter(|text| !text.is_empty())
            .collect::<Vec<_>>()
            .join("\n")),
        false => Err(format!(
            "podman {command} {}: {}",
            words.join(" "),
            said.join(" ")
        )),
    }
}
