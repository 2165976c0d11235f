"""The files of the checkout, the files that an image build receives, and the list of complaints."""

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
    """The files of the checkout, including those that are not committed."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [path for path in listed if Path(path).is_file()]


def is_sent(path):
    """Whether .dockerignore lets a file through. The last matching line decides. Only plain paths and `*` are
    supported, and other patterns are refused."""
    sent = True
    for line in Path(".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        if pattern != "*" and re.search(r"[*?\[\\]", pattern):
            raise SystemExit(f"containers: .dockerignore: {line}: only `*` and plain paths are supported here")
        if pattern == "*" or path == pattern or path.startswith(f"{pattern}/"):
            sent = line.startswith("!")
    return sent
