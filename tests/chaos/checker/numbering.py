"""Which event has which number, from the final tables and from all received frames. Shared by all checks."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

from reading import SECOND, UNOPENED, Event, Frame, Row, Run

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
    stored: dict[int, list[Row]] = field(default_factory=dict)  # the rows of an event
    # The event of each number, by feed and epoch.
    numbers: dict[tuple[str, str], dict[int, int]] = field(default_factory=dict)
    # The numbers of each collapse key, ascending, by feed and epoch.
    keys: dict[tuple[str, str], dict[str, list[int]]] = field(default_factory=dict)
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
        numbering.feeds.setdefault(row.feed, Feed()).rows[row.seq] = row
        numbering.stored.setdefault(row.event, []).append(row)
        numbering.numbers.setdefault((row.feed, numbering.epoch), {})[row.seq] = row.event
    for frame in frames(run):
        numbering.numbers.setdefault((frame.feed, frame.epoch), {}).setdefault(frame.seq, frame.event)
    for (feed, epoch), events in numbering.numbers.items():
        keys = numbering.keys.setdefault((feed, epoch), {})
        for seq in sorted(events):
            if (key := numbering.collapse_key(feed, epoch, seq)) is not None:
                keys.setdefault(key, []).append(seq)
    numbering.renewed = _renewed(run)
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
