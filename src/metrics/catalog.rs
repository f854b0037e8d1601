//! Every metric: what its name is, what it counts, and what its labels say. The exposition and the reference page are
//! made from this.

use std::fmt::Write as _;

use prometheus_client::metrics::MetricType;

/// One family of series.
pub(super) struct Metric {
    /// Without the `_total` that the format gives a counter.
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) help: &'static str,
    pub(super) labels: &'static [Label],
}

pub(super) struct Label {
    pub(super) name: &'static str,
    /// What it can be.
    values: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl From<Kind> for MetricType {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Counter => Self::Counter,
            Kind::Gauge => Self::Gauge,
            Kind::Histogram => Self::Histogram,
        }
    }
}

/// Declares the metrics of one part, and the list of them.
macro_rules! metrics {
    ($list:ident: $($name:ident $kind:ident $metric:literal $([$($label:literal: $values:literal),+])?, $help:literal;)+) => {
        $(
            pub(super) const $name: Metric = Metric {
                name: $metric,
                kind: Kind::$kind,
                help: $help,
                labels: &[$($(Label { name: $label, values: $values }),+)?],
            };
        )+
        const $list: &[Metric] = &[$($name),+];
    };
}

metrics! { OUTBOUND:
    REQUESTS Counter "dstack_vpc_mesh_requests"
        ["target": "an app id; `agent`; `backend` for what the built-in front passes on; `self` for what the proxy answers alone; `other` beyond 256 apps at a time",
         "outcome": "`2xx` and the like, or the code of the failure (docs/errors.md); `client_gone` when nobody waited"],
        "Requests to the outbound proxy, or through the built-in front, that were answered or given up";
    LATENCY Histogram "dstack_vpc_mesh_request_duration_seconds"
        ["to": "`peer`, `agent`, `backend`"],
        "From the head of a request to the head of the response, where one came from the far end";
    SENT Counter "dstack_vpc_mesh_sent_bytes"
        ["target": "as above"],
        "Bytes of HTTP written to the far end, before encryption";
    RECEIVED Counter "dstack_vpc_mesh_received_bytes"
        ["target": "as above"],
        "Bytes of HTTP read from the far end, after decryption";
    HANDSHAKES Counter "dstack_vpc_mesh_handshakes"
        ["outcome": "`full`, `resumed`, or the code of the failure; `client_gone` when nobody waited"],
        "Connections to peers that were made, or why not";
    HANDSHAKE_TIME Histogram "dstack_vpc_mesh_handshake_duration_seconds" ,
        "How long connecting to a peer took, with DNS, TCP and TLS, however it ended";
    POOL Gauge "dstack_vpc_mesh_pool_connections"
        ["to": "`peer`, `agent`, `backend`", "state": "`active`, `idle`"],
        "Open connections to far ends";
    POOL_TARGETS Gauge "dstack_vpc_mesh_pool_targets" ,
        "Targets in the pools; each worker thread has its own pool";
    CLIENTS Gauge "dstack_vpc_mesh_client_connections"
        ["listener": "`mesh.client_listen`, `mesh.auth_listen`; of the built-in front `mesh.http_listen`, `mesh.https_listen`; of TCP `backends.listen`, `forwards.listen`"],
        "Open connections to the daemon";
}

metrics! { INBOUND:
    DECISIONS Counter "dstack_vpc_auth_decisions"
        ["backend": "its name; `_none` where no backend has that Host, `_unknown` for names that are not in vpc.toml",
         "outcome": "`allowed`, or why not: `no_certificate`, `untrusted_chain`, `bad_certificate`, `expired`, `not_allowed`, …"],
        "What was decided about callers, for nginx or by the built-in front";
    API_REQUESTS Counter "dstack_vpc_api_requests"
        ["route": "the pattern of the path; `other` for paths that are not there", "status": "the HTTP status"],
        "Requests to the VPC API (servers)";
    NODES Gauge "dstack_vpc_registry_nodes"
        ["state": "`present`; `silent`: not heard of for too long, so not discovered"],
        "Nodes in the registry (servers)";
    VPN_PEERS Gauge "dstack_vpc_vpn_peers"
        ["path": "`direct`, `relayed`, `idle`: no packets lately", "online": "`true`, `false`"],
        "Other machines in the VPN, when they were last looked at (nodes)";
}

metrics! { STREAMS:
    SESSIONS Counter "dstack_vpc_tcp_sessions"
        ["kind": "`backend`, `forward`", "name": "its name",
         "outcome": "`ended`, `broke_off`, `idle`, `cut` by the end of the daemon; or why there was none: the causes of refusals and failures above"],
        "Sessions of TCP backends and forwards that ended or were refused";
    OPEN_SESSIONS Gauge "dstack_vpc_tcp_open_sessions"
        ["kind": "as above", "name": "as above"],
        "Sessions of TCP backends and forwards that are open";
    SESSION_BYTES Counter "dstack_vpc_tcp_bytes"
        ["kind": "as above", "name": "as above", "direction": "`received` from whoever connected, `sent` to it"],
        "Bytes of TCP backends and forwards, before encryption";
}

metrics! { RECONCILE:
    GENERATION Gauge "dstack_vpc_generation" ,
        "The generation that serves; 0 before there is one";
    CONDITION Gauge "dstack_vpc_condition"
        ["type": "`Ready`, `Configured`, `IdentityValid`, `ServicesHealthy`, `VpnJoined`, `ApiServing`, `Degraded`"],
        "1 where the condition holds, as dstack-vpc status shows it";
    SERVICE_UP Gauge "dstack_vpc_service_up"
        ["service": "the program, as supervisord calls it"],
        "1 while the program runs";
    OWED Gauge "dstack_vpc_reconcile_owed" ,
        "1 while actions were begun that are not proven yet";
    RECONCILES Counter "dstack_vpc_reconciles" ,
        "Looks at the wish and at the machine";
    RECONCILE_TIME Histogram "dstack_vpc_reconcile_duration_seconds" ,
        "How long they took, with all that was done";
    CHANGES Counter "dstack_vpc_reconcile_changes"
        ["outcome": "`applied`; `refused`: nothing was touched; `rolled_back`; `failed`: not rolled back either, something is owed"],
        "What became of changes";
    DECIDED Counter "dstack_vpc_rollout_decisions"
        ["decision": "`confirmed`; `not_confirmed`: taken back because nobody confirmed it in time; `gone_back`: by dstack-vpc rollback"],
        "What was decided over vpc.toml";
    HELD Gauge "dstack_vpc_rollout_held" ,
        "1 while an earlier generation is held instead of vpc.toml";
    UNCONFIRMED Gauge "dstack_vpc_rollout_unconfirmed" ,
        "1 while what serves waits to be confirmed";
    CONFIG Gauge "dstack_vpc_config_generation" ,
        "Versions of vpc.toml and its templates since the daemon started, the last reconciled one included";
    DRIFT Counter "dstack_vpc_reconcile_drift_repaired"
        ["kind": "`edited`, `deleted`, `link`, `mode`, `added`: a rendered file; `current`: the link to them; `program`: one that ended by itself"],
        "What was other than it had been left, and was put right";
    STARTED Counter "dstack_vpc_reconcile_programs_started" ,
        "Programs that did not run and were started";
    SUCCESS Gauge "dstack_vpc_reconcile_last_success_timestamp_seconds" ,
        "When the machine was last found or made to be as vpc.toml says, and proven; 0 before that";
    NOT_AFTER Gauge "dstack_vpc_certificate_not_after_timestamp_seconds" ,
        "When the certificate ends";
    CERTIFICATES Counter "dstack_vpc_certificate_requests"
        ["outcome": "`obtained`, `failed`"],
        "Certificates asked of the guest agent";
}

metrics! { PROCESS:
    BUILD Gauge "dstack_vpc_build_info"
        ["version": "the version"],
        "1";
    LOG_DROPPED Counter "dstack_vpc_log_dropped_lines"
        ["log": "`daemon`; `access`: requests, where mesh.access_log is on"],
        "Lines that were dropped because nobody read standard error fast enough";
    CPU Counter "process_cpu_seconds" ,
        "User and system time of the daemon";
    RSS Gauge "process_resident_memory_bytes" ,
        "Resident memory of the daemon";
    VIRTUAL Gauge "process_virtual_memory_bytes" ,
        "Virtual memory of the daemon";
    FDS Gauge "process_open_fds" ,
        "Open file descriptors of the daemon";
    MAX_FDS Gauge "process_max_fds" ,
        "How many it may open";
    THREADS Gauge "process_threads" ,
        "Threads of the daemon";
    START Gauge "process_start_time_seconds" ,
        "When the daemon started";
}

const SECTIONS: &[(&str, &[Metric])] = &[
    ("Calls to other apps", OUTBOUND),
    ("Calls from other apps, and the VPN", INBOUND),
    ("TCP backends and forwards", STREAMS),
    ("Keeping the machine", RECONCILE),
    ("The daemon", PROCESS),
];

impl Metric {
    /// As it stands in front of a sample, and as queries name it (a histogram without its suffixes).
    pub(super) fn sample_name(&self) -> String {
        match self.kind {
            Kind::Counter => format!("{}_total", self.name),
            Kind::Gauge | Kind::Histogram => self.name.to_owned(),
        }
    }

    /// As its name says it.
    fn unit(&self) -> &'static str {
        let units = ["seconds", "bytes"];
        units
            .into_iter()
            .find(|unit| self.name.ends_with(unit))
            .unwrap_or("")
    }
}

/// Whether a family of that name is a counter.
pub(super) fn is_counter(name: &str) -> bool {
    let mut all = SECTIONS.iter().flat_map(|(_, metrics)| *metrics);
    all.any(|metric| metric.name == name && metric.kind == Kind::Counter)
}

const INTRODUCTION: &str = "\
<!-- Made from src/metrics/catalog.rs by `UPDATE_GOLDEN=1 cargo test --test spec_generated`. Do not edit. -->

# Metrics

Off by default. With

```toml
[metrics]
listen = \"127.0.0.1:9100\"
```

or `VPC__METRICS__LISTEN=127.0.0.1:9100`, `GET /metrics` at that address answers with what is below, in the text format of
Prometheus, or in that of OpenMetrics to those who ask for it. The address can be changed, and the listener closed, while
everything runs. Nobody is asked who they are: whoever reaches the address sees which apps are called. To let a Prometheus
in another app read it, publish it in the mesh:

```toml
[[backends]]
name = \"metrics\"
server_name = \"metrics\"
upstream = \"127.0.0.1:9100\"
allowed_apps = [\"5e44e40000000000000000000000000000000002\"]
```

Counters begin at 0 with the daemon. Apps that nobody has called for longer than `mesh.idle_timeout` can lose their series when more than 256 are
called; they begin at 0 when they come back.
";

/// `docs/metrics.md`
pub fn reference() -> String {
    let mut out = INTRODUCTION.to_owned();
    for (title, metrics) in SECTIONS {
        let _ = writeln!(
            out,
            "\n## {title}\n\n| metric | type | unit | counts | labels |\n|---|---|---|---|---|"
        );
        for metric in *metrics {
            let kind = match metric.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram => "histogram",
            };
            let labels = metric.labels.iter();
            let labels: Vec<_> = labels
                .map(|label| format!("`{}`: {}", label.name, label.values))
                .collect();
            let (name, help, labels) = (metric.sample_name(), metric.help, labels.join("; "));
            let unit = metric.unit();
            let _ = writeln!(out, "| `{name}` | {kind} | {unit} | {help}. | {labels} |");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_texts_are_as_prometheus_wants_them() {
        let mut names = std::collections::BTreeSet::new();
        for metric in SECTIONS.iter().flat_map(|(_, metrics)| *metrics) {
            let name = metric.name;
            assert!(names.insert(name), "{name} is there twice");
            assert!(
                name.starts_with("dstack_vpc_") || name.starts_with("process_"),
                "{name}"
            );
            assert!(!name.ends_with("_total") && !name.ends_with("_count"), "{name}");
            // Neither format would need them quoted.
            assert!(
                !metric.help.contains(['"', '\\', '\n']) && !metric.help.ends_with('.'),
                "{name}"
            );
            assert_eq!(is_counter(name), metric.kind == Kind::Counter, "{name}");
        }
    }
}
