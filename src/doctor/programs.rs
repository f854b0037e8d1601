//! The programs that this role needs: installed, and new enough.

use super::{Finding, Mend, Patient, Severity};
use crate::facts::{Fact, Installed, Version};
use crate::spec::Front;

/// The first that knows `proxy_socket_keepalive`.
const NGINX: Version = Version(1, 15, 6);

/// The first with `signalProcess`.
const SUPERVISORD: Version = Version(3, 2, 0);

/// What is rendered for Headscale needs this one; the next minor version after the last tested one is only told.
const HEADSCALE: (Version, Version) = (Version(0, 26, 0), Version(0, 30, 0));

/// Headscale 0.26 refuses older clients, and Headscale 0.29 those before the second (capability versions 88 and 113
/// in its hscontrol/capver).
const TAILSCALE: (Version, Version) = (Version(1, 62, 0), Version(1, 80, 0));

pub(super) fn findings(patient: &Patient<'_>) -> Vec<Finding> {
    let (role, programs) = (patient.spec.role, &patient.seen.facts.programs);
    let installed = |name, program: &_, key: &str, mend: Mend| match patient.daemon_found(name) {
        true => Finding::ok(name, format!("the daemon has found {name}")),
        false => installed(name, program, key, mend),
    };
    let package = |name: &str| Mend::Run(format!("apt-get install {name}"));
    let supervisord = installed(
        "supervisord",
        &programs.supervisord,
        "supervisor.program",
        package("supervisor"),
    );
    let old = version(&programs.supervisord).and_then(|version| {
        too_old("supervisord", version, SUPERVISORD).map(|it| it.why("It cannot signal its programs."))
    });
    let mut findings = vec![
        old.map(|old| old.step(package("supervisor")))
            .unwrap_or(supervisord),
    ];
    if patient.spec.mesh.front == Front::Nginx {
        let nginx = installed("nginx", &programs.nginx, "nginx.program", package("nginx-light"));
        let old = version(&programs.nginx).and_then(|version| {
            too_old("nginx", version, NGINX).map(|it| it.why("It refuses what is rendered for it."))
        });
        let nginx = old.map(|old| old.step(package("nginx-light"))).unwrap_or(nginx);
        findings.push(match nginx.severity {
            Severity::Error => nginx.mend("or do without it: front = \"builtin\" in [mesh]"),
            _ => nginx,
        });
    }
    if role.server {
        let mut finding = installed("headscale", &programs.headscale, "headscale.program", image());
        if let Some(version) = version(&programs.headscale) {
            finding = headscale(version).unwrap_or(finding);
        }
        findings.push(finding);
    }
    if role.node {
        let daemon = installed("tailscaled", &programs.tailscaled, "tailscale.program", image());
        let old = version(&programs.tailscaled).and_then(tailscale);
        findings.push(old.unwrap_or(daemon));
        findings.push(installed(
            "tailscale",
            &programs.tailscale,
            "tailscale.client",
            image(),
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
                .run("dstack-vpc explain   # shows the path of each")
                .mend("install both from one place"),
            );
        }
    }
    findings
}

fn version(program: &Option<Fact<Installed>>) -> Option<Version> {
    program.as_ref().map(|fact| fact.value.version)
}

/// How Headscale and Tailscale come onto a machine.
fn image() -> Mend {
    Mend::Do("use the project's image; in a checkout of the project: make setup".to_owned())
}

fn installed(name: &'static str, program: &Option<Fact<Installed>>, key: &str, mend: Mend) -> Finding {
    match program {
        Some(Fact { value, .. }) if value.version == Version::default() => Finding::warning(
            name,
            format!("{} does not tell its version", value.path.display()),
        )
        .why("What is rendered for it depends on that; it may not be the program it should be.")
        .run(format!("{} --version", value.path.display())),
        Some(Fact { value, .. }) => Finding::ok(
            name,
            format!("{name} {} is at {}", value.version, value.path.display()),
        ),
        None => Finding::error(
            name,
            format!("{name} is not installed, or not found where {key} says"),
        )
        .why("This role runs it: the machine does not become ready without it.")
        .step(mend)
        .run(format!("dstack-vpc explain {key}   # where it is looked for")),
    }
}

/// 0.0.0 is a program that does not tell its version.
fn too_old(name: &'static str, version: Version, first: Version) -> Option<Finding> {
    let what = format!("{name} {version} is too old: {first} is the first that will do");
    (version != Version::default() && version < first).then(|| Finding::error(name, what))
}

fn headscale(version: Version) -> Option<Finding> {
    let (first, untested) = HEADSCALE;
    if let Some(old) = too_old("headscale", version, first) {
        let old = old.why("Older ones read another configuration and keep their keys elsewhere.");
        return Some(old.step(image()));
    }
    (version >= untested).then(|| {
        Finding::warning(
            "headscale",
            format!("headscale {version} is newer than what was tested"),
        )
        .why("Its configuration and its API may have changed.")
        .run("dstack-vpc check   # has it look at its configuration")
    })
}

fn tailscale(version: Version) -> Option<Finding> {
    let (first, any) = TAILSCALE;
    if let Some(old) = too_old("tailscaled", version, first) {
        let old = old.why("Every version of Headscale that this program runs refuses it.");
        return Some(old.step(image()));
    }
    (version != Version::default() && version < any).then(|| {
        let refused = format!("Headscale 0.28 and 0.29 refuse clients before 1.74 and {any}.");
        Finding::warning("tailscaled", format!("tailscaled {version} is old"))
            .why(refused)
            .step(image())
    })
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
        let x = || Mend::Run("x".to_owned());
        assert_eq!(
            severity(installed("nginx", &None, "nginx.program", x())),
            Severity::Error
        );
        assert_eq!(
            severity(installed("nginx", &program(Version::default()), "k", x())),
            Severity::Warning
        );
        assert_eq!(
            severity(installed("nginx", &program(Version(1, 22, 1)), "k", x())),
            Severity::Ok
        );

        assert!(too_old("nginx", Version(1, 14, 2), NGINX).is_some());
        assert_eq!(too_old("nginx", Version(1, 18, 0), NGINX), None);
        assert_eq!(too_old("nginx", Version::default(), NGINX), None);

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
