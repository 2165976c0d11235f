"""What the checks read: the checkout, what of it an image's build gets, and the complaints about both."""

import re
import subprocess
from pathlib import Path

from ruamel.yaml import YAML, YAMLError

COMPLAINTS = []


def check(holds, complaint):
    if not holds:
        COMPLAINTS.append(complaint)


def yaml(path):
    try:
        return YAML(typ="safe").load(Path(path))
    except YAMLError as error:
        raise SystemExit(f"containers: {path} is not YAML: {error}") from error


def tracked():
    """The files of the checkout, those that are not committed yet with them."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [path for path in listed if Path(path).is_file()]


def is_sent(path):
    """Whether .dockerignore lets a file through: the last line that matches decides. It knows the lines that are there, plain
    paths and `*`; another one is refused, so that this cannot be wrong in silence."""
    sent = True
    for line in Path(".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        if pattern != "*" and re.search(r"[*?\[\\]", pattern):
            raise SystemExit(f"containers: .dockerignore: {line}: only `*` and plain paths are understood here")
        if pattern == "*" or path == pattern or path.startswith(f"{pattern}/"):
            sent = line.startswith("!")
    return sent
