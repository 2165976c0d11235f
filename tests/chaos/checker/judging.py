"""Reads a run, runs every check, and sums up."""

from collections import Counter
from pathlib import Path
from typing import Any

import acks
import amounts
import counters
import delivery
import health
import numbering
import publishing
import reading
import report
import sessions
from findings import Findings


def judge(directory: Path) -> dict[str, Any]:
    findings = Findings()
    try:
        run = reading.read(directory)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return report.summarise(None, [f"{type(error).__name__}: {error}"], Counter(), findings, [])
    if run.problems:
        return report.summarise(run, run.problems, Counter(), findings, [])
    numbers = numbering.build(run)
    counts = publishing.check(run, numbers, findings)
    sessions.check(run, numbers, findings)
    delivery.check(run, numbers, findings)
    counters.check(run, numbers, findings)
    counts += acks.check(run, numbers, findings)
    recoveries = health.check(run, counts, findings)
    amounts.count(run, counts)
    return report.summarise(run, [], counts, findings, recoveries)
