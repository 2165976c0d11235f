"""Reads the directory of a run into typed records. HISTORY.md describes the files.

It judges nothing. A file or line that does not have the form of HISTORY.md is a problem, and then no verdict is
possible."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from sys import intern
from typing import Any

from model import (
    LINES_PER_FILE, UNOPENED, Ack, Device, Event, Fault, Frame, Mark, Report, Row, Run, Sample, Session, Skip, Start, Table,
)

# Canaries publish events to themselves. They are no part of the load.
CANARY_PREFIX = "shopbell-canary/"

TABLES = ("feeds", "notifications", "cursors", "marks", "imports", "import_items", "dead_letters", "epochs")
OPTIONAL_TABLES = ("unroutable",)


def read(directory: Path) -> Run:
    settings, secrets, devices = (_object(directory / name) for name in ("run.json", "secrets.json", "devices.json"))
    run = Run(settings, secrets, {
        (device["subscriber"], device["device"]): Device(
            frozenset(device["feeds"]), device["offline"], device.get("stored_as", device["device"]))
        for device in devices})
    for name in ("broadcast_feed", "window", "replicas", "bounds", "floors", "scenarios", "seed"):
        if name not in settings:
            run.problems.append(f"run.json has no {name}")
    _read_history(run, directory)
    for table in (*TABLES, *OPTIONAL_TABLES):
        run.tables[table] = Table()
        path = directory / "database" / f"{table}.jsonl"
        if path.exists():
            run.tables[table].rows = [(at, row) for at, row in _lines(run, path, f"database/{table}.jsonl")
                                      if not str(row.get("feed") or "").startswith(CANARY_PREFIX)]
        elif table in TABLES:
            run.problems.append(f"database/{table}.jsonl is missing")
    _convert_rows(run)
    if len(run.tables["epochs"].rows) != 1:
        run.problems.append("database/epochs.jsonl does not have one row")
    run.problems += _gaps_of_the_record(run)
    return run


def _gaps_of_the_record(run: Run) -> Iterator[str]:
    """Without these a check would pass because it has nothing to compare."""
    if run.healed is None or run.drained is None:
        yield "the history has no healed or no drained"
    for replica in run.settings.get("replicas", ()):
        if replica not in run.memory:
            yield f"{replica} has no sample of its memory"
    for feed in sorted({event.feed for event in run.events.values() if not event.poison} - run.secrets.keys()):
        if feed != run.settings.get("broadcast_feed"):
            yield f"secrets.json has no secret for {feed}"


def _object(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _lines(run: Run, path: Path, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    file = len(run.files) * LINES_PER_FILE
    run.files.append(name)
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if isinstance(record, dict):
                yield file + number, record
            else:
                run.problems.append(f"{name}:{number}: the line is no JSON object")


def _read_history(run: Run, directory: Path) -> None:
    records = [(record.get("t"), at, record)
               for path in sorted(directory.glob("*.jsonl"))
               for at, record in _lines(run, path, path.name)]
    untimed = [at for t, at, _ in records if not isinstance(t, int)]
    if untimed:
        run.problems.append(f"{run.place(untimed[0])}: t is no whole number")
        return
    # Stable, so that the lines of one recorder keep their order.
    records.sort(key=lambda entry: entry[0])
    for t, at, record in records:
        kind = record.get("kind")
        reader = READERS.get(kind)
        if reader is None:
            run.problems.append(f"{run.place(at)}: the kind {kind!r} is not in HISTORY.md")
            continue
        try:
            reader(run, t, at, record)
        except (KeyError, TypeError, ValueError) as error:
            run.problems.append(f"{run.place(at)}: {kind}: {type(error).__name__}: {error}")
    run.last = records[-1][0] if records else 0
    for fault in run.faults.values():
        if fault.ended is None:
            run.problems.append(f"{run.place(fault.at)}: the fault never ended")


def _publish_invoked(run: Run, t: int, at: int, record: dict[str, Any]) -> None:
    number = run.event(record["source"], record["id"])
    known = run.events.get(number)
    if known is None:
        failed = bool(record.get("failed", False))
        poison = bool(record.get("poison", False))
        run.events[number] = Event(
            record["source"], record["id"], intern(record["feed"]), intern(record["publisher"]),
            None if poison else record["n"], intern(record["type"]), t, at, record.get("collapse_key"),
            record.get("expires_at"), record.get("import_id"), record.get("item"), failed, record.get("total"),
            record.get("status"), poison)
    elif known.feed != record["feed"]:
        raise ValueError("the event was published to another feed before")


def _publish_confirmed(run: Run, t: int, at: int, record: dict[str, Any]) -> None:
    event = run.events[run.numbers[record["source"], record["id"]]]
    if event.confirmed is None:
        event.confirmed = t


def _publish_refused(run: Run, t: int, at: int, record: dict[str, Any]) -> None:
    """Returned or nacked: its publisher publishes it again, after the events that were not refused."""
    run.events[run.numbers[record["source"], record["id"]]].refused = True


def _publish_unknown(run: Run, t: int, at: int, record: dict[str, Any]) -> None:
    """Nothing to keep: an event without a confirm is unknown already."""
    run.events[run.numbers[record["source"], record["id"]]]


def _session_opened(run: Run, t: int, at: int, record: dict[str, Any]) -> None:
    if record["session"] in run.sessions:
        raise ValueError("the session was opened before")
    device = (record["subscriber"], record["device"])
    if device not in run.devices:
        raise ValueError("devices.json does not have the device")
    starts = {
        intern(feed["feed"]): Start(intern(feed["epoch"]), feed["cursor"], feed["last_seq"], bool(feed.get("after", False)))
        for feed in record["feeds"]}
    run.sessions[record["session"]] = Session(record["session"], device, record["replica"], t, at, starts)


def _frame(run: Run, t: int, at: int, record: dict[str, Any]) -> None:
    event = run.event(record["source"], record["id"])
    run.sessions[record["session"]].items.append(Frame(
        t, at, intern(record["feed"]), intern(record["epoch"] or UNOPENED), record["seq"], event, tuple(record["secrets"])))


def _skipped(run: Run, t: int, at: int, record: dict[str, Any]) -> None:
    run.sessions[record["session"]].items.append(Skip(
        t, at, intern(record["feed"]), record["from"], record["to"], intern(record["reason"])))


def _ack_sent(run: Run, t: int, at: int, record: dict[str, Any]) -> None:
    run.sessions[record["session"]].items.append(Ack(t, at, intern(record["feed"]), record["seq"]))


def _session_closed(run: Run, t: int, at: int, record: dict[str, Any]) -> None:
    session = run.sessions[record["session"]]
    session.closed, session.code, session.clean = t, record["code"], record["clean"]


def _mark(outcome: str) -> Callable[[Run, int, int, dict[str, Any]], None]:
    def read_one(run: Run, t: int, at: int, record: dict[str, Any]) -> None:
        if record["session"] not in run.sessions:
            raise ValueError("the session was not opened")
        if record["mark"] not in ("read", "handled"):
            raise ValueError("a mark is read or handled")
        run.marks[outcome].append(Mark(
            t, at, record["session"], record["mark"], record["feed"], tuple(record.get("seqs") or ()), record.get("through")))
    return read_one


def _report(is_state: bool) -> Callable[[Run, int, int, dict[str, Any]], None]:
    def read_one(run: Run, t: int, at: int, record: dict[str, Any]) -> None:
        if record["session"] not in run.sessions:
            raise ValueError("the session was not opened")
        seqs = record.get("seqs") if is_state else None
        run.reports.append(Report(
            t, at, record["session"], record["feed"], record.get("version"), record.get("unread"), record.get("unhandled"),
            record.get("last"), is_state, _kind_of_mark(record) if is_state else None, None if seqs is None else tuple(seqs), record.get("through")))
    return read_one


def _kind_of_mark(record: dict[str, Any]) -> str | None:
    """None for a state without a mark, such as the one of retention."""
    return "handled" if record.get("handled_at") is not None else "read" if record.get("read_at") is not None else None


def _fault_begun(run: Run, t: int, at: int, record: dict[str, Any]) -> None:
    key = (record["fault"], record["number"])
    if key in run.faults:
        raise ValueError("the fault began before")
    run.faults[key] = Fault(*key, str(record["target"]), frozenset(record["hits"]), record["total"], t, at)


def _fault_ended(run: Run, t: int, at: int, record: dict[str, Any]) -> None:
    fault = run.faults[record["fault"], record["number"]]
    fault.ended, fault.ends_from, fault.effect = t, record.get("ends_from", t), record["effect"]
    fault.effective_from = record.get("effective_from", fault.begun)


def _readiness(run: Run, t: int, at: int, record: dict[str, Any]) -> None:
    run.readiness.setdefault(record["replica"], []).append(Sample(t, at, int(record["status"]), int(record.get("asked", t))))


def _memory(run: Run, t: int, at: int, record: dict[str, Any]) -> None:
    run.memory.setdefault(record["replica"], []).append(Sample(t, at, int(record["rss"]), t))


def _log_leak(run: Run, t: int, at: int, record: dict[str, Any]) -> None:
    run.log_leaks.append((at, record["replica"]))


def _witness(run: Run, t: int, at: int, record: dict[str, Any]) -> None:
    run.witness.append((record["asked"], t, record["answered"]))


def _logs_searched(run: Run, t: int, at: int, record: dict[str, Any]) -> None:
    run.log_lines += record["lines"]


def _healed(run: Run, t: int, at: int, record: dict[str, Any]) -> None:
    run.healed = t


def _drained(run: Run, t: int, at: int, record: dict[str, Any]) -> None:
    run.drained = t
    if record.get("missing") is not None:
        run.missing = (at, str(record["missing"]))


READERS: dict[str | None, Callable[[Run, int, int, dict[str, Any]], None]] = {
    "publish_invoked": _publish_invoked,
    "publish_confirmed": _publish_confirmed,
    "publish_returned": _publish_refused,
    "publish_nacked": _publish_refused,
    "publish_unknown": _publish_unknown,
    "session_opened": _session_opened,
    "frame": _frame,
    "skipped": _skipped,
    "ack_sent": _ack_sent,
    "session_closed": _session_closed,
    "mark_invoked": _mark("invoked"),
    "mark_confirmed": _mark("confirmed"),
    "mark_refused": _mark("refused"),
    "state": _report(is_state=True),
    "counts": _report(is_state=False),
    "fault_begun": _fault_begun,
    "fault_ended": _fault_ended,
    "readiness": _readiness,
    "memory": _memory,
    "log_leak": _log_leak,
    "witness": _witness,
    "logs_searched": _logs_searched,
    "healed": _healed,
    "drained": _drained,
}


def _convert_rows(run: Run) -> None:
    for at, row in run.tables["notifications"]:
        try:
            run.rows.append(Row(
                at, intern(row["feed"]), row["seq"], run.event(row["source"], row["event_id"]), row["collapse_key"],
                row["expires_at"], row["read_at"] is not None, row["handled_at"] is not None, tuple(row["secrets"]),
                (row.get("import_done"), row.get("import_failed"))))
        except KeyError as error:
            run.problems.append(f"{run.place(at)}: {error} is missing")
    run.rows.sort(key=lambda row: (row.feed, row.seq))
