//! Programs that know nothing of HTTP, nor of certificates, talk to databases on another machine: through forwards there
//! and TCP backends here.

mod databases;

use std::time::Duration;

use dstack_vpc::reconcile::status::ConditionKind::{Configured, Ready};
use dstack_vpc::reconcile::status::Status;

use crate::common::gateway::LocalGateway;
use crate::common::machine::{EDIT, Machine, front, holds};
use crate::common::pair::Pair;
use crate::common::ports::Port;
use crate::common::{CLIENT_APP, OTHER_APP, SERVER_APP, poll, run};
use databases::{Database, Session};

/// One session with each database, open from the first step to the last.
struct Sessions {
    psql: Session,
    /// Its process in the server.
    backend: String,
    redis: Session,
    /// Of the two with redis: that of the commands, that of the subscription.
    ids: [String; 2],
    subscriber: Session,
    steps: usize,
}

impl Sessions {
    async fn open(postgres: &Port, redis: &Port) -> Self {
        let mut psql = Session::psql(postgres);
        // Of this session alone, and in a transaction that ends when all is over.
        let began =
            psql.ask("begin; create temp table steps (step int) on commit drop; select pg_backend_pid();");
        let backend = began.await.expect("postgres answers");
        let mut subscriber = Session::redis(redis, &["SUBSCRIBE", "steps"]);
        for words in ["subscribe", "steps", "1"] {
            assert_eq!(subscriber.hear().await.as_deref(), Some(words));
        }
        let mut redis = Session::redis(redis, &[]);
        let id = redis.ask("CLIENT ID").await.expect("redis answers");
        let subscription = subscription(&mut redis).await;
        Self {
            psql,
            backend,
            redis,
            ids: [id, subscription],
            subscriber,
            steps: 0,
        }
    }

    /// Each is the same as before, and works.
    async fn go_on(&mut self, after: &str) {
        self.steps += 1;
        let steps = self.steps.to_string();
        let insert = format!("insert into steps values ({steps});");
        let select = "select pg_backend_pid() || ' ' || count(*) from steps;";
        let rows = self.psql.ask(&(insert + select)).await;
        let expected = format!("{} {steps}", self.backend);
        assert_eq!(rows.as_deref(), Some(&*expected), "psql after {after}");

        let count = self.redis.ask("INCR steps").await;
        assert_eq!(count.as_deref(), Some(&*steps), "redis after {after}");
        let id = self.redis.ask("CLIENT ID").await;
        assert_eq!(id.as_deref(), Some(&*self.ids[0]), "redis after {after}");
        let heard = self.redis.ask(&format!("PUBLISH steps {steps}")).await;
        assert_eq!(heard.as_deref(), Some("1"), "the subscriber after {after}");
        for words in ["message", "steps", &steps] {
            assert_eq!(self.subscriber.hear().await.as_deref(), Some(words), "{after}");
        }
        assert_eq!(subscription(&mut self.redis).await, self.ids[1], "{after}");
    }

    async fn end(mut self) {
        let rows = self.psql.ask("select count(*) from steps; commit;").await;
        assert_eq!(rows, Some(self.steps.to_string()));
    }
}

/// The id of the one subscriber.
async fn subscription(redis: &mut Session) -> String {
    let client = redis.ask("CLIENT LIST TYPE pubsub").await.expect("redis answers");
    let id = client
        .split_whitespace()
        .find_map(|field| field.strip_prefix("id="));
    id.expect("an id").to_owned()
}

/// Whether a new session comes about.
async fn lets_in(postgres: &Port) -> bool {
    Session::psql(postgres).ask("select 1;").await.is_some()
}

async fn renew(machine: &Machine) {
    let folder = |status: &Status| status.identity.as_ref().map(|identity| identity.folder.clone());
    let before = folder(&machine.status().await.expect("the daemon answers"));
    machine.ask_for_renewal().await;
    let renewed = |status: &Status| folder(status) != before && !status.owed && holds(status, Ready);
    machine.until(EDIT, "the new certificate is live", renewed).await;
}

async fn edit(machine: &Machine, change: impl FnOnce(String) -> String) {
    let status = machine.edit(change).await;
    assert!(holds(&status, Configured), "{status:#?}\n{}", machine.logs());
}

#[test]
fn sessions_with_databases_go_on_through_renewals_and_edits() {
    run(async {
        let (postgres, redis, gateway) =
            tokio::join!(Database::postgres(), Database::redis(), LocalGateway::start());
        let databases = [("orders", &postgres), ("cache", &redis)];
        let (forwards, backends) = (
            [Port::reserve(), Port::reserve()],
            [Port::reserve(), Port::reserve()],
        );
        let listed = |app: &str| format!("allowed_apps = [\"{app}\"] # of orders and cache");
        let pair = Pair::start_with(|client, server| {
            let fixed = format!("fixed/{}", server.ports.https);
            client.toml = client.toml.replace(&fixed, &gateway.domain());
            for (number, (name, database)) in databases.iter().enumerate() {
                server.toml += &format!(
                    "\n[[backends]]\nname = \"{name}\"\nprotocol = \"tcp\"\nlisten = \"{}\"\nupstream = \"{}\"\n{}\n",
                    backends[number],
                    database.port,
                    listed(CLIENT_APP)
                );
                client.toml += &format!(
                    "\n[[forwards]]\nname = \"{name}\"\nlisten = \"{}\"\ntarget_app = \"{SERVER_APP}\"\ntarget_port = {}\n",
                    forwards[number],
                    backends[number].number()
                );
            }
        })
        .await;
        let [orders, cache] = &forwards;
        // The backends open with the first certificate.
        let open = poll(Duration::from_secs(30), async || {
            lets_in(orders).await.then_some(())
        });
        open.await.expect("a session");
        let mut sessions = Sessions::open(orders, cache).await;
        sessions.go_on("nothing").await;
        // They are its own: neither taken nor leading nowhere.
        let doctor = |machine: &Machine| machine.cli(&["doctor", "--verbose"]);
        let output = doctor(&pair.client);
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{said}");
        for (number, port) in forwards.iter().enumerate() {
            let served = format!("forwards[{number}].listen {port} is served by dstack-vpc");
            assert!(said.contains(&served), "{said}");
        }
        assert!(said.contains("the forward \"orders\""), "{said}");
        let said = String::from_utf8_lossy(&doctor(&pair.server).stdout).into_owned();
        let served = format!(".listen {} is served by dstack-vpc", backends[0]);
        assert!(said.contains(&served), "{said}");
        sessions.go_on("doctor looked").await;

        tokio::join!(renew(&pair.server), renew(&pair.client));
        sessions.go_on("two new certificates").await;
        assert!(lets_in(orders).await);

        let (ours, others) = (listed(CLIENT_APP), listed(OTHER_APP));
        edit(&pair.server, |toml| toml.replace(&ours, &others)).await;
        sessions.go_on("its app was struck off").await;
        assert!(!lets_in(orders).await, "refused from now on");
        edit(&pair.server, |toml| {
            let more = format!(
                "\n[[backends]]\nname = \"more\"\nserver_name = \"more.local\"\nupstream = \"{}\"\n",
                postgres.port
            );
            toml.replace(&others, &ours) + &more
        })
        .await;
        sessions.go_on("one more backend").await;
        assert!(lets_in(orders).await);

        let fronts = ["nginx", "builtin"].map(|front| format!("front = \"{front}\""));
        let [now, other] = match front() == "nginx" {
            true => [&fronts[0], &fronts[1]],
            false => [&fronts[1], &fronts[0]],
        };
        for (from, to) in [(now, other), (other, now)] {
            let change = |toml: String| toml.replace(from, to);
            tokio::join!(edit(&pair.server, change), edit(&pair.client, change));
            sessions.go_on("a change of front").await;
        }

        // The ports move at both ends.
        let (forward, backend) = (Port::reserve(), Port::reserve());
        let to = |from: &Port, to: &Port| (from.to_string(), to.to_string());
        let (there, here) = (to(&backends[0], &backend), to(orders, &forward));
        let ports = [&backends[0], &backend].map(|port| format!("target_port = {}", port.number()));
        let moved = |toml: String| toml.replace(&here.0, &here.1).replace(&ports[0], &ports[1]);
        tokio::join!(
            edit(&pair.server, |toml| toml.replace(&there.0, &there.1)),
            edit(&pair.client, moved)
        );
        sessions.go_on("its ports moved").await;
        assert!(lets_in(&forward).await, "{}", pair.client.logs());
        sessions.end().await;
    });
}
