//! An image is a folder or one SquashFS file in the store, and to a pod that is the same. `hpk image` shows, loads, checks and
//! removes both.

use hpk_e2e::{Namespace, PATIENCE, Run, eventually, sx};
use serde_json::{Value, json};

const FILES: usize = 30_000;

fn on_login(script: &str) -> Run {
    sx("login", Some("alice"), &["bash", "-euo", "pipefail", "-c", script])
}

/// Runs as alice on the login node.
fn alice(script: &str) -> String {
    on_login(script).ok().to_owned()
}

/// A docker archive of busybox and many files, which has the name `login:5000/NAME:1` in it.
fn archive(name: &str, files: usize) -> String {
    let path = format!("/home/alice/{name}-{}.tar", std::process::id());
    let script = format!(
        r#"import io, json, tarfile
layer = io.BytesIO()
with tarfile.open(fileobj=layer, mode="w") as tar:
    def put(path, content=b"", mode=0o644, kind=tarfile.REGTYPE, link="", uid=0):
        info = tarfile.TarInfo(path)
        info.mode, info.type, info.linkname, info.size, info.uid, info.gid = mode, kind, link, len(content), uid, uid
        tar.addfile(info, io.BytesIO(content))
    for folder in ("bin", "etc", "data", "tmp"):
        put(folder, mode=0o1777 if folder == "tmp" else 0o755, kind=tarfile.DIRTYPE)
    put("bin/busybox", open("/usr/bin/busybox", "rb").read(), 0o755)
    put("bin/sh", kind=tarfile.LNKTYPE, link="bin/busybox")
    put("bin/su", b"x", 0o4755, uid=33)
    put("etc/passwd", b"root:x:0:0::/:/bin/sh\nweb:x:33:33::/:/bin/sh\n")
    put("etc/name", b"{name}\n")
    put("private", b"secret\n", 0o600, uid=33)
    for n in range({files}):
        if n % 300 == 0:
            put("data/%d" % (n // 300), mode=0o755, kind=tarfile.DIRTYPE)
        put("data/%d/f%d" % (n // 300, n), b"%d\n" % n)
with tarfile.open("{path}", "w") as tar:
    def add(name, content):
        info = tarfile.TarInfo(name)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    config = {{"config": {{"Cmd": ["sh"], "Env": ["PATH=/bin"]}}, "rootfs": {{"type": "layers", "diff_ids": []}}}}
    add("config.json", json.dumps(config).encode())
    add("layer.tar", layer.getvalue())
    add("manifest.json", json.dumps([
        {{"Config": "config.json", "RepoTags": ["login:5000/{name}:1"], "Layers": ["layer.tar"]}}
    ]).encode())
"#
    );
    alice(&format!("python3 - <<'PYTHON'\n{script}\nPYTHON"));
    path
}

/// What `hpk image list` says of an image.
fn listed(name: &str) -> Option<Value> {
    let all: Value = serde_json::from_str(&alice("hpk image list -o json")).unwrap_or_default();
    let has = |image: &Value| image["names"].as_array().is_some_and(|names| names.contains(&json!(name)));
    all["images"].as_array()?.iter().find(|image| has(image)).cloned()
}

/// Inodes of an image of this digest in the store.
fn inodes(digest: &str) -> usize {
    // Of several names of a file one counts. After the image's end there is nothing to find.
    let script = format!(
        "find ~/.hpk/images -path '*/sha256-{digest}*' -not -path '*/.locks/*' -printf '%i\n' | sort -u | wc -l"
    );
    alice(&script).parse().unwrap_or_default()
}

fn squashfuses(digest: &str) -> usize {
    let nodes = ["c1", "c2"].map(|node| sx(node, None, &["pgrep", "-fc", &format!("squashfuse.*{digest}")]));
    nodes.iter().map(|run| run.stdout.trim().parse::<usize>().unwrap_or_default()).sum()
}

/// The story of an image of many files, from the archive to its end; `one` for squashfs.
fn story(layout: &str) {
    let ns = Namespace::new(&format!("layout-{layout}"));
    let name = format!("many-{layout}-{}", std::process::id());
    let image = format!("login:5000/{name}:1");
    let file = archive(&name, FILES);
    assert_eq!(alice(&format!("hpk image load {file} --layout {layout}")), image);
    let entry = listed(&image).unwrap_or_default();
    let digest =
        entry["id"].as_str().and_then(|id| id.rsplit_once("sha256:")).map_or("", |(_, digits)| digits).to_owned();
    assert_eq!((&entry["layout"], digest.len()), (&json!(layout), 64), "{entry}");
    let taken = inodes(&digest);
    match layout {
        "squashfs" => assert_eq!(taken, 1),
        _ => assert!((FILES..FILES + 300).contains(&taken), "{taken}"),
    }
    assert_eq!(entry["inodes"], json!(taken), "{entry}");

    // It starts, fails once, starts again: the writable layer is new, the image is whole.
    let script = "set -e; [ ! -e /new ]; echo x > /new; [ -e /keep/second ] || { touch /keep/second; exit 3; }
        find /data -type f | wc -l; cat /etc/name; stat -c '%a %h %u' /bin/su /private
        [ /bin/sh -ef /bin/busybox ] && echo linked; cat /private
        sleep 1000";
    let mut pod = ns.script_pod("many", "OnFailure", script);
    let container = &mut pod["spec"]["containers"][0];
    container["image"] = json!(image);
    container["imagePullPolicy"] = json!("IfNotPresent");
    container["command"] = json!(["sh", "-c", format!("busybox --install -s /bin 2>/dev/null; {script}")]);
    container["volumeMounts"] = json!([{"name": "keep", "mountPath": "/keep"}]);
    pod["spec"]["volumes"] = json!([{"name": "keep", "emptyDir": {}}]);
    ns.apply(&pod.to_string());
    let lines = format!("{FILES}\n{name}\n4755 1 33\n600 1 33\nlinked\nsecret");
    eventually("the second start has told all", PATIENCE, || {
        let run = ns.kubectl(&["logs", "many"]);
        (run.stdout.trim() == lines).then_some(()).or_else(|| {
            assert!(!run.stdout.contains("secret"), "{}", run.stdout);
            None
        })
    });
    assert_eq!(ns.get("pod", "many")["status"]["containerStatuses"][0]["restartCount"], json!(1));
    assert_eq!(ns.kubectl(&["exec", "many", "--", "cat", "/data/7/f2222"]).ok(), "2222");
    assert_eq!(squashfuses(&digest), usize::from(layout == "squashfs"));

    // A container that comes later, with an image that the pod did not have.
    let late = format!("late-{layout}-{}", std::process::id());
    let late_file = archive(&late, 10);
    alice(&format!("hpk image load {late_file} --layout {layout}"));
    let debug = format!("--image=login:5000/{late}:1");
    ns.kubectl(&[
        "debug",
        "many",
        &debug,
        "--image-pull-policy=IfNotPresent",
        "-c",
        "late",
        "--",
        "sh",
        "-c",
        "cat /etc/name",
    ])
    .ok();
    eventually("the late container has told its image's name", PATIENCE, || {
        (ns.kubectl(&["logs", "many", "-c", "late"]).stdout.trim() == late).then_some(())
    });

    // What a pod has stays.
    let user = format!("{}/many", ns.name());
    assert_eq!(listed(&image).unwrap_or_default()["used_by"], json!([user]));
    let refused = on_login(&format!("hpk image rm {image}")).err();
    assert!(refused.contains(&user) && refused.contains("delete these pods"), "{refused}");
    assert!(!on_login("hpk image prune --older-than 1d --dry-run").stdout.contains(&digest));
    assert!(alice(&format!("hpk image verify {image}")).ends_with("   ok"));
    ns.delete("pod", "many");
    eventually("the pod's folder is gone", PATIENCE, || {
        listed(&image).is_some_and(|entry| entry["used_by"] == json!([])).then_some(())
    });
    eventually("nothing is left of the mount", PATIENCE, || (squashfuses(&digest) == 0).then_some(()));
    alice(&format!("hpk image rm {image} login:5000/{late}:1; rm {file} {late_file}"));
    assert_eq!((inodes(&digest), listed(&image)), (0, None));
}

#[test]
fn many_files_as_a_folder() {
    story("folder");
}

#[test]
fn many_files_in_one_file() {
    story("squashfs");
}

/// A volume of an image, and a container of the same, of the one file.
#[test]
fn a_volume_may_be_one_file_too() {
    let ns = Namespace::new("layout-volume");
    let name = format!("volume-{}", std::process::id());
    let image = format!("login:5000/{name}:1");
    let file = archive(&name, 10);
    alice(&format!("hpk image load {file} --layout squashfs"));
    let mut pod = ns.script_pod(
        "reader",
        "Never",
        "cat /image/etc/name; busybox touch /image/x 2>&1 | busybox grep -o Read-only",
    );
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/image"}]);
    pod["spec"]["volumes"] = json!([{"name": "v", "image": {"reference": image, "pullPolicy": "IfNotPresent"}}]);
    ns.apply(&pod.to_string());
    ns.wait_phase("reader", "Succeeded");
    assert_eq!(ns.kubectl(&["logs", "reader"]).ok(), format!("{name}\nRead-only"));
    // The record of the pod knows no images of volumes; the plan does.
    let refused = on_login(&format!("hpk image rm {image}")).err();
    assert!(refused.contains("reader"), "{refused}");
    ns.delete("pod", "reader");
    eventually("the image can be removed", PATIENCE, || {
        on_login(&format!("hpk image rm {image}")).stdout.contains("removed").then_some(())
    });
    alice(&format!("rm {file}"));
}

/// On a node that can mount nothing, the image is unpacked, with its owners, modes and links, once for all who ask.
#[test]
fn a_node_without_fuse_unpacks() {
    let name = format!("unpacked-{}", std::process::id());
    let file = archive(&name, 500);
    alice(&format!("hpk image load {file} --layout squashfs"));
    let entry = listed(&format!("login:5000/{name}:1")).unwrap_or_default();
    let folder =
        format!("sha256-{}", entry["id"].as_str().and_then(|id| id.rsplit_once("sha256:")).map_or("", |(_, d)| d));
    // As hpk-netns starts it for a pod, but without squashfuse.
    let script = format!(
        r#"t=$(mktemp -d); cd $t; mkdir -p here/{folder} points/{folder}/rootfs; touch here/{folder}/lock
        wish='{{"folders":["{folder}"],"store":"/home/alice/.hpk/images","points":"'$t'/points","here":"'$t'/here","kubelet":"/home/alice/.local/bin/hpk-kubelet","squashfuse":null}}'
        run() {{ unshare -U -m --map-root-user --map-auto ~/.local/libexec/hpk/hpk-netns images "$wish" /bin/bash -c "$1"; }}
        run 'cd points/{folder}/rootfs; cat etc/name; find data -type f | wc -l; stat -c "%a %u %h" bin/su bin/sh private; touch x 2>&1 | grep -o Read-only; chmod 700 .. 2>/dev/null' &
        run 'cd points/{folder}/rootfs; find data -type f | wc -l' > second & wait
        cat second; ls here/{folder}
        unshare -U --map-root-user --map-auto rm -rf $t"#
    );
    let said = sx("c1", Some("alice"), &["bash", "-uc", &script]);
    let lines: Vec<&str> = said.ok().lines().collect();
    let expected =
        [name.as_str(), "500", "4755 33 1", "755 0 2", "600 33 1", "Read-only", "500", "lock", "making", "rootfs"];
    assert_eq!(lines, expected, "{}", said.stderr);
    alice(&format!("hpk image rm login:5000/{name}:1; rm {file}"));
}

#[test]
fn commands_say_what_to_do_next() {
    for (command, words) in [
        ("hpk image rm nobody-has:this", "hpk image list"),
        ("hpk image load /etc/passwd", "tar"),
        ("hpk image load /none", "/none"),
        ("hpk image pull login:5000/none:1", "not found"),
        ("hpk image pull login:1/none:1", "hpk image load FILE"),
        ("hpk image prune --older-than 3", "90s, 30m, 12h or 7d"),
    ] {
        let said = on_login(command).err();
        assert!(said.contains(words), "{command}: {said}");
    }
    let help = alice("hpk image --help");
    assert!(help.contains("hpk image prune") && help.contains("Examples"), "{help}");
    assert!(alice("hpk completions bash").contains("verify"));
}
