//! What holds for whatever bytes come in: one function for each door that strangers' bytes come through.
//!
//! libFuzzer looks for bytes that break one of them (`make fuzz`). Where it begins, and every input that broke
//! something once, lies in `fuzz/seeds/<function>/`, and `cargo test` goes through all of it. Each function lies beside
//! what it is about, where it sees what is private; an ordinary build knows nothing of them.

use crate::{agent, apply, facts, headscale, node, ratls, registry};

pub use crate::api::fuzz::api_parameters;
pub use crate::desired::fuzz::configuration;
pub use crate::facts::fuzz::sys_config;
pub use crate::mesh::fuzz::{auth_header, target_headers};
pub use crate::plan::fuzz::plan_diff;
pub use ratls::fuzz::certificate_chain;

/// What the guest agent, a gateway and the publisher of relays answer.
pub fn platform_answers(data: &[u8]) {
    agent::fuzz::agent_answers(data);
    facts::fuzz::gateway_answer(data);
    facts::fuzz::derp_map(data);
}

/// What Headscale, tailscaled and a VPC server answer.
pub fn vpn_answers(data: &[u8]) {
    headscale::fuzz::headscale_answers(data);
    node::fuzz::tailscale_answers(data);
    node::fuzz::welcome(data);
}

/// What a former life left in the state directory, whole or not.
pub fn state_files(data: &[u8]) {
    apply::fuzz::journal(data);
    facts::fuzz::memory(data);
    node::fuzz::membership(data);
    registry::fuzz::record(data);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::time::{Duration, Instant};

    type Target = fn(&[u8]);

    const TARGETS: [(&str, Target); 10] = [
        ("api_parameters", api_parameters),
        ("auth_header", auth_header),
        ("certificate_chain", certificate_chain),
        ("configuration", configuration),
        ("plan_diff", plan_diff),
        ("platform_answers", platform_answers),
        ("state_files", state_files),
        ("sys_config", sys_config),
        ("target_headers", target_headers),
        ("vpn_answers", vpn_answers),
    ];

    fn names(folder: &str) -> BTreeSet<String> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(folder);
        let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        entries
            .map(|entry| {
                entry
                    .unwrap()
                    .path()
                    .file_stem()
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned()
            })
            .collect()
    }

    fn seeds(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fuzz/seeds")
            .join(target);
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries
            .map(|path| (path.clone(), fs::read(path).unwrap()))
            .collect()
    }

    #[test]
    fn every_target_has_a_program_and_seeds() {
        let known: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(names("fuzz_targets"), known);
        assert_eq!(names("seeds"), known);
        let manifest = include_str!("../fuzz/Cargo.toml");
        for name in &known {
            assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
            assert!(!seeds(name).is_empty(), "{name}");
        }
    }

    /// A failure names the file last shown.
    #[test]
    fn every_seed_and_everything_found_holds() {
        for (name, run) in TARGETS {
            for (path, seed) in seeds(name) {
                println!("{}", path.display());
                run(&seed);
                // Nor does it matter where it breaks off.
                run(&seed[..seed.len() / 2]);
            }
        }
    }

    #[test]
    fn long_inputs_take_no_longer_than_they_are() {
        for (name, run) in TARGETS {
            for (path, seed) in seeds(name) {
                let long: Vec<u8> = seed.iter().copied().cycle().take(256 << 10).collect();
                let begun = Instant::now();
                run(&long);
                let took = begun.elapsed();
                println!("{took:?} {}", path.display());
                // Unoptimised and on a busy machine; what grows with the square takes minutes.
                assert!(took < Duration::from_secs(20), "{took:?}");
            }
        }
    }
}
