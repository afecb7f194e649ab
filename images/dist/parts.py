#!/usr/bin/env python3
"""Says what the archive is made of.

    parts.py GO-PROGRAMS-FOLDER LICENCES-FOLDER

Prints a CycloneDX 1.5 document of all crates and Go modules that the programs contain, and writes THIRD-PARTY.txt with
their licences' texts, each text once, after the names of the parts that it is for. Both are the same for the same inputs.
"""

import collections
import datetime
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys

PROGRAMS = ("hpk", "hpk-kubelet", "hpk-pause", "hpk-netns")
LICENCE_FILE = re.compile(r"^(licen[cs]e|copying|notice|copyright|unlicense)", re.IGNORECASE)


def run(*command: str) -> str:
    """Standard output of a command that must succeed."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def crates() -> list[dict]:
    """The crates in our programs, without those for tests alone."""
    metadata = json.loads(
        run("cargo", "metadata", "--format-version=1", "--locked", "--filter-platform=x86_64-unknown-linux-gnu")
    )
    packages = {p["id"]: p for p in metadata["packages"]}
    nodes = {n["id"]: n for n in metadata["resolve"]["nodes"]}
    waiting = [i for i, p in packages.items() if p["source"] is None and p["name"] in PROGRAMS]
    found: set[str] = set()
    while waiting:
        node = waiting.pop()
        if node in found:
            continue
        found.add(node)
        for dependency in nodes[node]["deps"]:
            if any(kind["kind"] != "dev" for kind in dependency["dep_kinds"]):
                waiting.append(dependency["pkg"])
    return [
        {
            "type": "library",
            "name": p["name"],
            "version": p["version"],
            "purl": f"pkg:cargo/{p['name']}@{p['version']}",
            "licences": p["license"],
            "folder": pathlib.Path(p["manifest_path"]).parent,
        }
        for p in (packages[i] for i in found)
        if p["source"] is not None
    ]


def go_modules(folder: pathlib.Path) -> list[dict]:
    """The modules in the control plane's programs, as these say themselves."""
    cache = pathlib.Path(run("go", "env", "GOMODCACHE").strip())
    found = {}
    for program in sorted(folder.iterdir()):
        named = []
        for line in run("go", "version", "-m", str(program)).splitlines():
            words = line.split()
            if len(words) < 3 or words[0] not in ("dep", "mod", "=>") or words[2] == "(devel)":
                continue
            # `=>` says what the module of the line before was replaced by.
            if words[0] == "=>":
                named.pop()
            named.append((words[1], words[2]))
        for name, version in named:
            # The module cache writes a capital letter as ! and the small one.
            path = re.sub("[A-Z]", lambda m: "!" + m.group().lower(), f"{name}@{version}")
            found[name, version] = {
                "type": "library",
                "name": name,
                "version": version,
                "purl": f"pkg:golang/{name}@{version}",
                "licences": None,
                "folder": cache / path,
            }
    return list(found.values())


def licence_texts(parts: list[dict]) -> str:
    """Each text once, with the parts that it is for."""
    users = collections.defaultdict(list)
    texts = {}
    for part in parts:
        name = f"{part['name']} {part['version']}"
        files = sorted(f for f in part["folder"].glob("*") if f.is_file() and LICENCE_FILE.match(f.name))
        if not files:
            users[""].append(f"{name} ({part['licences'] or 'see its source'})")
        for file in files:
            text = file.read_text(errors="replace").strip()
            key = hashlib.sha256(text.encode()).hexdigest()
            texts[key] = text
            users[key].append(name)
    blocks = []
    for key in sorted(texts, key=lambda k: users[k]):
        blocks.append("\n".join(sorted(set(users[key]))) + "\n\n" + texts[key])
    if users[""]:
        blocks.append("These name their licence and bring no text of it:\n" + "\n".join(sorted(users[""])))
    return ("\n\n" + "=" * 80 + "\n\n").join(blocks) + "\n"


def main() -> None:
    """Reads both worlds and writes both documents."""
    programs, licences = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    parts = sorted(crates() + go_modules(programs), key=lambda p: p["purl"])
    licences.mkdir(parents=True, exist_ok=True)
    (licences / "THIRD-PARTY.txt").write_text(licence_texts(parts))
    made = datetime.datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", "0")), datetime.UTC)
    components = []
    for part in parts:
        component = {k: part[k] for k in ("type", "name", "version", "purl")}
        if part["licences"]:
            # Some crates still write MIT/Apache-2.0, which SPDX has as OR.
            component["licenses"] = [{"expression": part["licences"].replace("/", " OR ")}]
        components.append(component)
    json.dump(
        {
            "bomFormat": "CycloneDX",
            "specVersion": "1.5",
            "version": 1,
            "metadata": {
                "timestamp": made.strftime("%Y-%m-%dT%H:%M:%SZ"),
                "component": {"type": "application", "name": "hpk"},
            },
            "components": components,
        },
        sys.stdout,
        indent=1,
    )
    print()


if __name__ == "__main__":
    main()
