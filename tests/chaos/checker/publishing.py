"""Checks that each confirmed event is stored once, in the order of its publisher, and that nothing else is stored."""

from collections import Counter

from findings import Findings
from numbering import EXPIRY_TOLERANCE, Numbering, effective_collapse_key, frames
from reading import Ack, Event, Run


def check(run: Run, numbering: Numbering, findings: Findings) -> Counter[str]:
    counts = Counter(attempted=len(run.events), stored=len(numbering.stored))
    delivered = {frame.event for frame in frames(run)}
    counts["delivered"] = len(delivered)
    counts["acknowledged"] = len(delivered & _acknowledged(run, numbering))
    dead = _elsewhere(run, "dead_letters")
    unroutable = _elsewhere(run, "unroutable")
    counts["dead_lettered"] = len(dead)
    counts["unroutable"] = len(unroutable)
    unseen: dict[str, list[Event]] = {}

    for number, event in run.events.items():
        if event.confirmed is None:
            continue
        counts["confirmed"] += 1
        if number in numbering.stored or number in dead or number in unroutable:
            continue
        if _may_be_removed(run, numbering, number, event, number in delivered):
            counts["removed"] += 1
            counts["stored"] += 1
            if number not in delivered:
                unseen.setdefault(event.feed, []).append(event)
        elif _may_be_lost(run, numbering, event):
            counts["lost_as_announced"] += 1
        else:
            findings.add("lost", f"{event.source} {event.id} for {event.feed} was confirmed, but neither stored nor "
                         "dead-lettered", event.at)

    _removed(numbering, unseen, findings)
    _dead_letters(run, dead, findings)
    _rows(run, numbering, findings)
    _frames(run, numbering, findings)
    if run.settings.get("ordered", True):
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


def _may_be_removed(run: Run, numbering: Numbering, number: int, event: Event, was_delivered: bool) -> bool:
    """The retention removes a notification that everyone has, that expired, or that a newer one replaced."""
    feed = numbering.feed(event.feed)
    if feed.trimmed_seq == 0:
        return False
    if event.expires_at is not None and event.expires_at <= run.last + EXPIRY_TOLERANCE:
        return True
    if effective_collapse_key(event) is not None:
        return True
    seqs = (seq for seq, other in numbering.numbers.get((event.feed, numbering.epoch), {}).items() if other == number)
    return was_delivered and any(feed.is_trimmed(seq) for seq in seqs)


def _removed(numbering: Numbering, unseen: dict[str, list[Event]], findings: Findings) -> None:
    """Nobody got these, so their numbers are unknown. But each had one, and a feed has no more events than numbers."""
    if numbering.renewed is not None:
        return
    for feed, events in unseen.items():
        known = set(numbering.numbers.get((feed, numbering.epoch), {}).values())
        excess = len(known) + len(events) - numbering.feed(feed).last_seq
        for event in events[:max(excess, 0)]:
            findings.add("lost", f"{excess} of {len(events)} removed events of {feed} never had a number, perhaps {event.source} {event.id}", event.at)


def _may_be_lost(run: Run, numbering: Numbering, event: Event) -> bool:
    """A standby that lagged lost the event, and a new epoch protects everything after it."""
    return run.is_lossy and numbering.renewed is not None and event.confirmed is not None and event.confirmed < numbering.renewed


def _dead_letters(run: Run, dead: dict[int, int], findings: Findings) -> None:
    for number, at in dead.items():
        event = run.events.get(number)
        if event is None or not event.poison:
            findings.add("unexpected", f"{run.name(number)} is a dead letter, but no event that must be one", at)


def _rows(run: Run, numbering: Numbering, findings: Findings) -> None:
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


def _frames(run: Run, numbering: Numbering, findings: Findings) -> None:
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
        elif not _is_kept(run, numbering, frame.feed, frame.epoch, frame.seq, frame.event):
            reported.add(place)
            event = run.events[frame.event]
            if event.confirmed is None or event.feed != frame.feed:
                findings.add("lost", f"{name} was delivered as {frame.feed} {frame.seq}, but is not stored", frame.at)


def _is_kept(run: Run, numbering: Numbering, feed: str, epoch: str, seq: int, event: int) -> bool:
    """A delivered notification is stored until the retention removes it. A standby that lagged may lose it."""
    if any(row.feed == feed for row in numbering.stored.get(event, ())):
        return True
    return numbering.feed(feed).is_trimmed(seq) or (run.is_lossy and epoch != numbering.epoch)


def _order(run: Run, numbering: Numbering, findings: Findings) -> None:
    """The numbers of a feed have the order of each of its publishers. A refused event was published again later."""
    newest: dict[tuple[str, str], tuple[int, int]] = {}
    for row in run.rows:
        event = run.events.get(row.event)
        if event is None or event.n is None or event.refused or event.feed != row.feed:
            continue
        key = (row.feed, event.publisher)
        n, at = newest.get(key, (0, 0))
        if event.n < n:
            findings.add("reordered", f"{row.feed} {row.seq} is event {event.n} of {event.publisher}, after its event {n}", row.at, at)
        elif event.n > n:
            newest[key] = (event.n, row.at)
