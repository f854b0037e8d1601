//! The programs that this role needs: installed, and new enough.

use super::{Finding, Patient};
use crate::facts::{Fact, Installed, Version};
use crate::spec::Front;

/// What is rendered for Headscale needs this one; the next minor version after the last tested one is only told.
const HEADSCALE: (Version, Version) = (Version(0, 26, 0), Version(0, 30, 0));

/// Headscale 0.26 refuses older clients, and Headscale 0.29 those before the second (capability versions 88 and 113
/// in its hscontrol/capver).
const TAILSCALE: (Version, Version) = (Version(1, 62, 0), Version(1, 80, 0));

pub(super) fn findings(patient: &Patient<'_>) -> Vec<Finding> {
    let (role, programs) = (patient.spec.role, &patient.seen.facts.programs);
    let installed = |name, program: &_, key: &str, mend: &str| match patient.daemon_found(name) {
        true => Finding::ok(name, format!("the daemon has found {name}")),
        false => installed(name, program, key, mend),
    };
    let mut findings = vec![installed(
        "supervisord",
        &programs.supervisord,
        "supervisor.program",
        "apt-get install supervisor",
    )];
    if patient.spec.mesh.front == Front::Nginx {
        let mend = "apt-get install nginx-light, or do without it: mesh.front = \"builtin\"";
        findings.push(installed("nginx", &programs.nginx, "nginx.program", mend));
    }
    if role.server {
        let mend = "use the project's image, or: make setup";
        let mut finding = installed("headscale", &programs.headscale, "headscale.program", mend);
        if let Some(version) = version(&programs.headscale) {
            finding = headscale(version).unwrap_or(finding);
        }
        findings.push(finding);
    }
    if role.node {
        let mend = "use the project's image, or: make setup";
        let daemon = installed("tailscaled", &programs.tailscaled, "tailscale.program", mend);
        let old = version(&programs.tailscaled).and_then(tailscale);
        findings.push(old.unwrap_or(daemon));
        findings.push(installed(
            "tailscale",
            &programs.tailscale,
            "tailscale.client",
            mend,
        ));
        if let (Some(daemon), Some(client)) = (version(&programs.tailscaled), version(&programs.tailscale))
            && daemon != client
        {
            findings.push(
                Finding::warning(
                    "tailscale",
                    format!("tailscaled is {daemon}, and its command line is {client}"),
                )
                .why("Two versions understand each other for the most part only.")
                .mend("dstack-vpc explain   # shows the path of each; install both from one place"),
            );
        }
    }
    findings
}

fn version(program: &Option<Fact<Installed>>) -> Option<Version> {
    program.as_ref().map(|fact| fact.value.version)
}

fn installed(name: &'static str, program: &Option<Fact<Installed>>, key: &str, mend: &str) -> Finding {
    match program {
        Some(Fact { value, .. }) if value.version == Version::default() => Finding::warning(
            name,
            format!("{} does not tell its version", value.path.display()),
        )
        .why("What is rendered for it depends on that; it may not be the program it should be.")
        .mend(format!("{} --version", value.path.display())),
        Some(Fact { value, .. }) => Finding::ok(
            name,
            format!("{name} {} is at {}", value.version, value.path.display()),
        ),
        None => Finding::error(
            name,
            format!("{name} is not installed, or not found where {key} says"),
        )
        .why("This role runs it: the machine does not become ready without it.")
        .mend(mend)
        .mend(format!("dstack-vpc explain {key}")),
    }
}

fn headscale(version: Version) -> Option<Finding> {
    let (first, untested) = HEADSCALE;
    if version == Version::default() {
        None
    } else if version < first {
        Some(
            Finding::error(
                "headscale",
                format!("headscale {version} is too old: {first} is the first that will do"),
            )
            .why("Older ones read another configuration and keep their keys elsewhere.")
            .mend("use the project's image, or: make setup"),
        )
    } else if version >= untested {
        Some(
            Finding::warning(
                "headscale",
                format!("headscale {version} is newer than what was tested"),
            )
            .why("Its configuration and its API may have changed.")
            .mend("dstack-vpc check   # has it look at its configuration"),
        )
    } else {
        None
    }
}

fn tailscale(version: Version) -> Option<Finding> {
    let (first, any) = TAILSCALE;
    let finding = if version == Version::default() {
        return None;
    } else if version < first {
        Finding::error(
            "tailscaled",
            format!("tailscaled {version} is too old: {first} is the first that will do"),
        )
        .why("Every version of Headscale that this program runs refuses it.")
    } else if version < any {
        Finding::warning("tailscaled", format!("tailscaled {version} is old")).why(format!(
            "Headscale 0.28 and 0.29 refuse clients before 1.74 and {any}."
        ))
    } else {
        return None;
    };
    Some(finding.mend("use the project's image, or: make setup"))
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::*;

    #[test]
    fn missing_and_old_programs_are_told_apart() {
        let program = |version| {
            let path = "/usr/bin/x".into();
            Some(Fact::now(Installed { path, version }, "test"))
        };
        let severity = |finding: Finding| finding.severity;
        assert_eq!(
            severity(installed("nginx", &None, "nginx.program", "x")),
            Severity::Error
        );
        assert_eq!(
            severity(installed("nginx", &program(Version::default()), "k", "x")),
            Severity::Warning
        );
        assert_eq!(
            severity(installed("nginx", &program(Version(1, 22, 1)), "k", "x")),
            Severity::Ok
        );

        assert_eq!(headscale(Version(0, 25, 1)).map(severity), Some(Severity::Error));
        assert_eq!(headscale(Version(0, 26, 0)), None);
        assert_eq!(headscale(Version(0, 29, 3)), None);
        assert_eq!(
            headscale(Version(0, 30, 0)).map(severity),
            Some(Severity::Warning)
        );

        assert_eq!(tailscale(Version(1, 60, 1)).map(severity), Some(Severity::Error));
        assert_eq!(
            tailscale(Version(1, 74, 0)).map(severity),
            Some(Severity::Warning)
        );
        assert_eq!(tailscale(Version(1, 98, 2)), None);
    }
}
