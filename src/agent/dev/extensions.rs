//! The certificate extensions of dstack, byte for byte as its KMS writes them.

use rcgen::CustomExtension;

use crate::names::{AppId, InstanceId};

/// `1.3.6.1.4.1.62397.1.<last>`: the arc of dstack's certificate extensions.
const fn oid(last: u64) -> [u64; 9] {
    [1, 3, 6, 1, 4, 1, 62397, 1, last]
}
/// App id: 20 raw bytes in a DER OCTET STRING.
pub const OID_APP_ID: [u64; 9] = oid(3);
/// Usage: UTF-8 in a DER OCTET STRING.
pub const OID_USAGE: [u64; 9] = oid(4);
/// AppInfo: a msgpack array in a DER OCTET STRING.
pub const OID_APP_INFO: [u64; 9] = oid(9);

/// The `.3` extension as a KMS writes it.
pub fn app_id_extension(app: &AppId) -> CustomExtension {
    CustomExtension::from_oid_content(&OID_APP_ID, octet_string(app.as_bytes()))
}

/// The `.4` extension as a KMS writes it, e.g. `app:custom`.
pub fn usage_extension(usage: &str) -> CustomExtension {
    CustomExtension::from_oid_content(&OID_USAGE, octet_string(usage.as_bytes()))
}

/// The `.9` extension: what is unknown here is zero or empty, in the order of the platform's `AppInfo`.
pub(super) fn app_info_extension(app: &AppId, instance: &InstanceId) -> CustomExtension {
    let instance = hex::decode(instance.to_string()).unwrap_or_default();
    let zeros = [0; 32];
    // app_id, compose_hash, instance_id, device_id, mr_system, mr_aggregated, os_image_hash, key_provider_info
    let fields: [&[u8]; 8] = [
        app.as_bytes(),
        &zeros,
        &instance,
        &zeros,
        &zeros,
        &zeros,
        &zeros,
        b"",
    ];
    let mut msgpack = vec![0x90 | fields.len() as u8];
    for field in fields {
        msgpack.extend_from_slice(&[0xc4, field.len() as u8]);
        msgpack.extend_from_slice(field);
    }
    CustomExtension::from_oid_content(&OID_APP_INFO, octet_string(&msgpack))
}

/// DER OCTET STRING around `bytes`, of which there are fewer than 65536.
fn octet_string(bytes: &[u8]) -> Vec<u8> {
    let mut der = vec![0x04];
    match bytes.len() {
        n @ 0..=0x7f => der.push(n as u8),
        n @ 0x80..=0xff => der.extend_from_slice(&[0x81, n as u8]),
        n => der.extend_from_slice(&[0x82, (n >> 8) as u8, n as u8]),
    }
    der.extend_from_slice(bytes);
    der
}
