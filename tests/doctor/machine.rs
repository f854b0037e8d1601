//! Ports, programs, networks, and what the kernel allows.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

use super::Patient;

#[tokio::test(flavor = "multi_thread")]
async fn taken_ports_missing_programs_and_what_the_configuration_does_wrong() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap();
    let api = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let patient = Patient::new().with(
        "role = \"server+node\"\nallowed_apps = []",
        &format!(
            "[mesh]\nhttp_listen = \"{taken}\"\n[server]\napi_listen = \"0.0.0.0:{api}\"\n[node]\nname = \"db-1\"\n\
             [nginx]\nprogram = \"/none/nginx\"\n[supervisor]\nprogram = \"/none/supervisord\"\n\
             [headscale]\nprogram = \"{0}/headscale\"\n[tailscale]\nprogram = \"{0}/tailscaled\"\nclient = \"/none/tailscale\"",
            "/none"
        ),
    );
    let report = patient.examine().await;
    assert_eq!(report.exit, Some(1));
    let mend = report.says("port", "error", &format!("mesh.http_listen {taken} is taken by"));
    assert!(mend.contains(&format!("kill {}", std::process::id())), "{mend}");
    for program in ["nginx", "supervisord", "headscale", "tailscaled", "tailscale"] {
        report.says(program, "error", "is not installed");
    }
    report.says(
        "configuration",
        "warning",
        "whoever reaches `server.api_listen` can pass for any app",
    );
    report.says("vpn-prefix", "note", "lies outside 100.64.0.0/10");
    report.says("server-url", "note", "needs the gateway domain");

    let mut patient = patient;
    let old = [
        ("nginx", "nginx version: nginx/1.14.2"),
        ("supervisord", "3.1.4"),
        ("headscale", "v0.25.1"),
        ("tailscaled", "1.60.1"),
    ];
    for (program, version) in old {
        let path = patient.path(program);
        std::fs::write(&path, format!("#!/bin/sh\necho '{version}'\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        let none = format!("\"/none/{program}\"");
        patient.toml = patient.toml.replace(&none, &format!("\"{}\"", path.display()));
    }
    let report = patient.examine().await;
    for (program, version) in [
        ("nginx", "1.14.2"),
        ("supervisord", "3.1.4"),
        ("headscale", "0.25.1"),
        ("tailscaled", "1.60.1"),
    ] {
        report.says(program, "error", &format!("{program} {version} is too old"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_without_a_tun_device_and_one_that_may_not_open_it() {
    let node = |tun: &str| {
        let node = format!("[node]\nname = \"db-1\"\nserver_app_id = \"self\"\ntun = \"{tun}\"");
        Patient::new().with("role = \"node\"", &node)
    };
    let gone = "mount -t tmpfs tmpfs /dev/net";
    for (tun, severity) in [("device", "error"), ("auto", "warning")] {
        let report = node(tun).examine_in(&[], gone).await;
        let mend = report.says("tun", severity, "/dev/net/tun is not there");
        assert!(mend.contains("devices: [\"/dev/net/tun\"]"), "{mend}");
    }
    assert_eq!(node("userspace").examine_in(&[], gone).await.of("tun"), []);

    let denied = format!(
        "{gone}; mknod -m 0 /dev/net/tun c 10 200; set -- setpriv --bounding-set=-dac_override \"$@\""
    );
    let report = node("device").examine_in(&[], &denied).await;
    report.says("tun", "error", "may not be opened");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_that_filters_no_packets() {
    let patient = Patient::new();
    let modules = patient.path("modules");
    std::fs::create_dir(&modules).unwrap();
    std::fs::write(modules.join("xt_mark.ko"), "\0depends=\0").unwrap();
    let patient = patient.with(
        "role = \"node\"",
        &format!(
            "[node]\nname = \"db-1\"\nserver_app_id = \"self\"\ntun = \"device\"\n[tailscale]\nmodules_dir = \"{}\"",
            modules.display()
        ),
    );
    // What this kernel has is out of sight: the files that tell are covered.
    let bare = "for file in /proc/modules /proc/kallsyms /lib/modules/$(uname -r)/modules.builtin; do \
                [ ! -e $file ] || mount --bind /dev/null $file; done; mount -t tmpfs tmpfs /sys/module";
    let report = patient.examine_in(&[], bare).await;
    let mend = report.says(
        "modules",
        "warning",
        "does not show xt_mark, xt_connmark, nf_tables",
    );
    let insmod = format!("$ insmod {}/xt_mark.ko", modules.display());
    assert!(
        mend.contains(&insmod) && mend.contains("$ sudo dstack-vpc doctor --load-modules"),
        "{mend}"
    );

    // One that is there, as far as one can see.
    let some = format!("{bare}; mkdir /sys/module/nf_tables");
    let report = patient.examine_in(&[], &some).await;
    report.says("modules", "note", "the kernel lacks xt_mark, xt_connmark");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_net_admin_and_modules_that_cannot_be_loaded() {
    let patient = Patient::new().with(
        "role = \"node\"",
        "[node]\nname = \"db-1\"\nserver_app_id = \"self\"\ntun = \"device\"",
    );
    let root = nix::unistd::geteuid().is_root();
    let without: &[&str] = match root {
        true => &["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"],
        false => &[],
    };
    let report = patient.examine_as(without).await;
    let mend = report.says("net-admin", "error", "NET_ADMIN is missing");
    assert!(mend.contains("cap_add: [NET_ADMIN]"), "{mend}");
    if root {
        patient.examine().await.says("net-admin", "ok", "is there");
    }

    let output = patient.command(&[], &["--load-modules"]).output().await.unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && error.contains("tailscale.modules_dir is not set"),
        "{error}"
    );
}
