//! What the host, a gateway and the publisher of relays say, and what was remembered of it.

use hyper::StatusCode;
use serde_json::{Value, json};
use url::Url;

use super::host_shared::{self, SysConfigError};
use super::{DerpMap, Facts, gateway, remember};
use crate::names::Host;
use crate::spec::Gateway;

/// `data` is `.sys-config.json`. What comes out is few URLs of web servers, or words with nothing of the file in them.
pub fn sys_config(data: &[u8]) {
    let gateways = match host_shared::parse("/F".into(), data) {
        Ok(config) => config.gateways,
        Err(error) => {
            let words = match error {
                SysConfigError::NotJson { line, column, .. } => {
                    assert!(line <= data.len() + 1 && column <= data.len() + 1);
                    return;
                }
                SysConfigError::NoGateway { .. } => error.to_string(),
                other => panic!("{other}"),
            };
            return assert!(words.starts_with("/F: ") && words.len() < 250, "{words}");
        }
    };
    assert!((1..=16).contains(&gateways.len()));
    for (at, url) in gateways.iter().enumerate() {
        assert!(
            matches!(url.scheme(), "http" | "https") && url.host_str().is_some_and(|host| !host.is_empty())
        );
        assert!(!gateways[..at].contains(url));
    }
    let texts: Vec<&str> = gateways.iter().map(Url::as_str).collect();
    for name in ["gateway_urls", "tproxy_urls"] {
        let again = json!({ name: texts }).to_string();
        assert_eq!(
            host_shared::parse("/F".into(), again.as_bytes())
                .unwrap()
                .gateways,
            gateways
        );
    }
}

/// `data` is the answer to `/prpc/Info`. What comes out is a domain and a port, or words with nothing of it in them.
pub(crate) fn gateway_answer(data: &[u8]) {
    let url = Url::parse("https://gateway.example.org:9202").unwrap();
    match gateway::told(&url, StatusCode::OK, data) {
        Err(error) => assert!(error.to_string().len() < 250, "{error}"),
        Ok(told) => {
            let Gateway::Domain { domain, port } = &told else {
                panic!("{told:?}");
            };
            assert_eq!(told.to_string().parse(), Ok(told.clone()));
            if let Some(said) = object(data) {
                assert_eq!(said["external_port"], *port);
                let text = said["base_domain"].as_str().unwrap();
                assert_eq!(text.trim_end_matches('.').to_ascii_lowercase(), domain.as_str());
            }
        }
    }
    assert!(gateway::told(&url, StatusCode::BAD_GATEWAY, data).is_err());
}

/// `data` is the public map of relays. What Headscale is given has the same relays, and nothing but plain text.
pub(crate) fn derp_map(data: &[u8]) {
    let Ok(map) = DerpMap::parse(data) else {
        return;
    };
    let yaml = map.to_yaml();
    assert!(
        yaml.bytes().all(|byte| matches!(byte, b'\n' | b' '..=b'~')),
        "{yaml}"
    );
    let read: Value = serde_saphyr::from_str(&yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
    let regions = read["regions"].as_object().unwrap();
    assert_eq!(regions.len(), map.regions());
    let Some(said) = object(data) else {
        return;
    };
    for (id, region) in regions {
        assert!(id != "999" && region["regionid"] == id.parse::<u16>().unwrap());
        let same = |ours: &Value, theirs: &Value, names: &[[&str; 2]]| {
            for [our, their] in names {
                let missing = [json!(""), json!(0), json!(false)];
                assert!(
                    ours[our] == theirs[their] || theirs[their].is_null() && missing.contains(&ours[our]),
                    "{our}: {yaml}"
                );
            }
        };
        let theirs = &said["Regions"][id];
        same(
            region,
            theirs,
            &[
                ["regioncode", "RegionCode"],
                ["regionname", "RegionName"],
                ["avoid", "Avoid"],
            ],
        );
        let (ours, theirs) = (
            region["nodes"].as_array().unwrap(),
            theirs["Nodes"].as_array().unwrap(),
        );
        assert!(!ours.is_empty() && ours.len() == theirs.len());
        for (ours, theirs) in ours.iter().zip(theirs) {
            same(
                ours,
                theirs,
                &[
                    ["name", "Name"],
                    ["hostname", "HostName"],
                    ["certname", "CertName"],
                    ["ipv4", "IPv4"],
                    ["ipv6", "IPv6"],
                    ["stunport", "STUNPort"],
                    ["derpport", "DERPPort"],
                ],
            );
            assert!(ours["hostname"].as_str().unwrap().parse::<Host>().is_ok());
        }
    }
}

/// The fields by their names: what is there may hold what is not text where nobody looks, and fields may stand in a
/// list, in the order of the type.
pub(crate) fn object(data: &[u8]) -> Option<Value> {
    fn named(value: &Value) -> bool {
        match value {
            Value::Array(all) => all.iter().all(|it| !it.is_array() && named(it)),
            Value::Object(all) => all.values().all(named),
            _ => true,
        }
    }
    let value = serde_json::from_slice(data).ok().filter(Value::is_object)?;
    named(&value).then_some(value)
}

/// `data` is `run/facts.json`. What is remembered is written down as it was read.
pub(crate) fn memory(data: &[u8]) {
    let (mut facts, mut again) = (Facts::default(), Facts::default());
    remember::recall_from(data, &mut facts);
    let written = remember::memory_of(&facts).unwrap();
    remember::recall_from(&written, &mut again);
    assert_eq!(remember::memory_of(&again).unwrap(), written);
}
