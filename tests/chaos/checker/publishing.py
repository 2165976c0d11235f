"""Checks that each confirmed event is stored once, in the order of its publisher, and that nothing else is stored."""

from collections import Counter

from findings import Findings
from losses import Losses
from model import Ack, Run
from numbering import Numbering, frames
from removals import Removals


def check(run: Run, numbering: Numbering, findings: Findings) -> Counter[str]:
    counts = Counter(attempted=len(run.events), stored=len(numbering.stored))
    delivered = numbering.delivered.keys()
    counts["delivered"] = len(delivered)
    counts["acknowledged"] = len(delivered & _acknowledged(run, numbering))
    dead = _elsewhere(run, "dead_letters")
    unroutable = _elsewhere(run, "unroutable")
    counts["dead_lettered"] = len(dead)
    counts["unroutable"] = len(unroutable)
    losses = Losses(run, numbering)
    removals = Removals(run, numbering)

    for number, event in run.events.items():
        if event.confirmed is None:
            continue
        counts["confirmed"] += 1
        if number in numbering.stored or number in dead or number in unroutable:
            continue
        if removals.explain(number, event):
            counts["removed"] += 1
            counts["stored"] += 1
        elif losses.may_lose(event, numbering.delivered.get(number)):
            counts["lost_as_announced"] += 1
        else:
            findings.add("lost", f"{event.source} {event.id} for {event.feed} was confirmed, but neither stored nor "
                         "dead-lettered", event.at)

    removals.check_numbers(findings)
    findings.judged("lost", counts["confirmed"])
    findings.judged("unexpected", len(run.rows))
    findings.judged("duplicated", len(run.rows))
    _dead_letters(run, dead, findings)
    _rows(run, numbering, findings)
    _frames(run, numbering, losses, findings)
    _order(run, numbering, findings)
    return counts


def _acknowledged(run: Run, numbering: Numbering) -> set[int]:
    """Events at or below the highest ack of their feed and epoch."""
    acked: dict[tuple[str, str], int] = {}
    for session in run.sessions.values():
        for item in session.items:
            if isinstance(item, Ack) and item.feed in session.starts:
                key = (item.feed, session.starts[item.feed].epoch)
                acked[key] = max(acked.get(key, 0), item.seq)
    return {event for key, seq in acked.items() for number, event in numbering.numbers.get(key, {}).items() if number <= seq}


def _elsewhere(run: Run, table: str) -> dict[int, int]:
    """The place of each event in a table of events that are not stored."""
    return {run.event(row["source"], row["event_id"]): at for at, row in run.tables[table] if row.get("event_id") is not None}


def _dead_letters(run: Run, dead: dict[int, int], findings: Findings) -> None:
    for number, at in dead.items():
        event = run.events.get(number)
        if event is None or not event.poison:
            findings.add("unexpected", f"{run.name(number)} is a dead letter, but no event that must be one", at)


def _rows(run: Run, numbering: Numbering, findings: Findings) -> None:
    for first, second in numbering.twice:
        findings.add("duplicated", f"{first.feed} {first.seq} is stored twice", first.at, second.at)
    for number, rows in numbering.stored.items():
        event = run.events.get(number)
        for row in rows:
            if event is None:
                findings.add("unexpected", f"{run.name(number)} is {row.feed} {row.seq}, but was never published", row.at)
            elif event.poison:
                findings.add("unexpected", f"{run.name(number)} is {row.feed} {row.seq}, but must be a dead letter", row.at, event.at)
            elif event.feed != row.feed:
                findings.add("leaked", f"{run.name(number)} was published for {event.feed}, but is {row.feed} {row.seq}", row.at, event.at)
            own, foreign = secrets(run, row.feed, row.secrets)
            if foreign:
                findings.add("leaked", f"{row.feed} {row.seq} has the secret of {foreign}", row.at)
            elif not own:
                findings.add("unexpected", f"{row.feed} {row.seq} does not have the secret of its feed", row.at)
        for feed, times in Counter(row.feed for row in rows).items():
            if times > 1:
                places = [row.at for row in rows if row.feed == feed]
                findings.add("duplicated", f"{run.name(number)} is stored {times} times in {feed}", *places)


def secrets(run: Run, feed: str, found: tuple[str, ...]) -> tuple[bool, str | None]:
    """Whether the data have the secret of the feed, and another merchant whose secret they have."""
    own = run.secrets.get(feed)
    foreign = [secret for secret in found if secret != own]
    if not foreign:
        return own is None or own in found, None
    owners = [owner for owner, secret in run.secrets.items() if secret == foreign[0]]
    return own in found, owners[0] if owners else "nobody"


def _frames(run: Run, numbering: Numbering, losses: Losses, findings: Findings) -> None:
    """Compares each received frame with the final tables, and with the frames of other sessions."""
    seqs: dict[tuple[str, str], dict[int, int]] = {}
    reported: set[tuple[str, str, int]] = set()
    for frame in frames(run):
        place = (frame.feed, frame.epoch, frame.seq)
        if place in reported:
            continue
        name = run.name(frame.event)
        if frame.event not in run.events:
            reported.add(place)
            findings.add("unexpected", f"{frame.feed} {frame.seq} is {name}, but was never published", frame.at)
        elif numbering.event(*place) != frame.event:
            reported.add(place)
            other = numbering.event(*place)
            findings.add("duplicated", f"{frame.feed} {frame.seq} is {name} here and {run.name(other or 0)} elsewhere, "
                         f"both in the epoch {frame.epoch}", frame.at)
        elif seqs.setdefault((frame.feed, frame.epoch), {}).setdefault(frame.event, frame.seq) != frame.seq:
            reported.add(place)
            findings.add("duplicated", f"{name} is {frame.feed} {frame.seq} and {seqs[frame.feed, frame.epoch][frame.event]}, "
                         f"both in the epoch {frame.epoch}", frame.at)
        elif not _is_kept(run, numbering, losses, frame.feed, frame.epoch, frame.seq, frame.event):
            reported.add(place)
            event = run.events[frame.event]
            if event.confirmed is None or event.feed != frame.feed:
                findings.add("lost", f"{name} was delivered as {frame.feed} {frame.seq}, but is not stored", frame.at)


def _is_kept(run: Run, numbering: Numbering, losses: Losses, feed: str, epoch: str, seq: int, event: int) -> bool:
    """A delivered notification is stored until the retention removes it. A standby that lagged may lose it."""
    if any(row.feed == feed for row in numbering.stored.get(event, ())):
        return True
    if epoch == numbering.epoch and numbering.feed(feed).is_trimmed(seq):
        return True
    return losses.may_lose(run.events[event], numbering.delivered.get(event))


def _order(run: Run, numbering: Numbering, findings: Findings) -> None:
    """The numbers of a feed have the order of each of its publishers. A refused event was published again later.

    If a fault of the run may break the order, only the numbers that were delivered before it are compared."""
    until = _ordered_until(run)
    if until is None:
        bound: dict[str, int] | None = None
    else:
        bound = {}
        for frame in frames(run):
            if frame.t < until and frame.epoch == numbering.epoch:
                bound[frame.feed] = max(frame.seq, bound.get(frame.feed, 0))
    newest: dict[tuple[str, str], tuple[int, int]] = {}
    for row in run.rows:
        event = run.events.get(row.event)
        if event is None or event.n is None or event.refused or event.feed != row.feed:
            continue
        if bound is not None and row.seq > bound.get(row.feed, 0):
            continue
        key = (row.feed, event.publisher)
        findings.judged("reordered", int(key in newest))
        n, at = newest.get(key, (0, 0))
        if event.n < n:
            findings.add("reordered", f"{row.feed} {row.seq} is event {event.n} of {event.publisher}, after its event {n}", row.at, at)
        elif event.n > n:
            newest[key] = (event.n, row.at)


def _ordered_until(run: Run) -> int | None:
    """The first fault after which the documentation allows another order."""
    if run.settings.get("ordered", True):
        return None
    breaking = run.settings.get("reordering_faults")
    return min((fault.begun for fault in run.faults.values() if breaking is None or fault.name in breaking), default=run.last)
