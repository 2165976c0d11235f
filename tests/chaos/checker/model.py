"""The typed records of a run. `reading` fills them from the files that HISTORY.md describes."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

SECOND = 1_000_000

# The epoch of a frame whose feed the session did not open. It is leaked, and no number of its feed.
UNOPENED = ""

# Postgres answers the recorder within this time, unless it is away or the machine is overloaded.
SLOW_AFTER = SECOND // 2

# A place is one integer, because there are half a million: the number of the file, then of the line.
LINES_PER_FILE = 1 << 40


@dataclass(slots=True)
class Event:
    """An event that a publisher sent at least once."""
    source: str
    id: str
    feed: str
    publisher: str
    n: int | None
    type: str
    first_invoked: int
    at: int
    collapse_key: str | None
    expires_at: int | None
    import_id: str | None
    item: int | None
    failed: bool
    total: int | None
    status: str | None
    poison: bool
    confirmed: int | None = None
    refused: bool = False


@dataclass(slots=True)
class Start:
    """The place of a session in one feed, from `session_opened`."""
    epoch: str
    cursor: int
    last_seq: int
    by_client: bool


@dataclass(slots=True)
class Frame:
    t: int
    at: int
    feed: str
    epoch: str
    seq: int
    event: int
    secrets: tuple[str, ...]


@dataclass(slots=True)
class Skip:
    t: int
    at: int
    feed: str
    first: int
    last: int
    reason: str


@dataclass(slots=True)
class Ack:
    t: int
    at: int
    feed: str
    seq: int


@dataclass(slots=True)
class Session:
    name: str
    device: tuple[str, str]  # subscriber and device
    replica: str
    opened: int
    at: int
    starts: dict[str, Start]
    items: list[Frame | Skip | Ack] = field(default_factory=list)
    closed: int | None = None
    code: int | None = None
    clean: bool = False


@dataclass(slots=True)
class Device:
    feeds: frozenset[str]
    offline: bool
    stored_as: str  # its name in the table of cursors


@dataclass(slots=True)
class Mark:
    t: int
    at: int
    session: str
    kind: str
    feed: str
    seqs: tuple[int, ...]
    through: int | None


@dataclass(slots=True)
class Report:
    """Counts of a feed as a session received them: `state`, or `counts`."""
    t: int
    at: int
    session: str
    feed: str
    version: int | None
    unread: int | None
    unhandled: int | None
    last: int | None
    is_state: bool
    kind: str | None = None  # of the mark of a `state`
    seqs: tuple[int, ...] | None = None
    through: int | None = None


@dataclass(slots=True)
class Fault:
    name: str
    number: int
    target: str
    hits: frozenset[str]
    total: bool
    begun: int
    at: int
    ended: int | None = None
    effective_from: int = 0  # the fault is wholly in effect from then on
    ends_from: int | None = None  # the parts may be back from then on
    effect: int = 0  # whatever it broke, counted; without any, it proves nothing

    def is_outage(self) -> bool:
        """Whether Postgres is wholly away."""
        return self.total and "postgres" in self.hits


@dataclass(slots=True)
class Sample:
    """A sample of the readiness of a replica, or of its memory."""
    t: int
    at: int
    value: int
    asked: int  # when it was asked for


@dataclass(slots=True)
class Row:
    """A row of `notifications`."""
    at: int
    feed: str
    seq: int
    event: int
    collapse_key: str | None
    expires_at: int | None
    read: bool
    handled: bool
    secrets: tuple[str, ...]
    progress: tuple[int | None, int | None]  # import_done, import_failed


@dataclass(slots=True)
class Table:
    """The rows of another table, each with its place."""
    rows: list[tuple[int, dict[str, Any]]] = field(default_factory=list)

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        return iter(self.rows)


@dataclass(slots=True)
class Run:
    settings: dict[str, Any]
    secrets: dict[str, str]
    devices: dict[tuple[str, str], Device]
    files: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    identities: list[tuple[str, str]] = field(default_factory=list)  # of each event, by its number
    numbers: dict[tuple[str, str], int] = field(default_factory=dict)
    events: dict[int, Event] = field(default_factory=dict)
    sessions: dict[str, Session] = field(default_factory=dict)
    marks: dict[str, list[Mark]] = field(default_factory=lambda: {"invoked": [], "confirmed": [], "refused": []})
    reports: list[Report] = field(default_factory=list)
    faults: dict[tuple[str, int], Fault] = field(default_factory=dict)
    readiness: dict[str, list[Sample]] = field(default_factory=dict)
    memory: dict[str, list[Sample]] = field(default_factory=dict)
    log_leaks: list[tuple[int, str]] = field(default_factory=list)
    witness: list[tuple[int, int, bool]] = field(default_factory=list)  # when the recorder asked Postgres, the end, and an answer
    log_lines: int = 0  # lines of logs that were searched for secrets
    healed: int | None = None
    drained: int | None = None
    missing: tuple[int, str] | None = None  # the place and the text of everything that did not arrive in time
    last: int = 0
    rows: list[Row] = field(default_factory=list)
    tables: dict[str, Table] = field(default_factory=dict)

    def event(self, source: str, id: str) -> int:
        """The number of an event in this run."""
        key = (source, id)
        number = self.numbers.get(key)
        if number is None:
            number = self.numbers[key] = len(self.identities)
            self.identities.append(key)
        return number

    def name(self, event: int) -> str:
        return " ".join(self.identities[event])

    def slow_times(self) -> list[Fault]:
        """The times in which Postgres did not answer the recorder itself soon. They excuse replicas like a fault."""
        return [Fault("slow", place, "", frozenset(("machine",)), False, asked, 0, t)
                for place, (asked, t, answered) in enumerate(self.witness) if not answered or t - asked > SLOW_AFTER]

    def end_of(self, fault: "Fault") -> int:
        """The end of a fault, or of the run."""
        return self.last if fault.ended is None else fault.ended

    def place(self, at: int) -> str:
        return f"{self.files[at // LINES_PER_FILE]}:{at % LINES_PER_FILE}"

    @property
    def epoch(self) -> str:
        """The epoch of the final tables."""
        return next(iter(self.tables["epochs"]))[1]["epoch"]

    @property
    def broadcast_feed(self) -> str:
        return self.settings["broadcast_feed"]

    @property
    def is_lossy(self) -> bool:
        return bool(self.settings.get("lossy", False))
