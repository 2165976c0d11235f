"""Checks that acks hold: no later session starts below an ack, and neither does the final cursor.

Each ack is compared with the next start of its device, or with its final cursor. Only a fault, or a start that came too
soon, excuses an ack that is gone."""

from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass

from findings import Findings
from model import SECOND, Ack, Fault, Run, Session, Start
from numbering import Numbering

# Cursors are written within about a second (docs/protocol.md, "Acks and the window"). Two more for a slow machine, and
# further ones while a fault keeps it busy.
WRITTEN_AFTER = 3 * SECOND
BUSY_WRITTEN_AFTER = 6 * SECOND
# A session reads a frame long before this time has passed.
ARRIVED_AFTER = 3 * SECOND
# A fault that ends shortly before an ack may still delay its write.
FAULT_BEFORE = SECOND
# After an outage of Postgres, a writer may wait 10 s for a dead connection, and up to 5 s for its next attempt.
OUTAGE_AFTER = 15 * SECOND
# A slow client reads frames that arrived earlier. A frame that it reads later than this came over a working socket.
ALIVE_AFTER = 10 * SECOND
# After these closes, acks that the client sent before its own close still count.
CLOSES_THAT_KEEP_ACKS = (1000, 1012, 4401, 4408, 4409)
# Faults of these parts delay the writes of every replica.
DELAYING = frozenset(("postgres", "machine"))
# These faults crash Postgres. A commit of acks does not wait for the disk, so a crash soon after it loses them.
CRASHES_OF_POSTGRES = frozenset(("kill-postgres", "full-disk"))


@dataclass(slots=True)
class Visit:
    """One session of a device in one feed, with its own acks in the order of their numbers."""
    session: Session
    start: Start
    acks: list[Ack]

    @property
    def highest(self) -> int:
        return self.acks[-1].seq if self.acks else self.start.cursor


def check(run: Run, numbering: Numbering, findings: Findings) -> Counter[str]:
    counts: Counter[str] = Counter()
    writes = Writes(run)
    cursors = {(row["feed"], row["subscriber"], row["device"]): (at, row["acked_seq"]) for at, row in run.tables["cursors"]}
    visits: dict[tuple[str, str], dict[str, list[Visit]]] = {}
    for session in run.sessions.values():
        by_feed = visits.setdefault(session.device, {})
        for feed, visit in _visits(session).items():
            by_feed.setdefault(feed, []).append(visit)
    for name, device in run.devices.items():
        for feed, own in visits.get(name, {}).items():
            final = cursors.get((feed, name[0], device.stored_as))
            _successive(run, numbering, name, feed, own, final, writes, findings, counts)
        for feed in sorted(device.feeds | {run.broadcast_feed}):
            final = cursors.get((feed, name[0], device.stored_as))
            _final(numbering, name, device.offline, feed, visits.get(name, {}).get(feed, []), final, findings)
    if run.missing is not None:
        findings.add("not_drained", f"not everything arrived at the end: {run.missing[1]}", run.missing[0])
    findings.judged("acknowledged_but_replayed", counts["acks_judged"])
    return counts


def _visits(session: Session) -> dict[str, Visit]:
    visits = {feed: Visit(session, start, []) for feed, start in session.starts.items()}
    for item in session.items:
        if isinstance(item, Ack) and item.feed in visits and item.seq > visits[item.feed].highest:
            visits[item.feed].acks.append(item)
    return visits


def _successive(run: Run, numbering: Numbering, name: tuple[str, str], feed: str, visits: list[Visit],
                final: tuple[int, int] | None, writes: "Writes", findings: Findings, counts: Counter[str]) -> None:
    """Compares each start with everything before it, and counts what became of each ack at the next start."""
    for place, visit in enumerate(visits):
        following = next((other for other in visits[place + 1:] if not other.start.by_client), None)
        _count(run, numbering, visit, following, final, writes, counts)
        if visit.start.by_client:
            continue
        for earlier in visits[:place]:
            at = _gone(earlier, visit, writes)
            if at is not None:
                findings.add("acknowledged_but_replayed", f"{who(name)} starts {feed} after {visit.start.cursor}, but had "
                             f"{at[0]} before", visit.session.at, at[1])
                break


def _gone(earlier: Visit, visit: Visit, writes: "Writes") -> tuple[int, int] | None:
    """The highest number, with its place, that the earlier session surely stored above the start of this one."""
    if earlier.start.epoch != visit.start.epoch or max(earlier.highest, earlier.start.cursor) <= visit.start.cursor:
        return None
    for ack in reversed(earlier.acks):
        if ack.seq <= visit.start.cursor:
            break
        if writes.excuse(earlier.session, ack, visit.session) is None:
            return ack.seq, ack.at
    if earlier.start.cursor > visit.start.cursor and not earlier.start.by_client \
            and writes.excuse(earlier.session, None, visit.session) is None:
        return earlier.start.cursor, earlier.session.at
    return None


def _count(run: Run, numbering: Numbering, visit: Visit, following: Visit | None, final: tuple[int, int] | None,
           writes: "Writes", counts: Counter[str]) -> None:
    """An ack is judged if the next start, or else the final cursor, shows it or must show it."""
    counts["acks"] += len(visit.acks)
    if following is None:
        same = visit.start.epoch == numbering.epoch
        judged = 0 if final is None else sum(same or ack.seq <= final[1] for ack in visit.acks)
    else:
        # A new epoch keeps the cursors that are not above their feeds. It excuses the others.
        kept = sum(ack.seq <= following.start.cursor for ack in visit.acks)
        same = following.start.epoch == visit.start.epoch
        judged = kept + sum(same and writes.excuse(visit.session, ack, following.session) is None for ack in visit.acks[kept:])
    counts["acks_judged"] += judged


def _final(numbering: Numbering, name: tuple[str, str], offline: bool, feed: str, visits: list[Visit],
           final: tuple[int, int] | None, findings: Findings) -> None:
    """At the end every cursor is at the last number. It is neither below nor above the acks of its device."""
    if offline:
        if final is not None:
            findings.add("unexpected", f"{who(name)} never connected, but has a cursor in {feed}", final[0])
        return
    last_seq = numbering.feed(feed).last_seq
    findings.judged("not_drained", 1)
    if final is None:
        if visits or last_seq > 0:
            findings.add("not_drained", f"{who(name)} has no cursor in {feed} at the end, whose last number is {last_seq}",
                         *(visit.session.at for visit in visits[-1:]))
        return
    at, cursor = final
    if cursor < last_seq:
        findings.add("not_drained", f"the final cursor of {who(name)} in {feed} is {cursor}, but the last number is {last_seq}", at)
    acked = max((visit.highest for visit in visits if visit.start.epoch == numbering.epoch), default=0)
    if cursor < acked:
        findings.add("acknowledged_but_replayed", f"the final cursor of {who(name)} in {feed} is {cursor}, but it had {acked}", at)
    reached = max((max(visit.highest, visit.start.cursor) for visit in visits), default=0)
    if visits and cursor > reached:
        findings.add("lost", f"the final cursor of {who(name)} in {feed} is {cursor}, but it had only {reached}", at)


def who(name: tuple[str, str]) -> str:
    return f"{name[0]}, device {name[1]}"


class Writes:
    """Decides for each ack whether something may have lost it before a later session started."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.faults = sorted(run.faults.values(), key=lambda fault: fault.begun)
        self.delaying = sorted((fault for fault in [*self.faults, *run.slow_times()] if fault.hits & DELAYING), key=lambda fault: fault.begun)
        self.crashes = [fault for fault in self.faults if fault.name in CRASHES_OF_POSTGRES]
        self.of_replica: dict[str, list[Fault]] = {
            replica: [fault for fault in self.faults if replica in fault.hits] for replica in run.settings["replicas"]}

    def excuse(self, session: Session, ack: Ack | None, later: Session) -> str | None:
        """Why the later session may start below this ack, or below the start of this session; none if nothing excuses it."""
        t = session.opened if ack is None else ack.t
        if ack is not None and (reason := self._not_arrived(session, ack, later)):
            return reason
        by = self._written_by(t)
        if _overlap(self.crashes, t, by, self.run):
            return "a crash of Postgres"
        of_replica = self.of_replica.get(session.replica, [])
        if later.replica == session.replica and not _overlap(of_replica, t, later.opened, self.run):
            # The replica has it in memory.
            return None
        if _overlap(of_replica, t - FAULT_BEFORE, by, self.run):
            return "a fault of the replica"
        return "the next session came too soon" if later.opened < by else None

    def _not_arrived(self, session: Session, ack: Ack, later: Session) -> str | None:
        of_replica = self.of_replica.get(session.replica, [])
        earlier = [fault for fault in of_replica if session.opened <= fault.begun <= ack.t]
        if earlier and not _alive_since(session, max(self.run.end_of(fault) for fault in earlier), ack.t):
            return "the socket may be dead"
        closed = session.closed
        arrived_by = ack.t + ARRIVED_AFTER
        if closed is not None and closed < arrived_by:
            if not (session.clean and session.code in CLOSES_THAT_KEEP_ACKS):
                return "the session broke"
            arrived_by = closed
        if _overlap(of_replica, ack.t - FAULT_BEFORE, arrived_by, self.run):
            return "a fault of the replica or its link"
        return "the next session came too soon" if later.opened < arrived_by else None

    def _written_by(self, t: int) -> int:
        """When an ack of this moment is surely on disk, if its replica and Postgres live. It is written again until it is stored."""
        busy = _overlap(self.faults, t - FAULT_BEFORE, t + WRITTEN_AFTER, self.run)
        by = t + (BUSY_WRITTEN_AFTER if busy else WRITTEN_AFTER)
        # An outage that ended before still keeps connections dead for a while.
        for fault in self.delaying:
            if fault.begun > by:
                break
            if self.run.end_of(fault) + OUTAGE_AFTER >= t:
                by = max(by, self.run.end_of(fault) + OUTAGE_AFTER)
        return by


def _overlap(faults: list[Fault], since: int, until: int, run: Run) -> bool:
    return any(fault.begun <= until and run.end_of(fault) >= since for fault in faults)


def _alive_since(session: Session, ended: int, until: int) -> bool:
    """The session received something so late after a fault that its socket still works."""
    times = [item.t for item in session.items if not isinstance(item, Ack)]
    return bisect_right(times, until) > bisect_right(times, ended + ALIVE_AFTER)
