"""Checks that each device got everything, and that nothing it acknowledged was sent again."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

from findings import Findings
from numbering import EXPIRY_TOLERANCE, Numbering, effective_collapse_key
from reading import SECOND, Ack, Device, Fault, Frame, Run, Session, Skip

# Cursors are written within about a second (docs/protocol.md, "Acks and the window"). Two more for a slow machine.
WRITTEN_AFTER = 3 * SECOND
# A fault that ends shortly before an ack may still delay its write.
FAULT_BEFORE = SECOND
# After an outage of Postgres, a writer may wait 10 s for a dead connection, and up to 5 s for its next attempt.
OUTAGE_AFTER = 15 * SECOND
# After these closes, acks that the client sent before its own close still count.
CLOSES_THAT_KEEP_ACKS = (1000, 1012, 4401, 4408, 4409)


@dataclass(slots=True)
class Received:
    """Everything that one device got from one feed."""
    events: set[int] = field(default_factory=set)
    skips: list[tuple[Skip, str]] = field(default_factory=list)  # with the epoch of the session


def check(run: Run, numbering: Numbering, findings: Findings) -> None:
    sessions: dict[tuple[str, str], list[Session]] = {}
    for session in run.sessions.values():
        sessions.setdefault(session.device, []).append(session)
    first_acks = _acks_by_feed(run)
    writes = Writes(run)
    for name, device in run.devices.items():
        own = sessions.get(name, [])
        _kept_acks(writes, own, findings)
        if not device.offline:
            _everything(run, numbering, name, device, own, first_acks, findings)
    _removed_too_early(run, numbering, findings)


def _acks_by_feed(run: Run) -> dict[str, list[tuple[int, int]]]:
    """For each feed: the moments at which its highest ack of anyone rose."""
    acks: dict[str, list[tuple[int, int]]] = {}
    ordered = sorted((item.t, item.seq, item.feed)
                     for session in run.sessions.values() for item in session.items if isinstance(item, Ack))
    for t, seq, feed in ordered:
        rises = acks.setdefault(feed, [])
        if not rises or seq > rises[-1][1]:
            rises.append((t, seq))
    return acks


def _everything(run: Run, numbering: Numbering, name: tuple[str, str], device: Device, sessions: list[Session],
                first_acks: dict[str, list[tuple[int, int]]], findings: Findings) -> None:
    feeds = device.feeds | {run.broadcast_feed}
    if not sessions:
        if any(numbering.feed(feed).rows for feed in feeds):
            findings.add("lost", f"{_who(name)} should connect, but never had a session")
        return
    received = _received(sessions)
    for feed in sorted(feeds):
        stored = numbering.feed(feed)
        starts = [(session, session.starts[feed]) for session in sessions if feed in session.starts]
        if not starts:
            if stored.rows:
                findings.add("lost", f"{_who(name)} never read {feed}", sessions[0].at)
            continue
        first, start = starts[0]
        acked = max((seq for t, seq in first_acks.get(feed, ()) if t < first.opened), default=0)
        if start.cursor > acked and not start.by_client:
            findings.add("lost", f"{_who(name)} started {feed} after {start.cursor}, but the highest ack was {acked}", first.at)
        final = [start for _, start in starts if start.epoch == numbering.epoch]
        begin = min([start.cursor, *(start.cursor for start in final[:1])])
        got = received.get(feed, Received())
        covered = _covered(got, numbering.epoch, final[0].cursor if final else stored.last_seq, stored.last_seq)
        for seq in range(begin + 1, stored.last_seq + 1):
            row = stored.rows.get(seq)
            if row is None:
                _removed(run, numbering, name, feed, seq, got, findings)
            elif row.event not in got.events and seq not in covered:
                findings.add("lost", f"{_who(name)} never got {feed} {seq}", row.at, starts[-1][0].at)


def _who(name: tuple[str, str]) -> str:
    return f"{name[0]}, device {name[1]}"


def _received(sessions: list[Session]) -> dict[str, Received]:
    received: dict[str, Received] = {}
    for session in sessions:
        for item in session.items:
            if isinstance(item, Frame):
                received.setdefault(item.feed, Received()).events.add(item.event)
            elif isinstance(item, Skip) and item.feed in session.starts:
                received.setdefault(item.feed, Received()).skips.append((item, session.starts[item.feed].epoch))
    return received


def _covered(got: Received, epoch: str, cursor: int, last_seq: int) -> set[int]:
    """The numbers that were explained. Skips of an earlier epoch count as far as the device had acknowledged them."""
    return {seq
            for skip, of_epoch in got.skips
            for seq in range(skip.first, min(skip.last, last_seq) + 1)
            if of_epoch == epoch or seq <= cursor}


def _removed(run: Run, numbering: Numbering, name: tuple[str, str], feed: str, seq: int, got: Received, findings: Findings) -> None:
    """A number that the retention removed, although this device never got it. `counters` checks other holes."""
    event = numbering.event(feed, numbering.epoch, seq)
    if event is None or event in got.events or not numbering.feed(feed).is_trimmed(seq):
        return
    if not _is_void(run, numbering, feed, seq, event):
        findings.add("lost", f"{_who(name)} never got {feed} {seq}, and it was removed", run.events[event].at)


def _is_void(run: Run, numbering: Numbering, feed: str, seq: int, event: int) -> bool:
    """Nobody needs this notification any more, also if a device does not have it."""
    published = run.events.get(event)
    if published is None:
        return True
    expired = published.expires_at is not None and published.expires_at <= run.last + EXPIRY_TOLERANCE
    return expired or numbering.newer_of_key(feed, numbering.epoch, seq) is not None


def _removed_too_early(run: Run, numbering: Numbering, findings: Findings) -> None:
    """The retention waits for every cursor, also for that of a device which does not come back in the run."""
    needed: dict[str, int] = {}  # the newest number of each feed that somebody may need and that was removed
    for name, feed in numbering.feeds.items():
        for seq, event in numbering.numbers.get((name, numbering.epoch), {}).items():
            if feed.is_trimmed(seq) and not _is_void(run, numbering, name, seq, event):
                needed[name] = max(seq, needed.get(name, 0))
    for at, cursor in run.tables["cursors"]:
        seq = needed.get(cursor["feed"], 0)
        if seq > cursor["acked_seq"]:
            findings.add("lost", f"{cursor['feed']} {seq} was removed, but the cursor of {cursor['subscriber']}, device "
                         f"{cursor['device']} is {cursor['acked_seq']}", at)


def _kept_acks(writes: "Writes", sessions: list[Session], findings: Findings) -> None:
    """A session never starts below an ack, or below the start of an earlier session, that was surely written."""
    places: dict[tuple[str, str], list[Place]] = {}  # by feed and epoch
    for session in sessions:
        for feed, start in session.starts.items():
            for place in () if start.by_client else places.get((feed, start.epoch), ()):
                if place.seq > start.cursor and place.written <= session.opened:
                    findings.add("acknowledged_but_replayed", f"{_who(session.device)} starts {feed} after {start.cursor}, but "
                                 f"had {place.seq} before", session.at, place.at)
                    break
        for feed, place in writes.surely_written(session):
            places.setdefault((feed, session.starts[feed].epoch), []).append(place)


@dataclass(slots=True)
class Place:
    """A place of a device that no later session may start below."""
    written: int  # the moment at which it is surely written
    seq: int
    at: int


class Writes:
    """The acks that are surely written, because no fault is near."""

    def __init__(self, run: Run) -> None:
        faults = sorted(run.faults.values(), key=lambda fault: fault.begun)
        self.begins = [fault.begun for fault in faults]
        self.ends: list[int] = []  # the latest end of all faults that began until then
        for fault in faults:
            self.ends.append(max(_end(fault, run), self.ends[-1] if self.ends else 0))
        self.outages = sorted(_end(fault, run) for fault in faults if fault.hits & {"postgres", "network"})
        self.of_replica: dict[str, list[int]] = {}
        for fault in faults:
            for part in fault.hits:
                self.of_replica.setdefault(part, []).append(fault.begun)

    def surely_written(self, session: Session) -> Iterator[tuple[str, Place]]:
        """The start of a session and its highest ack in each feed, if they are surely written."""
        opened = self._written_by(session.opened)
        highest: dict[str, Place] = {}
        for feed, start in session.starts.items():
            if not start.by_client and opened is not None:
                yield feed, Place(opened, start.cursor, session.at)
        for item in session.items:
            if not isinstance(item, Ack) or item.feed not in session.starts:
                continue
            if item.feed in highest and item.seq <= highest[item.feed].seq:
                continue
            written = self._written_by(item.t)
            if written is not None and self._arrived(session, item):
                highest[item.feed] = Place(written, item.seq, item.at)
        yield from highest.items()

    def _written_by(self, t: int) -> int | None:
        """When an ack of this moment is surely written; none if a fault may lose it."""
        place = bisect_right(self.begins, t + WRITTEN_AFTER)
        if place and self.ends[place - 1] >= t - FAULT_BEFORE:
            return None
        outage = bisect_right(self.outages, t)
        by = t + WRITTEN_AFTER
        if outage:
            by = max(by, self.outages[outage - 1] + OUTAGE_AFTER)
        return None if bisect_right(self.begins, by) > place else by

    def _arrived(self, session: Session, ack: Ack) -> bool:
        begins = self.of_replica.get(session.replica, [])
        if bisect_right(begins, ack.t) > bisect_right(begins, session.opened):
            # The socket survived a fault, but may carry nothing any more.
            return False
        if session.closed is None or session.closed >= ack.t + WRITTEN_AFTER:
            return True
        return session.clean and session.code in CLOSES_THAT_KEEP_ACKS


def _end(fault: Fault, run: Run) -> int:
    return run.last if fault.ended is None else fault.ended
