//! The state directory.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::{Patient, Report};

#[tokio::test(flavor = "multi_thread")]
async fn secrets_in_the_open_and_a_configuration_that_cannot_be_read() {
    let patient = Patient::new().with("role = \"meshh\"", "");
    let secrets = patient.path("state/secrets");
    std::fs::create_dir_all(&secrets).unwrap();
    std::fs::write(secrets.join("shared_key"), "not for you").unwrap();
    let before = everything(patient.dir.path());
    std::fs::write(patient.path("vpc.toml"), &patient.toml).unwrap();
    let report = patient.examine().await;
    report.says("configuration", "error", "cannot be used");
    let mend = report.says("secrets", "error", "others can read");
    assert!(
        mend.contains(&format!("chmod -R go= {}", secrets.display())),
        "{mend}"
    );
    assert!(!report.json.to_string().contains("not for you"));
    std::fs::remove_file(patient.path("vpc.toml")).unwrap();
    assert_eq!(
        everything(patient.dir.path()),
        before,
        "looking has changed something"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn another_user_is_told_to_be_root_and_not_that_ports_are_taken() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("only root can be another user");
    }
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("[mesh]\nhttp_listen = \"{}\"", holder.local_addr().unwrap());
    let patient = Patient::new().with("", &listen);
    std::fs::create_dir(patient.path("state")).unwrap();
    std::fs::set_permissions(patient.dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let copy = patient.path("dstack-vpc");
    std::fs::copy(assert_cmd::cargo::cargo_bin!("dstack-vpc"), &copy).unwrap();
    let nobody = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"];
    let output = patient
        .command_of(&copy, &nobody, &["--json"])
        .output()
        .await
        .unwrap();
    let report = Report::from(output);
    report.says("user", "warning", "not the user of the state directory, who is 0");
    assert!(
        report
            .of("port")
            .iter()
            .all(|(severity, what, _)| severity != "error" || !what.contains("http_listen"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_nearly_full_or_full_or_out_of_names() {
    let (mesh, server) = (
        Patient::new(),
        Patient::new().with("role = \"server\"\nallowed_apps = []", ""),
    );
    let on = |patient: &Patient, options: &str, megabytes: u32| {
        let state = patient.path("state").display().to_string();
        format!(
            "mkdir -p {state}; mount -t tmpfs -o {options} tmpfs {state}; head -c {megabytes}M /dev/zero > {state}/junk"
        )
    };
    let report = mesh.examine_in(&[], &on(&mesh, "size=32m", 1)).await;
    let mend = report.says("disk", "warning", "only 31 MiB are free");
    assert!(mend.contains("$ du -x"), "{mend}");
    // It is no loss there; elsewhere it is.
    report.says("disk", "note", "in memory (tmpfs)");
    let report = server.examine_in(&[], &on(&server, "size=32m", 30)).await;
    report.says("disk", "error", "only 2 MiB are free");
    report.says("disk", "warning", "in memory (tmpfs)");
    let report = mesh
        .examine_in(&[], &on(&mesh, "size=100m,nr_inodes=20", 1))
        .await;
    report.says("disk", "error", "no room for more files (inodes)");
    let report = mesh.examine_in(&[], &on(&mesh, "size=100m", 1)).await;
    report.says("disk", "ok", "99 MiB are free");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_directory_that_cannot_be_written() {
    let patient = Patient::new();
    let state = patient.path("state");
    let sealed = format!("mkdir -p {0}; mount -t tmpfs -o ro tmpfs {0}", state.display());
    let report = patient.examine_in(&[], &sealed).await;
    report.says("state", "error", "it is on a read-only file system");

    let bare = format!(
        "rm -rf {}; set -- setpriv --reuid=nobody --clear-groups \"$@\"",
        state.display()
    );
    std::fs::set_permissions(patient.dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let copy = patient.path("dstack-vpc");
    std::fs::copy(assert_cmd::cargo::cargo_bin!("dstack-vpc"), &copy).unwrap();
    let script = format!("{bare}; exec \"$@\"");
    let words = ["sh", "-ec", &script, "sh"];
    let output = patient
        .command_of(&copy, &words, &["--json"])
        .output()
        .await
        .unwrap();
    Report::from(output).says("state", "error", "cannot be written: this user (65534) may not");
}

/// A file system of the type `fuse.sshfs` that has a folder and nothing in it; runs its arguments meanwhile.
const NETWORK_FILE_SYSTEM: &str = r#"
import ctypes, os, struct, subprocess, sys, threading
at, command = sys.argv[1], sys.argv[2:]
os.makedirs(at, exist_ok=True)
fuse = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0"
libc = ctypes.CDLL(None, use_errno=True)
if libc.mount(b"host:/folder", at.encode(), b"fuse.sshfs", 0, options.encode()):
    sys.exit(f"mount: {os.strerror(ctypes.get_errno())}")
def serve():
    while True:
        _, opcode, unique, _, _, _, _, _ = struct.unpack("IIQQIIII", os.read(fuse, 1 << 17)[:40])
        answer, error = b"", 0
        if opcode == 26:    # INIT
            answer = struct.pack("IIIIHHIIHHI7I", 7, 31, 0, 0, 0, 0, 4096, 1, 0, 0, 0, *[0] * 7)
        elif opcode == 3:   # GETATTR
            answer = struct.pack("QII", 1, 0, 0) + struct.pack("6Q10I", 1, 0, 0, 0, 0, 0, 0, 0, 0, 0o40755, 2, 0, 0, 0, 4096, 0)
        elif opcode == 17:  # STATFS
            answer = struct.pack("5Q4I6I", *[1 << 20] * 5, 4096, 255, 4096, 0, *[0] * 6)
        elif opcode == 1:   # LOOKUP
            error = -2
        elif opcode in (2, 42):  # FORGET
            continue
        elif opcode != 34:  # ACCESS
            error = -38
        os.write(fuse, struct.pack("IiQ", 16 + len(answer), error, unique) + answer)
threading.Thread(target=serve, daemon=True).start()
code = subprocess.run(command).returncode
libc.umount2(at.encode(), 2)
os._exit(code)
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_state_directory_on_the_network() {
    let patient = Patient::new();
    let script = patient.path("network.py");
    std::fs::write(&script, NETWORK_FILE_SYSTEM).unwrap();
    let mounted = format!(
        "set -- python3 {} {} \"$@\"",
        script.display(),
        patient.path("state").display()
    );
    let report = patient.examine_in(&[], &mounted).await;
    report.says("disk", "warning", "is on a network file system (fuse.sshfs)");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_directory_of_a_later_version() {
    let patient = Patient::new();
    std::fs::create_dir_all(patient.path("state/generations/000001")).unwrap();
    std::os::unix::fs::symlink("generations/000001", patient.path("state/current")).unwrap();
    let says = async |format: &str, severity: &str, words: &str| {
        std::fs::write(patient.path("state/format.json"), format).unwrap();
        patient.examine().await.says("format", severity, words)
    };
    says(
        r#"{"format":1,"written_by":"dstack-vpc 0.1.0"}"#,
        "ok",
        "is in format 1",
    )
    .await;
    let later = r#"{"format":9,"written_by":"dstack-vpc 3.1.0","more":[]}"#;
    let mend = says(later, "error", "is in format 9, written by dstack-vpc 3.1.0").await;
    assert!(
        mend.contains("Start dstack-vpc 3.1.0 again, or a later one"),
        "{mend}"
    );
    let mend = says("junk", "error", "does not tell which version wrote").await;
    assert!(mend.contains("remove that file"), "{mend}");
    std::fs::remove_file(patient.path("state/format.json")).unwrap();
    let report = patient.examine().await;
    report.says("format", "ok", "is in format 0: the next start brings it to 1");
}

/// Every file below `dir`, with its time.
fn everything(dir: &Path) -> Vec<(PathBuf, SystemTime)> {
    let mut found = Vec::new();
    let mut queue = vec![dir.to_owned()];
    while let Some(path) = queue.pop() {
        for entry in std::fs::read_dir(&path).unwrap() {
            let entry = entry.unwrap();
            let about = entry.metadata().unwrap();
            if about.is_dir() {
                queue.push(entry.path());
            } else {
                found.push((entry.path(), about.modified().unwrap()));
            }
        }
    }
    found.sort();
    found
}
