//! The public map of relays, checked before it is used: it comes from elsewhere, and Headscale does not start on a
//! broken one.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Deserializer, Serialize};

use crate::names::Host;

/// Headscale's embedded relay: it keeps its number.
const OWN_REGION: u16 = 999;

/// The public map has some 30 regions.
const MAX_REGIONS: usize = 1000;

/// Relays by region; there is at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DerpMap(BTreeMap<u16, Region>);

/// Names as in Tailscale's JSON when read, as in Headscale's YAML when written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Region {
    #[serde(rename(deserialize = "RegionID", serialize = "regionid"))]
    id: u16,
    #[serde(rename(deserialize = "RegionCode", serialize = "regioncode"))]
    code: String,
    #[serde(rename(deserialize = "RegionName", serialize = "regionname"))]
    name: String,
    #[serde(default, rename(deserialize = "Avoid", serialize = "avoid"))]
    avoid: bool,
    #[serde(
        rename(deserialize = "Nodes", serialize = "nodes"),
        deserialize_with = "or_none"
    )]
    relays: Vec<Relay>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Relay {
    #[serde(rename(deserialize = "Name", serialize = "name"))]
    name: String,
    #[serde(rename(deserialize = "RegionID", serialize = "regionid"))]
    region: u16,
    #[serde(rename(deserialize = "HostName", serialize = "hostname"))]
    host: String,
    #[serde(default, rename(deserialize = "CertName", serialize = "certname"))]
    certificate: String,
    /// Empty, `none`, or an address.
    #[serde(default, rename(deserialize = "IPv4", serialize = "ipv4"))]
    ipv4: String,
    #[serde(default, rename(deserialize = "IPv6", serialize = "ipv6"))]
    ipv6: String,
    /// 0 is the usual one, -1 none.
    #[serde(default, rename(deserialize = "STUNPort", serialize = "stunport"))]
    stun_port: i32,
    #[serde(default, rename(deserialize = "STUNOnly", serialize = "stunonly"))]
    stun_only: bool,
    #[serde(default, rename(deserialize = "DERPPort", serialize = "derpport"))]
    port: u16,
    #[serde(default, rename(deserialize = "CanPort80", serialize = "canport80"))]
    can_port_80: bool,
}

impl DerpMap {
    /// Reads the JSON that Tailscale's control server gives.
    ///
    /// # Errors
    /// In words what is wrong with it.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Map {
            #[serde(rename = "Regions")]
            regions: BTreeMap<u16, Option<Region>>,
        }
        let map: Map = serde_json::from_slice(json).map_err(|e| e.to_string())?;
        let mut regions = BTreeMap::new();
        for (id, region) in map.regions {
            if let Some(region) = region
                && id != OWN_REGION
                && !region.relays.is_empty()
            {
                check(id, &region).map_err(|why| format!("region {id}: {why}"))?;
                regions.insert(id, region);
            }
        }
        match regions.len() {
            0 => Err("there is no relay in it".to_owned()),
            1..=MAX_REGIONS => Ok(Self(regions)),
            many => Err(format!("it has {many} regions")),
        }
    }

    /// How many regions there are.
    pub fn regions(&self) -> usize {
        self.0.len()
    }

    /// As Headscale's `derp.paths` takes it. The same map gives the same bytes.
    pub fn to_yaml(&self) -> String {
        let mut yaml = "# The public relays, fetched by dstack-vpc.\nregions:\n".to_owned();
        for (id, region) in &self.0 {
            // JSON is YAML, but for the keys: these have to be numbers.
            let json = serde_json::to_string(region).unwrap_or_default();
            let _ = writeln!(yaml, "  {id}: {json}");
        }
        yaml
    }
}

/// Go writes an empty list as `null`.
fn or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Relay>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn check(id: u16, region: &Region) -> Result<(), String> {
    let is_plain = |text: &String| text.len() <= 200 && text.bytes().all(|b| (b' '..=b'~').contains(&b));
    let is_ip = |text: &String| text.is_empty() || text == "none" || text.parse::<std::net::IpAddr>().is_ok();
    if id == 0 || region.id != id {
        return Err(format!("it calls itself {}", region.id));
    }
    if ![&region.code, &region.name].into_iter().all(is_plain) {
        return Err("its name is none".to_owned());
    }
    for relay in &region.relays {
        let problem = match relay {
            relay if !is_plain(&relay.name) || !is_plain(&relay.certificate) => "its name is none",
            relay if relay.region != id => "it belongs to another region",
            relay if relay.host.parse::<Host>().is_err() => "its host is no host",
            relay if !is_ip(&relay.ipv4) || !is_ip(&relay.ipv6) => "its address is none",
            relay if !(-1..=65535).contains(&relay.stun_port) => "its STUN port is none",
            _ => continue,
        };
        return Err(format!("relay {:?}: {problem}", relay.name));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: &str = r#"{"Regions": {
        "1": {"RegionID": 1, "RegionCode": "nyc", "RegionName": "New York City", "Latitude": 40.7, "Nodes": [
            {"Name": "1f", "RegionID": 1, "HostName": "derp1f.example.com", "IPv4": "192.0.2.1", "IPv6": "2001:db8::1", "CanPort80": true}]},
        "2": null,
        "3": {"RegionID": 3, "RegionCode": "empty", "RegionName": "Empty", "Nodes": null},
        "999": {"RegionID": 999, "RegionCode": "x", "RegionName": "ours", "Nodes": [{"Name": "x", "RegionID": 999, "HostName": "x"}]}
    }, "OmitDefaultRegions": false}"#;

    #[test]
    fn a_map_becomes_yaml_with_numbers_for_keys() {
        let map = DerpMap::parse(MAP.as_bytes()).unwrap();
        assert_eq!(
            map.to_yaml(),
            "# The public relays, fetched by dstack-vpc.\nregions:\n  1: {\"regionid\":1,\"regioncode\":\"nyc\",\
             \"regionname\":\"New York City\",\"avoid\":false,\"nodes\":[{\"name\":\"1f\",\"regionid\":1,\
             \"hostname\":\"derp1f.example.com\",\"certname\":\"\",\"ipv4\":\"192.0.2.1\",\"ipv6\":\"2001:db8::1\",\
             \"stunport\":0,\"stunonly\":false,\"derpport\":0,\"canport80\":true}]}\n"
        );
    }

    #[test]
    fn a_map_that_is_wrong_is_refused() {
        let cases = [
            (
                MAP.replace(
                    "\"RegionID\": 1, \"RegionCode\"",
                    "\"RegionID\": 7, \"RegionCode\"",
                ),
                "region 1: it calls itself 7",
            ),
            (
                MAP.replace("derp1f.example.com", "derp1f example"),
                "its host is no host",
            ),
            (MAP.replace("192.0.2.1", "192.0.2.300"), "its address is none"),
            (MAP.replace("New York City", "New\\nYork"), "its name is none"),
            ("{\"Regions\": {}}".to_owned(), "there is no relay in it"),
            ("{\"Regions\": {\"x\": null}}".to_owned(), "line 1"),
            ("<html>".to_owned(), "line 1"),
        ];
        for (json, words) in cases {
            let error = DerpMap::parse(json.as_bytes()).unwrap_err();
            assert!(error.contains(words), "{json}: {error}");
        }
    }
}
