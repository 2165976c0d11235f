"""Checks the counters of feeds, imports and marks against the rows, and the counts that sessions received."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from findings import Findings
from model import Ack, Event, Frame, Mark, Report, Row, Run, Skip
from numbering import Feed, Numbering

# The rows of `marks` with their places, by feed and version.
Marks = dict[str, dict[int, tuple[int, dict[str, Any]]]]


def check(run: Run, numbering: Numbering, findings: Findings) -> None:
    marks: Marks = {}
    for at, mark in run.tables["marks"]:
        marks.setdefault(mark["feed"], {})[mark["version"]] = (at, mark)
    _feeds(run, numbering, findings)
    _versions(run, numbering, marks, findings)
    _cursors(run, numbering, findings)
    _imports(run, numbering, findings)
    _confirmed_marks(run, numbering, findings)
    _unasked_marks(run, findings)
    _received_versions(run, numbering, marks, findings)
    _received_counts(run, numbering, marks, findings)


def _feeds(run: Run, numbering: Numbering, findings: Findings) -> None:
    places = {row["feed"]: (at, row) for at, row in run.tables["feeds"]}
    published = {event.feed for event in run.events.values()}
    acked = _highest_acks(run, numbering)
    for name, feed in numbering.feeds.items():
        if name not in places:
            first = next(iter(feed.rows.values()))
            findings.add("count_mismatch", f"{name} has notifications, but no row in feeds", first.at)
            continue
        at, counters = places[name]
        newest = max(feed.rows, default=0)
        if newest > feed.last_seq:
            findings.add("count_mismatch", f"{name}: last_seq is {feed.last_seq}, but {newest} is stored", at)
        missing = [seq for seq in range(feed.trimmed_seq + 1, feed.last_seq + 1) if seq not in feed.rows]
        if missing:
            findings.add("count_mismatch", f"{name}: {len(missing)} numbers up to last_seq {feed.last_seq} are missing, the "
                         f"first is {missing[0]}", at)
        if not 0 <= feed.trimmed_seq <= feed.last_seq:
            findings.add("count_mismatch", f"{name}: trimmed_seq is {feed.trimmed_seq}, but last_seq {feed.last_seq}", at)
        reached = numbering.reached.get(name)
        if reached is not None and reached[0] > feed.last_seq:
            findings.add("count_mismatch", f"{name}: {reached[0]} was received or acked, but last_seq is {feed.last_seq}", at, reached[1])
        if feed.last_seq > 0 and name not in published:
            findings.add("unexpected", f"{name} has numbers, but nothing was published for it", at)
        highest = max((row["acked_seq"] for _, row in run.tables["cursors"] if row["feed"] == name), default=0)
        # It is raised some time after the cursors.
        if counters["acked_seq"] > max(highest, acked.get(name, 0)):
            findings.add("count_mismatch", f"{name}: acked_seq is {counters['acked_seq']}, but the highest cursor is {highest} and the "
                         f"highest ack {acked.get(name, 0)}", at)
        findings.judged("count_mismatch", 1)
        oldest = min(feed.rows, default=feed.last_seq + 1)
        if oldest <= feed.trimmed_seq:
            findings.add("count_mismatch", f"{name}: {oldest} is stored, but numbers up to {feed.trimmed_seq} are removed", at)
        oldest_unread = min((row.seq for row in feed.rows.values() if not row.read), default=feed.last_seq + 1)
        if oldest_unread <= counters.get("read_seq", 0):
            findings.add("count_mismatch", f"{name}: {oldest_unread} is unread, but read_seq is {counters['read_seq']}", at)
        unread = sum(not row.read for row in feed.rows.values())
        unhandled = sum(not row.handled for row in feed.rows.values())
        for column, rows in (("unread", unread), ("unhandled", unhandled)):
            if counters[column] != rows:
                findings.add("count_mismatch", f"{name}: {column} is {counters[column]}, but {rows} rows are", at)


def _highest_acks(run: Run, numbering: Numbering) -> dict[str, int]:
    """The highest ack of anyone in the final epoch, by feed."""
    acked: dict[str, int] = {}
    for session in run.sessions.values():
        for item in session.items:
            if isinstance(item, Ack) and item.feed in session.starts and session.starts[item.feed].epoch == numbering.epoch:
                acked[item.feed] = max(item.seq, acked.get(item.feed, 0))
    return acked


def _versions(run: Run, numbering: Numbering, marks: Marks, findings: Findings) -> None:
    for at, feed in run.tables["feeds"]:
        of_feed = marks.get(feed["feed"], {})
        newest = max(of_feed, default=0)
        if newest != feed["version"]:
            findings.add("count_mismatch", f"{feed['feed']}: version is {feed['version']}, but the newest mark is {newest}", at)
        elif of_feed and newest - min(of_feed) + 1 != len(of_feed):
            findings.add("count_mismatch", f"{feed['feed']}: the versions of its marks have a gap", at)
    for feed_name, of_feed in marks.items():
        rows = numbering.feed(feed_name).rows
        for version, (at, mark) in of_feed.items():
            seqs = [seq for seq in rows if seq <= mark["through"]] if mark["seqs"] is None else mark["seqs"]
            missing = [seq for seq in seqs if seq in rows and not _has(rows[seq], mark["kind"])]
            if missing:
                findings.add("count_mismatch", f"{feed_name}: version {version} marked {missing[0]} as {mark['kind']}, but its "
                             "row is not", at)


def _has(row: Row, kind: str) -> bool:
    return row.read if kind == "read" else row.handled


def _cursors(run: Run, numbering: Numbering, findings: Findings) -> None:
    for at, cursor in run.tables["cursors"]:
        last_seq = numbering.feed(cursor["feed"]).last_seq
        if cursor["acked_seq"] > last_seq:
            findings.add("count_mismatch", f"{cursor['feed']}: the cursor of {cursor['subscriber']}, device {cursor['device']} is "
                         f"{cursor['acked_seq']}, but last_seq is {last_seq}", at)
    for session in run.sessions.values():
        for name, start in session.starts.items():
            if start.epoch == numbering.epoch and start.last_seq > numbering.feed(name).last_seq:
                findings.add("count_mismatch", f"session {session.name} had last {start.last_seq} of {name}, but last_seq is "
                             f"{numbering.feed(name).last_seq} at the end", session.at)


@dataclass(slots=True)
class Import:
    """The progress of an import, counted from its stored events as docs/publishing.md describes."""
    items: dict[int, bool] = field(default_factory=dict)  # whether each failed
    total: int | None = None
    status: str = "running"
    started: bool = False
    ended: bool = False
    knows_total: bool = True
    knows_status: bool = True
    newest: Row | None = None

    def add(self, event: Event, row: Row | None) -> None:
        if event.type == "import.started":
            if self.started and self.ended:
                self.items, self.total, self.status, self.ended = {}, None, "running", False
            self.started = True
            self.total = event.total
            self.knows_total = event.total is not None
        elif event.type == "import.finished":
            self.ended = True
            self.status = event.status or "finished"
            self.knows_status = event.status is not None
        elif event.item is not None:
            self.items[event.item] = event.failed
        self.newest = row


def _imports(run: Run, numbering: Numbering, findings: Findings) -> None:
    stored = {(row["feed"], row["import_id"]): (at, row) for at, row in run.tables["imports"]}
    counted, unknown = _count_imports(run, numbering)
    for key, progress in counted.items():
        name = f"{key[0]}: import {key[1]}"
        if key not in stored:
            findings.add("count_mismatch", f"{name} has events, but no row in imports", *([progress.newest.at] if progress.newest else []))
            continue
        at, row = stored[key]
        done, failed = len(progress.items), sum(progress.items.values())
        expected = {"done": done, "failed": failed}
        if progress.knows_total:
            expected["total"] = progress.total
        if progress.knows_status:
            expected["status"] = progress.status
        wrong = [f"{column} is {row[column]} instead of {value}" for column, value in expected.items() if row[column] != value]
        if progress.newest and progress.newest.progress[0] is not None and progress.newest.progress != (done, failed):
            wrong.append(f"its newest notification has the progress {progress.newest.progress} instead of {(done, failed)}")
        if wrong:
            findings.add("count_mismatch", f"{name}: {', '.join(wrong)}", at)
    for key, (at, _) in stored.items():
        if key not in counted and key[0] not in unknown:
            findings.add("count_mismatch", f"{key[0]}: import {key[1]} has a row in imports, but no stored event", at)
    bits: dict[tuple[str, str], int] = {}
    for _, row in run.tables["import_items"]:
        key = (row["feed"], row["import_id"])
        if key in stored and row["run"] == stored[key][1]["run"]:
            bits[key] = bits.get(key, 0) + row["seen"].count("1")
    for key, (at, row) in stored.items():
        seen = bits.get(key, 0)
        if seen != row["done"]:
            findings.add("count_mismatch", f"{key[0]}: import {key[1]}: done is {row['done']}, but {seen} items are seen", at)


def _count_imports(run: Run, numbering: Numbering) -> tuple[dict[tuple[str, str], Import], set[str]]:
    """The imports of all feeds whose events are all known, and the other feeds: nobody received a removed event."""
    counted: dict[tuple[str, str], Import] = {}
    unknown: set[str] = set()
    for name, feed in numbering.feeds.items():
        numbers = [numbering.event(name, numbering.epoch, seq) for seq in range(1, feed.last_seq + 1)]
        if any(event is None for event in numbers):
            unknown.add(name)
            continue
        for seq, number in enumerate(numbers, 1):
            event = run.events.get(number) if number is not None else None
            if event is not None and event.import_id is not None:
                counted.setdefault((name, event.import_id), Import()).add(event, feed.rows.get(seq))
    return counted, unknown


def _confirmed_marks(run: Run, numbering: Numbering, findings: Findings) -> None:
    findings.judged("count_mismatch", len(run.marks["confirmed"]))
    for mark in run.marks["confirmed"]:
        session = run.sessions[mark.session]
        if mark.feed not in session.starts or session.starts[mark.feed].epoch != numbering.epoch:
            continue
        rows = numbering.feed(mark.feed).rows
        for seq in _marked(run, mark, rows):
            if seq in rows and not _has(rows[seq], mark.kind):
                findings.add("count_mismatch", f"{mark.feed} {seq} was confirmed as {mark.kind}, but its row is not", mark.at, rows[seq].at)
                break


def _marked(run: Run, mark: Mark, rows: dict[int, Row]) -> Iterable[int]:
    """The numbers of a mark. A mark of all up to a number does not mark later notifications."""
    if mark.through is None:
        return mark.seqs
    session = run.sessions[mark.session]
    got = [item.seq if isinstance(item, Frame) else item.last
           for item in session.items if isinstance(item, Frame | Skip) and item.feed == mark.feed and item.t <= mark.t]
    upper = min(mark.through, max([session.starts[mark.feed].last_seq, *got]))
    return [seq for seq in rows if seq <= upper]


def _unasked_marks(run: Run, findings: Findings) -> None:
    asked: dict[tuple[str, str], set[int]] = {}
    through: dict[tuple[str, str], int] = {}
    for mark in run.marks["invoked"]:
        key = (mark.feed, mark.kind)
        asked.setdefault(key, set()).update(mark.seqs)
        through[key] = max(through.get(key, 0), mark.through or 0)
    for row in run.rows:
        event = run.events.get(row.event)
        if event is None or _is_imported(event):
            continue
        for kind in ("read", "handled"):
            key = (row.feed, kind)
            if _has(row, kind) and row.seq not in asked.get(key, ()) and row.seq > through.get(key, 0):
                findings.add("count_mismatch", f"{row.feed} {row.seq} is {kind}, but nobody asked for it", row.at)


def _is_imported(event: Event) -> bool:
    """Ingest stores an imported item as read and handled."""
    return event.type == "import.item" and not event.failed


def _received_versions(run: Run, numbering: Numbering, marks: Marks, findings: Findings) -> None:
    """A session received a version only after it was stored. So the feed still has it, and the mark is the same."""
    newest = {row["feed"]: (row["version"], at) for at, row in run.tables["feeds"]}
    reported: set[str] = set()
    for report in run.reports:
        session = run.sessions[report.session]
        if report.version is None or report.feed not in session.starts or report.feed in reported:
            continue
        if session.starts[report.feed].epoch != numbering.epoch:
            continue
        version, at = newest.get(report.feed, (0, None))
        if report.version > version:
            reported.add(report.feed)
            findings.add("count_mismatch", f"session {report.session} received version {report.version} of {report.feed}, but the "
                         f"newest one is {version} at the end", report.at, *(() if at is None else (at,)))
            continue
        found = marks.get(report.feed, {}).get(report.version)
        if found is None or not report.is_state or report.kind is None:
            continue
        stored = (found[1]["kind"], found[1]["through"], None if found[1]["seqs"] is None else set(found[1]["seqs"]))
        if (report.kind, report.through) != stored[:2] or (report.seqs is not None and stored[2] is not None and not stored[2] >= set(report.seqs)):
            reported.add(report.feed)
            findings.add("count_mismatch", f"session {report.session} received version {report.version} of {report.feed} as {report.kind} "
                         f"of other notifications than the stored mark", report.at, found[0])


def _received_counts(run: Run, numbering: Numbering, marks: Marks, findings: Findings) -> None:
    """The counts at a version and a number are those of the mark, and the news that were stored after it."""
    news: dict[str, list[int]] = {}
    for report in run.reports:
        session = run.sessions[report.session]
        if report.last is None or report.feed not in session.starts:
            continue
        if session.starts[report.feed].epoch != numbering.epoch:
            continue
        feed = numbering.feed(report.feed)
        if report.version is None:
            _final_count(run, report, feed, findings)
            continue
        found = marks.get(report.feed, {}).get(report.version)
        if found is None and report.version > 0 or feed.trimmed_seq > 0:
            continue
        if report.feed not in news:
            news[report.feed] = _count_news(run, numbering, report.feed)
        before = news[report.feed]
        base = found[1] if found else {"unread": 0, "unhandled": 0, "last_seq": 0}
        if not base["last_seq"] <= report.last < len(before):
            findings.add("count_mismatch", f"session {report.session} received the counts of {report.feed} up to {report.last}, but "
                         f"version {report.version} has {base['last_seq']} and the feed {feed.last_seq}", report.at)
            continue
        added = before[report.last] - before[base["last_seq"]]
        for column, value in (("unread", report.unread), ("unhandled", report.unhandled)):
            if value != base[column] + added:
                findings.add("count_mismatch", f"session {report.session} received {column} {value} of {report.feed} at version "
                             f"{report.version} and {report.last}, but it was {base[column] + added}", report.at)


def _final_count(run: Run, report: Report, feed: Feed, findings: Findings) -> None:
    """A reply without a version has the present counts. After `drained` these are the final ones."""
    if run.drained is None or report.t < run.drained or report.last != feed.last_seq:
        return
    rows = feed.rows.values()
    final = (sum(not row.read for row in rows), sum(not row.handled for row in rows))
    if (report.unread, report.unhandled) != final:
        findings.add("count_mismatch", f"session {report.session} received {report.unread} unread and {report.unhandled} unhandled "
                     f"of {report.feed} at the end, but it has {final[0]} and {final[1]}", report.at)


def _count_news(run: Run, numbering: Numbering, name: str) -> list[int]:
    """For each number: how many notifications up to it were stored as news."""
    feed = numbering.feed(name)
    counts = [0]
    for seq in range(1, feed.last_seq + 1):
        row = feed.rows.get(seq)
        event = None if row is None else run.events.get(row.event)
        counts.append(counts[-1] + (event is not None and not _is_imported(event)))
    return counts
