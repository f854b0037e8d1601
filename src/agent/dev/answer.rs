//! The methods: what a guest agent answers.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::{Value, json};

use super::faults::Faults;
use super::pki::{LeafRequest, Pki};
use super::server::Machine;
use crate::names::AppId;

/// 9999-12-31: the last second that X.509 can write.
const LAST_SECOND: u64 = 253_402_300_799;

/// A refusal is a sentence for `{"error": …}`.
pub(super) type Answer = Result<Value, String>;

/// `method` as the last part of the path has it; `/prpc/DstackGuest.Info` is `Info`, too.
pub(super) fn answer(
    method: &str,
    arguments: Value,
    machine: &Machine,
    pki: &Pki,
    faults: &Faults,
) -> Answer {
    match method {
        "Info" => info(machine, pki),
        "GetTlsKey" => get_tls_key(arguments, machine, pki, faults),
        "Version" if !faults.old => Ok(json!({"version": env!("CARGO_PKG_VERSION"), "rev": "dev-agent"})),
        _ => Err(format!("Service not found: {method}")),
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct GetTlsKey {
    subject: String,
    alt_names: Vec<String>,
    usage_server_auth: bool,
    usage_client_auth: bool,
    not_before: Option<u64>,
    not_after: Option<u64>,
    with_app_info: Option<bool>,
}

fn get_tls_key(arguments: Value, machine: &Machine, pki: &Pki, faults: &Faults) -> Answer {
    let asked: GetTlsKey = serde_json::from_value(arguments).map_err(|e| format!("Invalid request: {e}"))?;
    if faults.kms_down {
        return Err("Failed to sign the certificate: request to the KMS timed out".to_owned());
    }
    let time = |seconds: Option<u64>| match seconds {
        Some(seconds) if seconds > LAST_SECOND => Err(format!("Invalid time: {seconds}")),
        Some(seconds) if !faults.old => Ok(Some(UNIX_EPOCH + Duration::from_secs(seconds))),
        _ => Ok(None),
    };
    let lifetime = Some(faults.lifetime_s).filter(|seconds| *seconds > 0);
    let request = LeafRequest {
        subject: asked.subject,
        alt_names: asked.alt_names,
        server_auth: asked.usage_server_auth,
        client_auth: asked.usage_client_auth,
        not_before: time(asked.not_before)?,
        not_after: match lifetime {
            Some(seconds) => Some(SystemTime::now() + Duration::from_secs(seconds.min(LAST_SECOND / 100))),
            None => time(asked.not_after)?,
        },
        app_info: machine.instance_id.filter(|_| asked.with_app_info == Some(true)),
        ..LeafRequest::default()
    };
    let issued = match (faults.no_kms, faults.wrong_app) {
        (true, _) => Pki::issue_without_kms(&request),
        (_, true) => pki.issue(&AppId::from_bytes([0xee; 20]), &request),
        _ => pki.issue(&machine.app_id, &request),
    };
    let mut issued = issued.map_err(|e| e.to_string())?;
    if faults.broken_chain && issued.chain_pems.len() == 3 {
        issued.chain_pems.remove(1);
    }
    Ok(json!({"key": issued.key_pem, "certificate_chain": issued.chain_pems}))
}

/// The fields of a real answer. What only hardware can tell is zero.
fn info(machine: &Machine, pki: &Pki) -> Answer {
    let app_cert = pki
        .issue(&machine.app_id, &LeafRequest::both())
        .map_err(|e| e.to_string())?;
    let zeros = "0".repeat(64);
    Ok(json!({
        "app_id": machine.app_id.to_string(),
        "instance_id": machine.instance_id.map(|id| id.to_string()).unwrap_or_default(),
        "app_cert": app_cert.chain_pems.concat(),
        "tcb_info": json!({"mrtd": zeros, "event_log": []}).to_string(),
        "app_name": "dev-agent: nothing is attested",
        "device_id": zeros,
        "mr_aggregated": zeros,
        "os_image_hash": zeros,
        "key_provider_info": json!({"name": "dev-agent", "id": ""}).to_string(),
        "compose_hash": zeros,
        "vm_config": "{}",
    }))
}
