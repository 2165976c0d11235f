"""Checks each session: only its own feeds, ascending numbers, no number twice, and an explanation of each gap."""

from findings import Findings
from model import Ack, Frame, Run, Session, Skip
from numbering import EXPIRY_TOLERANCE, Numbering, effective_collapse_key
from publishing import secrets

REASONS = ("collapsed", "expired", "trimmed", "lost")

# Most numbers of one `skipped` that are checked, because a defect may send any number.
NUMBERS_MAX = 1_000_000


def check(run: Run, numbering: Numbering, findings: Findings) -> None:
    clock_moved = any("clock" in fault.hits for fault in run.faults.values())
    for session in run.sessions.values():
        allowed = run.devices[session.device].feeds | {run.broadcast_feed}
        _isolation(run, session, allowed, findings)
        _numbers(session, allowed, findings)
        _window(run, session, findings)
        received = sum(not isinstance(item, Ack) for item in session.items)
        findings.judged("leaked", received)
        findings.judged("duplicated", received)
        findings.judged("unexplained_gap", received)
        for item in session.items:
            if isinstance(item, Skip) and item.feed in session.starts:
                _reason(run, numbering, session, item, clock_moved, findings)
    for report in run.reports:
        session = run.sessions[report.session]
        if report.feed not in run.devices[session.device].feeds and report.feed != run.broadcast_feed:
            findings.add("leaked", f"{_who(session)} received counts of {report.feed}", report.at)


def _who(session: Session) -> str:
    subscriber, device = session.device
    return f"session {session.name} ({subscriber}, device {device})"


def _isolation(run: Run, session: Session, allowed: frozenset[str], findings: Findings) -> None:
    for feed in session.starts.keys() - allowed:
        findings.add("leaked", f"{_who(session)} reads {feed}", session.at)
    for item in session.items:
        if isinstance(item, Ack):
            continue
        if item.feed not in allowed:
            findings.add("leaked", f"{_who(session)} received a frame of {item.feed}", item.at)
        elif isinstance(item, Frame):
            own, foreign = secrets(run, item.feed, item.secrets)
            if foreign:
                findings.add("leaked", f"{_who(session)} received the secret of {foreign} in {item.feed} {item.seq}", item.at)
            elif not own:
                findings.add("unexpected", f"{item.feed} {item.seq} does not have the secret of its feed", item.at)


def _numbers(session: Session, allowed: frozenset[str], findings: Findings) -> None:
    expected = {feed: start.cursor + 1 for feed, start in session.starts.items()}
    seen: dict[str, set[int]] = {feed: set() for feed in session.starts}
    gaps: list[tuple[int, Frame | Skip]] = []  # the number that was next, and the frame that came
    for item in session.items:
        if isinstance(item, Ack):
            continue
        if item.feed not in expected:
            if item.feed in allowed:
                findings.add("unexplained_gap", f"{_who(session)} received {item.feed}, which it did not open", item.at)
            continue
        first, last = (item.seq, item.seq) if isinstance(item, Frame) else (item.first, item.last)
        name = f"{item.feed} {first} in {_who(session)}"
        following = expected[item.feed]
        if first in seen[item.feed]:
            findings.add("duplicated", f"{name} came before", item.at)
            continue
        if isinstance(item, Frame):
            seen[item.feed].add(first)
        if first <= session.starts[item.feed].cursor:
            findings.add("acknowledged_but_replayed", f"{name} is not above the cursor {session.starts[item.feed].cursor}", item.at)
        elif first < following:
            findings.add("reordered", f"{name} came after {following - 1}", item.at)
        elif first > following:
            gaps.append((following, item))
        expected[item.feed] = max(following, last + 1)
    for following, item in gaps:
        first = item.seq if isinstance(item, Frame) else item.first
        came_late = seen[item.feed].intersection(range(following, min(first, following + NUMBERS_MAX)))
        if len(came_late) < first - following:
            findings.add("unexplained_gap", f"{item.feed} {first} came in {_who(session)}, but {following} was next", item.at)


def _window(run: Run, session: Session, findings: Findings) -> None:
    """A session sends at most a window of notifications without an ack."""
    unacked: dict[str, list[int]] = {}
    outstanding, window = 0, run.settings["window"]
    for item in session.items:
        if isinstance(item, Frame):
            unacked.setdefault(item.feed, []).append(item.seq)
            outstanding += 1
            if outstanding > window:
                findings.add("memory_above_bound", f"{_who(session)} sent {outstanding} notifications without an ack", item.at)
                return
        elif isinstance(item, Ack):
            sent = unacked.get(item.feed, [])
            kept = [seq for seq in sent if seq > item.seq]
            outstanding -= len(sent) - len(kept)
            unacked[item.feed] = kept


def _reason(run: Run, numbering: Numbering, session: Session, skip: Skip, clock_moved: bool, findings: Findings) -> None:
    epoch = session.starts[skip.feed].epoch
    if skip.last < skip.first or skip.reason not in REASONS:
        findings.add("unexplained_gap", f"{_who(session)}: {skip.feed} {skip.first}-{skip.last} {skip.reason} is no explanation", skip.at)
        return
    for seq in range(skip.first, min(skip.last, skip.first + NUMBERS_MAX) + 1):
        why = _untrue(run, numbering, skip, epoch, seq, clock_moved)
        if why is not None:
            findings.add("unexplained_gap", f"{skip.feed} {seq} was skipped as {skip.reason}, but {why}", skip.at)
            return
    if skip.reason == "lost" and not (run.is_lossy and numbering.renewed is not None):
        findings.add("lost", f"{skip.feed} {skip.first}-{skip.last} was skipped as lost in {_who(session)}", skip.at)


def _untrue(run: Run, numbering: Numbering, skip: Skip, epoch: str, seq: int, clock_moved: bool) -> str | None:
    """The contradiction between a reason and the tables. A number that nobody ever received cannot be judged."""
    feed = numbering.feed(skip.feed)
    is_present = epoch == numbering.epoch and seq in feed.rows
    if epoch == numbering.epoch and seq > feed.last_seq:
        return f"the newest number is {feed.last_seq}"
    if skip.reason == "lost":
        return "it is stored" if is_present else None
    if skip.reason == "trimmed":
        return "it is stored" if is_present else None if epoch != numbering.epoch or feed.is_trimmed(seq) else "it was not removed"
    event = numbering.event(skip.feed, epoch, seq)
    if event is None:
        return None
    if skip.reason == "expired":
        expires_at = numbering.expires_at(event)
        if expires_at is None:
            return "it never expires"
        if expires_at > skip.t + EXPIRY_TOLERANCE and not clock_moved:
            return "it expired later"
        return None
    if numbering.collapse_key(skip.feed, epoch, seq) is None:
        return "it has no collapse key"
    if _was_replaced_by_a_removed_one(run, numbering, skip, epoch, seq):
        return None
    newer = numbering.newer_of_key(skip.feed, epoch, seq)
    if newer is None:
        return "nothing newer has its collapse key"
    published = run.events.get(numbering.event(skip.feed, epoch, newer) or 0)
    if published is not None and published.first_invoked > skip.t:
        return f"{newer} with its collapse key was published later"
    return None


def _was_replaced_by_a_removed_one(run: Run, numbering: Numbering, skip: Skip, epoch: str, seq: int) -> bool:
    """Whether an event that nobody received, and that retention may have removed, explains a skip."""
    if numbering.feed(skip.feed).trimmed_seq <= seq:
        return False
    key = numbering.collapse_key(skip.feed, epoch, seq)
    unseen = (run.events[number] for number in numbering.unseen.get(skip.feed, ()))
    return any(effective_collapse_key(other) == key and other.first_invoked <= skip.t for other in unseen)
