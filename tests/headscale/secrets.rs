//! Keys are seen by those who are to have them, and by nobody else.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use dstack_vpc::headscale::Headscale;

use super::WANTED;
use super::common::process;
use super::place::Place;

#[tokio::test]
async fn keys_are_in_no_log_no_argument_and_no_variable() {
    let log = Log::install();
    let (place, watch) = (Place::running().await, Watch::start());
    let mut secrets = Vec::new();
    for _ in 0..3 {
        let headscale = Headscale::start(Some(place.access()));
        let made = headscale.join_key(&WANTED).await.unwrap();
        secrets.push(made.secret.expose().to_owned());
        secrets.push(place.key());
        log.add(&format!("{made:?} {:?}", headscale.nodes().await));
        headscale.close().await;
        std::fs::remove_file(place.access().key_file).unwrap();
    }
    let seen = watch.stop();
    assert!(
        seen.contains("apikeys\0create"),
        "the command line was caught at work"
    );
    let logged = log.text();
    assert!(logged.contains("a new API key for Headscale"), "{logged}");
    for secret in &secrets {
        // What a key is listed by is no secret.
        let secret = &secret[secret.len() - 32..];
        for (place, text) in [
            ("log", &logged),
            ("Headscale's log", &place.log()),
            ("/proc", &seen),
        ] {
            assert!(!text.contains(secret), "{secret} stands in the {place}");
        }
    }
}

/// Everything that is logged in this process, of all levels.
#[derive(Clone)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn install() -> Self {
        let log = Self(Arc::default());
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::set_global_default(subscriber).expect("the first subscriber");
        log
    }

    fn add(&self, text: &str) {
        self.0.lock().expect("the log").extend(text.as_bytes());
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("the log")).into_owned()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("the log").extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Reads the arguments and the environment of every process again and again.
struct Watch {
    end: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<String>,
}

impl Watch {
    fn start() -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let until = end.clone();
        let thread = std::thread::spawn(move || {
            let mut seen = std::collections::BTreeSet::new();
            while !until.load(Ordering::Relaxed) {
                for process in process::all() {
                    for file in ["cmdline", "environ"] {
                        let text = std::fs::read(format!("/proc/{}/{file}", process.pid));
                        seen.insert(String::from_utf8_lossy(&text.unwrap_or_default()).into_owned());
                    }
                }
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            seen.into_iter().collect()
        });
        Self { end, thread }
    }

    fn stop(self) -> String {
        self.end.store(true, Ordering::Relaxed);
        self.thread.join().expect("the watch")
    }
}
