"""Which event has which number, from the final tables and from all received frames. Shared by all checks."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

from model import SECOND, UNOPENED, Event, Frame, Row, Run, Skip

# Clocks of the machine and of the history are read at different moments.
EXPIRY_TOLERANCE = SECOND


@dataclass(slots=True)
class Feed:
    """One feed in the final tables."""
    last_seq: int = 0
    trimmed_seq: int = 0
    rows: dict[int, Row] = field(default_factory=dict)

    def is_trimmed(self, seq: int) -> bool:
        """The retention has removed this number."""
        return seq <= self.trimmed_seq and seq not in self.rows


@dataclass(slots=True)
class Numbering:
    run: Run
    epoch: str
    feeds: dict[str, Feed] = field(default_factory=dict)
    twice: list[tuple[Row, Row]] = field(default_factory=list)  # rows with the same number
    stored: dict[int, list[Row]] = field(default_factory=dict)  # the rows of an event
    # The event of each number, by feed and epoch.
    numbers: dict[tuple[str, str], dict[int, int]] = field(default_factory=dict)
    # The numbers of each collapse key, ascending, by feed and epoch.
    keys: dict[tuple[str, str], dict[str, list[int]]] = field(default_factory=dict)
    # The events that are not stored and that nobody received, by feed. Each may have had a number that was removed.
    unseen: dict[str, list[int]] = field(default_factory=dict)
    # The first delivery of each event.
    delivered: dict[int, int] = field(default_factory=dict)
    # The highest number of the final epoch that a session received or acked, with its place, by feed.
    reached: dict[str, tuple[int, int]] = field(default_factory=dict)
    # The moment when the final epoch was first seen after another one.
    renewed: int | None = None

    def event(self, feed: str, epoch: str, seq: int) -> int | None:
        return self.numbers.get((feed, epoch), {}).get(seq)

    def feed(self, feed: str) -> Feed:
        return self.feeds.get(feed) or Feed()

    def expires_at(self, event: int) -> int | None:
        published = self.run.events.get(event)
        return published.expires_at if published else None

    def collapse_key(self, feed: str, epoch: str, seq: int) -> str | None:
        row = self.feed(feed).rows.get(seq) if epoch == self.epoch else None
        if row is not None:
            return row.collapse_key
        event = self.event(feed, epoch, seq)
        published = None if event is None else self.run.events.get(event)
        return published and effective_collapse_key(published)

    def newer_of_key(self, feed: str, epoch: str, seq: int) -> int | None:
        """The next number with the collapse key of this one."""
        key = self.collapse_key(feed, epoch, seq)
        if key is None:
            return None
        numbers = self.keys.get((feed, epoch), {}).get(key, [])
        place = bisect_right(numbers, seq)
        return numbers[place] if place < len(numbers) else None


def has_expired(event: Event, t: int) -> bool:
    return event.expires_at is not None and event.expires_at <= t + EXPIRY_TOLERANCE


def effective_collapse_key(event: Event) -> str | None:
    """docs/publishing.md: imported items have a key by default; other events of an import have none."""
    if event.type in ("import.started", "import.finished") or (event.type == "import.item" and event.failed):
        return None
    if event.collapse_key is None and event.type == "import.item":
        return f"import/{event.import_id}"
    return event.collapse_key


def build(run: Run) -> Numbering:
    numbering = Numbering(run, run.epoch)
    for _, row in run.tables["feeds"]:
        numbering.feeds[row["feed"]] = Feed(row["last_seq"], row.get("trimmed_seq", 0))
    for row in run.rows:
        rows = numbering.feeds.setdefault(row.feed, Feed()).rows
        if row.seq in rows:
            numbering.twice.append((rows[row.seq], row))
        rows[row.seq] = row
        numbering.stored.setdefault(row.event, []).append(row)
        numbering.numbers.setdefault((row.feed, numbering.epoch), {})[row.seq] = row.event
    for frame in frames(run):
        numbering.numbers.setdefault((frame.feed, frame.epoch), {}).setdefault(frame.seq, frame.event)
        numbering.delivered[frame.event] = min(frame.t, numbering.delivered.get(frame.event, frame.t))
    for session in run.sessions.values():
        for item in session.items:
            if item.feed in session.starts and session.starts[item.feed].epoch == run.epoch:
                seq = item.last if isinstance(item, Skip) else item.seq
                if seq > numbering.reached.get(item.feed, (0, 0))[0]:
                    numbering.reached[item.feed] = (seq, item.at)
    for (feed, epoch), events in numbering.numbers.items():
        keys = numbering.keys.setdefault((feed, epoch), {})
        for seq in sorted(events):
            if (key := numbering.collapse_key(feed, epoch, seq)) is not None:
                keys.setdefault(key, []).append(seq)
    numbering.renewed = _renewed(run)
    elsewhere = {run.event(row["source"], row["event_id"])
                 for table in ("dead_letters", "unroutable") for _, row in run.tables[table] if row.get("event_id") is not None}
    for number, event in run.events.items():
        if not (event.poison or number in numbering.stored or number in numbering.delivered or number in elsewhere):
            numbering.unseen.setdefault(event.feed, []).append(number)
    return numbering


def frames(run: Run) -> Iterator[Frame]:
    """All frames of feeds that their sessions opened."""
    for session in run.sessions.values():
        for item in session.items:
            if isinstance(item, Frame) and item.epoch != UNOPENED:
                yield item


def _renewed(run: Run) -> int | None:
    """Canaries and late sessions may keep an old epoch open; the first session in the final one counts."""
    epochs = [(session.opened, start.epoch) for session in run.sessions.values() for start in session.starts.values()]
    if all(epoch == run.epoch for _, epoch in epochs):
        return None
    return min((opened for opened, epoch in epochs if epoch == run.epoch), default=run.last)
