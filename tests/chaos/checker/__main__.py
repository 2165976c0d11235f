"""Judges one chaos run from its directory alone. HISTORY.md describes the directory and the verdict.

usage: python3 tests/chaos/checker DIR [--json]
status: 0 good, 1 a bad column is not 0, 2 the run cannot be judged"""

import argparse
import gc
import sys
from pathlib import Path

import report
from judging import judge


def main() -> int:
    parser = argparse.ArgumentParser(prog="checker", description="Judges one chaos run from its directory.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--json", action="store_true", help="print the verdict as JSON")
    arguments = parser.parse_args()
    # Half a million records live until the end, so a collection would free nothing.
    gc.disable()
    verdict = judge(arguments.directory)
    print(report.as_json(verdict) if arguments.json else report.as_table(verdict))
    return verdict["status"]


if __name__ == "__main__":
    sys.exit(main())
