"""Explains each event without a row: retention removed its notification, and nobody needed it.

Nobody received most of these events, so their numbers are unknown. But a removed number is at or below the watermark, and
each has one event. So the events of a feed, and the reasons that sessions received, must fit its numbers."""

from dataclasses import dataclass, field

from findings import Findings
from model import UNOPENED, Event, Run, Skip
from numbering import Numbering, effective_collapse_key, has_expired


@dataclass(slots=True)
class Newest:
    """The newest events with one collapse key of one feed that have a number, or that expired."""
    n: dict[str, int] = field(default_factory=dict)  # the highest of each publisher
    confirmed: dict[str, int] = field(default_factory=dict)  # the last confirm of each publisher


class Removals:
    def __init__(self, run: Run, numbering: Numbering) -> None:
        self.run = run
        self.numbering = numbering
        self.newest: dict[tuple[str, str], Newest] = {}
        for number, event in run.events.items():
            key = effective_collapse_key(event)
            if key is None or event.poison or event.n is None:
                continue
            if number in numbering.stored or number in numbering.delivered or has_expired(event, run.last):
                newest = self.newest.setdefault((event.feed, key), Newest())
                newest.n[event.publisher] = max(event.n, newest.n.get(event.publisher, 0))
                confirmed = run.last if event.confirmed is None else event.confirmed
                newest.confirmed[event.publisher] = max(confirmed, newest.confirmed.get(event.publisher, 0))

    def explain(self, number: int, event: Event) -> bool:
        """Retention removes a notification that everyone has, that expired, or that a newer one replaced."""
        numbering = self.numbering
        feed = numbering.feed(event.feed)
        if feed.trimmed_seq == 0:
            return False
        if number in numbering.delivered:
            seqs = (seq for seq, other in numbering.numbers.get((event.feed, numbering.epoch), {}).items() if other == number)
            if any(feed.is_trimmed(seq) for seq in seqs):
                return True
            # Only a session of an earlier epoch received it, so its present number is unknown.
            if numbering.renewed is None:
                return False
        return has_expired(event, self.run.last) or self.is_replaced(event)

    def is_replaced(self, event: Event) -> bool:
        """A newer event has its collapse key. The order of different publishers is known only if one was confirmed first."""
        key = effective_collapse_key(event)
        newest = None if key is None else self.newest.get((event.feed, key))
        if newest is None:
            return False
        return any(n > (event.n or 0) if publisher == event.publisher else newest.confirmed[publisher] > event.first_invoked
                   for publisher, n in newest.n.items())

    def check_numbers(self, findings: Findings) -> None:
        """Compares the events of each feed that nobody received with the removed numbers that nobody received."""
        if self.numbering.renewed is not None:
            return
        skipped = self._skipped()
        for name, feed in self.numbering.feeds.items():
            known = self.numbering.numbers.get((name, self.numbering.epoch), {})
            unknown = {seq for seq in range(1, feed.trimmed_seq + 1) if seq not in known}
            unseen = [self.run.events[number] for number in self.numbering.unseen.get(name, ())]
            explained = [event for event in unseen
                         if event.confirmed is not None and feed.trimmed_seq > 0
                         and (has_expired(event, self.run.last) or self.is_replaced(event))]
            excess = len(explained) - len(unknown)
            for event in explained[:max(excess, 0)]:
                findings.add("lost", f"{excess} of {len(explained)} removed events of {name} never had a number, perhaps "
                             f"{event.source} {event.id}", event.at)
            if len(unknown) > len(unseen):
                findings.add("count_mismatch", f"{name}: {len(unknown)} removed numbers were never received, but only "
                             f"{len(unseen)} events can have had them")
            findings.judged("count_mismatch", 1)
            self._reasons(name, unknown, unseen, skipped.get(name, {}), findings)

    def _skipped(self) -> dict[str, dict[str, dict[int, Skip]]]:
        """The numbers that sessions of the final epoch skipped, by feed and reason."""
        skipped: dict[str, dict[str, dict[int, Skip]]] = {}
        for session in self.run.sessions.values():
            for item in session.items:
                if not isinstance(item, Skip) or item.feed not in session.starts:
                    continue
                if session.starts[item.feed].epoch in (UNOPENED, self.numbering.epoch):
                    last = min(item.last, self.numbering.feed(item.feed).trimmed_seq)
                    of_reason = skipped.setdefault(item.feed, {}).setdefault(item.reason, {})
                    for seq in range(item.first, last + 1):
                        of_reason.setdefault(seq, item)
        return skipped

    def _reasons(self, name: str, unknown: set[int], unseen: list[Event], skipped: dict[str, dict[int, Skip]],
                 findings: Findings) -> None:
        """As many events must be able to have a reason as numbers were skipped for it."""
        able = {"expired": sum(event.expires_at is not None for event in unseen),
                "collapsed": sum(self.is_replaced(event) for event in unseen)}
        for reason, possible in able.items():
            numbers = unknown & skipped.get(reason, {}).keys()
            if len(numbers) > possible:
                findings.add("unexplained_gap", f"{len(numbers)} removed numbers of {name} were skipped as {reason}, but only "
                             f"{possible} of its events can have that reason", *sorted(skipped[reason][seq].at for seq in numbers)[-1:])
