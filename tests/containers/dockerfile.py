"""Checks of the Dockerfile: its base images, its build context, and the user and ports of the image."""

import re
import subprocess
import tempfile
import tomllib
from pathlib import Path
from shutil import copyfile

from checkout import check, is_sent, tracked

RUST = f"rust:{tomllib.loads(Path('rust-toolchain.toml').read_text())['toolchain']['channel']}-"


def instructions():
    """Every instruction as (name, rest), with continued lines joined."""
    text = re.sub(r"\\\n\s*", "", Path("Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(None, 1)) for line in lines]


def is_pinned(image):
    """Whether an image has a tag other than `latest`."""
    name, _, tag = image.rpartition("/")[2].partition(":")
    return bool(name and tag) and tag != "latest"


def images_and_versions(lines):
    stages = set()
    for image, stage in [(rest.split()[0], rest.split()[-1]) for name, rest in lines if name == "FROM"]:
        check(image in stages or is_pinned(image), f"Dockerfile: FROM {image} is not pinned by a tag")
        stages.add(stage)
        check(not image.startswith("rust:") or image.startswith(RUST), f"Dockerfile: {image} is not {RUST}, as in rust-toolchain.toml")
    for rest in [rest for name, rest in lines if name == "RUN"]:
        for command in re.findall(r"cargo (?:install|chef cook|build)[^&;]*", rest):
            check("--locked" in command, f"Dockerfile: `{command.strip()}` is without --locked")


def runtime(lines):
    last = lines[max(index for index, (name, _) in enumerate(lines) if name == "FROM"):]
    found = {name: rest for name, rest in last}
    # Kubernetes can verify runAsNonRoot only for a numeric user.
    check(re.fullmatch(r"[1-9]\d*:[1-9]\d*", found.get("USER", "")), "Dockerfile: USER must be two numbers other than 0")
    # The image has no shell, which a command that is not a list would need.
    for name in ("ENTRYPOINT", "CMD", "HEALTHCHECK"):
        check(re.search(r"(^|CMD )\[.*\]$", found.get(name, "")), f"Dockerfile: {name} must be a list")
    table = Path("docs/configuration.md").read_text()
    listened = re.findall(r"`0\.0\.0\.0:(\d+)`", table)
    check(sorted(found.get("EXPOSE", "").split()) == sorted(listened), f"Dockerfile: EXPOSE must be the default ports: {listened}")


def context(lines, shopbell):
    sent = [path for path in tracked() if is_sent(path)]
    # These include vendored dependencies and embedded files.
    depended_on = Path(f"{shopbell}.d").read_text().split(": ", 1)[1].split()
    root = Path.cwd()
    used = [Path(path).relative_to(root) for path in depended_on if Path(path).is_relative_to(root)]
    check(len(used) > 50, f"{shopbell}.d names {len(used)} files of this checkout: build it here first")
    for path in used:
        check(path.is_dir() or str(path) in sent, f".dockerignore excludes {path}, which the build needs")
    for source in [source for name, rest in lines if name == "COPY" and "--from" not in rest for source in rest.split()[:-1]]:
        there = any(source == "." or path == source or path.startswith(f"{source}/") for path in sent)
        check(there, f"Dockerfile: COPY {source}: missing, or excluded by .dockerignore")
    rules = [line for line in Path(".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    check(rules[0] == "*", ".dockerignore must begin with `*`, so that it excludes all files that it does not name")
    with tempfile.TemporaryDirectory() as folder:
        for path in sent:
            copy = Path(folder, path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copyfile(path, copy)
        command = ["cargo", "metadata", "--locked", "--format-version", "1", "--manifest-path", f"{folder}/Cargo.toml"]
        resolved = subprocess.run(command, capture_output=True, text=True)
        check(resolved.returncode == 0, f"the build's context does not resolve: {resolved.stderr.strip()}")


def workflow():
    path = Path(".github/workflows/ci.yml")
    for image in re.findall(r"image: (\S+)", path.read_text()):
        check(image.startswith(RUST), f"{path}: {image} is not {RUST}, as in rust-toolchain.toml")


def checks(shopbell):
    lines = instructions()
    images_and_versions(lines)
    workflow()
    runtime(lines)
    context(lines, shopbell)
