"""The verdict of a run, as a table for people and as JSON for programs."""

import json
from collections import Counter
from typing import Any

import amounts
from findings import BAD_COLUMNS, Findings
from health import Recovery
from model import Run

GOOD, BAD, CANNOT_JUDGE = 0, 1, 2
VERDICTS = {GOOD: "good", BAD: "bad", CANNOT_JUDGE: "cannot judge"}

# Most problems that the report shows.
PROBLEMS_MAX = 20

# Counts that the verdict shows first.
PROOF = ("attempted", "confirmed", "stored", "delivered", "acknowledged")


def summarise(run: Run | None, problems: list[str], counts: Counter[str], findings: Findings, recoveries: list[Recovery]) -> dict[str, Any]:
    settings = run.settings if run else {}
    if run and not problems:
        problems = amounts.problems(run, counts) + [f"{column} was not judged" for column in _unjudged(run, findings)]
    is_bad = any(findings.counts[column] for column in BAD_COLUMNS)
    status = BAD if is_bad else CANNOT_JUDGE if problems else GOOD
    verdict = VERDICTS[status] + (", without faults" if status == GOOD and not settings["scenarios"] else "")
    slowest = max((recovery.seconds for recovery in recoveries if recovery.seconds is not None), default=None)
    columns = {**{column: counts[column] for column in PROOF}, **{column: _value(findings, column) for column in BAD_COLUMNS}}
    return {
        "status": status,
        "verdict": verdict,
        "seed": settings.get("seed"),
        "seconds": settings.get("seconds"),
        "scenarios": settings.get("scenarios"),
        "versions": settings.get("versions"),
        "columns": columns | {"slowest_recovery_seconds": slowest},
        "also": {column: count for column, count in sorted(counts.items()) if column not in PROOF},
        "without_effect": [
            {"fault": fault.name, "number": fault.number, "target": fault.target}
            for fault in (run.faults.values() if run else ()) if fault.effect == 0],
        "evidence": {
            column: [{"text": evidence.text, "at": [run.place(at) for at in evidence.at]} for evidence in shown]
            for column, shown in findings.evidence.items()} if run else {},
        "recoveries": [
            {"fault": recovery.fault.name, "number": recovery.fault.number, "target": recovery.fault.target,
             "seconds": recovery.seconds} for recovery in recoveries],
        "problems": problems[:PROBLEMS_MAX],
    }


def _value(findings: Findings, column: str) -> int | None:
    """None for a column without a comparison."""
    return findings.counts[column] if findings.counts[column] or findings.comparisons[column] else None


def _unjudged(run: Run, findings: Findings) -> list[str]:
    """Columns that compared nothing, although the run can break their promise."""
    excused = set()
    if not run.settings.get("ordered", True):
        excused.add("reordered")
    if amounts.is_short(run):
        excused.add("readiness_untrue")
    if not run.settings["scenarios"]:
        excused.add("recovery_above_bound")
    return [column for column in BAD_COLUMNS if _value(findings, column) is None and column not in excused]


def as_json(verdict: dict[str, Any]) -> str:
    return json.dumps(verdict, indent=2)


def as_table(verdict: dict[str, Any]) -> str:
    lines = [f"seed {verdict['seed']}, {verdict['seconds']} s, {', '.join(verdict['scenarios'] or ['no fault'])}", ""]
    for column, value in (verdict["columns"] | verdict["also"]).items():
        mark = "!" if column in BAD_COLUMNS and value else " "
        lines.append(f"{mark} {column:26} {'-' if value is None else value:>12}")
    for column, shown in verdict["evidence"].items():
        lines += ["", f"{column}: {verdict['columns'][column]}, for example"]
        for evidence in shown:
            lines.append(f"  {evidence['text']}")
            lines += [f"    {place}" for place in evidence["at"]]
    if verdict["without_effect"]:
        lines += ["", "faults without effect:", *(f"  {fault['fault']} {fault['number']} ({fault['target']})" for fault in verdict["without_effect"])]
    if verdict["problems"]:
        lines += ["", "problems:", *(f"  {problem}" for problem in verdict["problems"])]
    return "\n".join([*lines, "", f"verdict: {verdict['verdict']}"])
