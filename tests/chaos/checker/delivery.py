"""Checks that each device got everything, and that retention removed nothing that a device needs."""

from dataclasses import dataclass, field

from acks import who
from findings import Findings
from model import Ack, Device, Frame, Run, Session, Skip
from numbering import Numbering, has_expired


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
    for name, device in run.devices.items():
        own = sessions.get(name, [])
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
            findings.add("lost", f"{who(name)} should connect, but never had a session")
        return
    received = _received(sessions)
    for feed in sorted(feeds):
        stored = numbering.feed(feed)
        starts = [(session, session.starts[feed]) for session in sessions if feed in session.starts]
        if not starts:
            if stored.rows:
                findings.add("lost", f"{who(name)} never read {feed}", sessions[0].at)
            continue
        first, start = starts[0]
        acked = max((seq for t, seq in first_acks.get(feed, ()) if t < first.opened), default=0)
        if start.cursor > acked and not start.by_client:
            findings.add("lost", f"{who(name)} started {feed} after {start.cursor}, but the highest ack was {acked}", first.at)
        final = [start for _, start in starts if start.epoch == numbering.epoch]
        begin = min([start.cursor, *(start.cursor for start in final[:1])])
        got = received.get(feed, Received())
        covered = _covered(got, numbering.epoch, final[0].cursor if final else stored.last_seq, stored.last_seq)
        for seq in range(begin + 1, stored.last_seq + 1):
            row = stored.rows.get(seq)
            if row is None:
                _removed(run, numbering, name, feed, seq, got, findings)
            elif row.event not in got.events and seq not in covered:
                findings.add("lost", f"{who(name)} never got {feed} {seq}", row.at, starts[-1][0].at)


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
        findings.add("lost", f"{who(name)} never got {feed} {seq}, and it was removed", run.events[event].at)


def _is_void(run: Run, numbering: Numbering, feed: str, seq: int, event: int) -> bool:
    """Nobody needs this notification any more, also if a device does not have it."""
    published = run.events.get(event)
    if published is None:
        return True
    return has_expired(published, run.last) or numbering.newer_of_key(feed, numbering.epoch, seq) is not None


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
