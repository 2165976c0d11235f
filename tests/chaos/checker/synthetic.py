"""A correct history for the tests of the checker: a small model of the service that writes the files of a run.

It shares no code with the checker. Its tests change one detail of a story, and expect one red column."""

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import amounts

Record = dict[str, Any]

STARTED_AT = 1_790_000_000_000_000  # of the run, in microseconds since 1970
SECOND = 1_000_000
WINDOW = 8
REPLICAS = ("replica-0", "replica-1")
MERCHANTS = ("anna", "berta", "carla")
BYSTANDER = "dora"
BROADCAST = "all"


@dataclass
class Feed:
    rows: list[Record] = field(default_factory=list)
    marks: list[Record] = field(default_factory=list)
    trimmed: int = 0
    last: int = 0
    versions: int = 0


@dataclass
class Session:
    name: str
    subscriber: str
    device: str
    sent: dict[str, int]
    acked: dict[str, int]


class World:
    def __init__(self, seed: int = 1, **settings: Any) -> None:
        self.random = random.Random(seed)
        self.t = 0
        self.records: list[Record] = []
        self.feeds: dict[str, Feed] = {}
        self.cursors: dict[tuple[str, str, str], int] = {}
        self.sessions: dict[tuple[str, str], Session] = {}
        self.devices: list[Record] = []
        self.tables: dict[str, list[Record]] = {}
        self.imports: dict[tuple[str, str], Record] = {}
        self.dead_letters: list[Record] = []
        self.unroutable: list[Record] = []
        self.epoch = "e1"
        self.n: dict[tuple[str, str], int] = {}
        self.ready = True
        self.ids = self.faults = 0
        self.secrets = {name: f"secret-{name}" for name in (*MERCHANTS, BYSTANDER, BROADCAST)}
        self.settings = {
            "seed": seed, "seconds": 60, "scenarios": ["kill-replica"], "started_at": "2026-09-21T14:13:20Z",
            "versions": {"shopbell": "0", "rabbitmq": "0", "postgres": "0"}, "replicas": list(REPLICAS),
            "broadcast_feed": BROADCAST, "window": WINDOW, "ordered": True, "lossy": False,
            "bounds": {"recovery_seconds": 60, "rss_bytes": 1_000, "readiness_seconds": 8, "unready_seconds": 2},
            "floors": dict.fromkeys(amounts.FLOORS, 1) | {"acks_judged_percent": 25}} | settings

    # --- time, and everything that is sampled ---

    def record(self, kind: str, **fields: Any) -> Record:
        self.t += self.random.randrange(100, 2_000)
        record = {"t": self.t, "kind": kind} | fields
        self.records.append(record)
        return record

    def wait(self, seconds: float) -> None:
        for _ in range(max(1, int(seconds * 2))):
            self.t += int(seconds * SECOND / max(1, int(seconds * 2)))
            self.sample()

    def sample(self) -> None:
        for replica in REPLICAS:
            self.record("readiness", replica=replica, status=200 if self.ready else 503, postgres="ok", broker="ok")
            self.record("memory", replica=replica, rss=500)

    def fault(self, name: str, seconds: float, *hits: str, total: bool = False, effect: int = 1) -> None:
        self.faults += 1
        fields = {"fault": name, "number": self.faults, "target": ",".join(hits), "hits": list(hits), "total": total}
        self.record("fault_begun", **fields)
        self.ready = not (total and "postgres" in hits)
        self.wait(seconds)
        self.ready = True
        self.record("fault_ended", effect=effect, **fields)

    # --- publishers ---

    def publish(self, feed: str, *, stored: bool = True, confirmed: bool = True, publisher: str = "shop",
                type: str = "order.created", poison: bool = False, **attributes: Any) -> Record:
        """Publishes an event once. If it is stored, every open session of the feed gets it."""
        key = (publisher, feed)
        if not poison:
            self.n[key] = self.n.get(key, 0) + 1
        self.ids += 1
        event = {"publisher": publisher, "life": 1, "source": "/chaos", "id": f"event-{self.ids}", "feed": feed,
                 "n": self.n.get(key, 0), "type": type, "attempt": 1} | attributes | ({"poison": True} if poison else {})
        self.record("publish_invoked", **event)
        if stored and not poison:
            self.store(event)
        elif poison:
            self.dead_letters.append({"reason": "invalid_data", "source": "/chaos", "event_id": event["id"], "feed": feed})
        self.record("publish_confirmed" if confirmed else "publish_unknown", publisher=publisher, source="/chaos", id=event["id"])
        if stored:
            self.deliver()
        return event

    def publish_again(self, event: Record, *, stored: bool) -> None:
        again = event | {"attempt": event["attempt"] + 1, "life": event["life"] + 1}
        self.record("publish_invoked", **again)
        if not stored:
            self.store(event)
        self.record("publish_confirmed", publisher=event["publisher"], source=event["source"], id=event["id"])
        self.deliver()

    def store(self, event: Record) -> None:
        feed = self.feeds.setdefault(event["feed"], Feed())
        feed.last += 1
        imported = event["type"] == "import.item" and not event.get("failed")
        moment = STARTED_AT + self.t
        row = {"feed": event["feed"], "seq": feed.last, "source": event["source"], "event_id": event["id"],
               "event_type": event["type"], "collapse_key": event.get("collapse_key"), "created_at": moment,
               "expires_at": None if event.get("expires_at") is None else STARTED_AT + event["expires_at"],
               "read_at": moment if imported else None, "handled_at": moment if imported else None,
               "import_done": None, "import_failed": None, "import_total": None,
               "secrets": [self.secrets[event["feed"]]], "expires": event.get("expires_at")}
        if imported and row["collapse_key"] is None:
            row["collapse_key"] = f"import/{event['import_id']}"
        if "import_id" in event:
            self.count(event, row)
        feed.rows.append(row)

    def count(self, event: Record, row: Record) -> None:
        progress = self.imports.setdefault((event["feed"], event["import_id"]), {
            "feed": event["feed"], "import_id": event["import_id"], "total": None, "done": 0, "failed": 0, "status": "running",
            "run": 1, "items": {}})
        if event["type"] == "import.started":
            progress["total"] = event["total"]
        elif event["type"] == "import.finished":
            progress["status"] = event["status"]
        else:
            progress["items"][event["item"]] = event["failed"]
        progress["done"], progress["failed"] = len(progress["items"]), sum(progress["items"].values())
        row |= {"import_done": progress["done"], "import_failed": progress["failed"], "import_total": progress["total"]}

    # --- devices ---

    def device(self, subscriber: str, device: str, offline: bool = False) -> None:
        self.devices.append({"subscriber": subscriber, "device": device, "feeds": [subscriber], "offline": offline})

    def connect(self, subscriber: str, device: str, replica: str = REPLICAS[0]) -> Session:
        starts = []
        for name in (subscriber, BROADCAST):
            feed = self.feeds.get(name, Feed())
            cursor = self.cursors.setdefault((name, subscriber, device), 0)
            starts.append({"feed": name, "epoch": self.epoch, "cursor": cursor, "last_seq": feed.last})
        number = sum(record["kind"] == "session_opened" for record in self.records) + 1
        session = Session(f"s{number}", subscriber, device, {}, {})
        for start in starts:
            session.sent[start["feed"]] = session.acked[start["feed"]] = start["cursor"]
        self.record("session_opened", session=session.name, device=device, subscriber=subscriber, replica=replica, feeds=starts)
        self.sessions[subscriber, device] = session
        self.replay(session)
        return session

    def deliver(self) -> None:
        for session in list(self.sessions.values()):
            self.replay(session)

    def replay(self, session: Session) -> None:
        for name in session.sent:
            feed = self.feeds.get(name, Feed())
            missing = [seq for seq in range(session.sent[name] + 1, feed.trimmed + 1) if all(row["seq"] != seq for row in feed.rows)]
            for seq in missing:
                self.skip(session, name, seq, "trimmed")
            for row in feed.rows:
                if row["seq"] > session.sent[name]:
                    self.send(session, name, row, feed)

    def send(self, session: Session, name: str, row: Record, feed: Feed) -> None:
        newer = [other for other in feed.rows if other["seq"] > row["seq"] and other["collapse_key"] == row["collapse_key"]]
        if row["expires"] is not None and row["expires"] <= self.t:
            self.skip(session, name, row["seq"], "expired")
        elif row["collapse_key"] is not None and newer:
            self.skip(session, name, row["seq"], "collapsed")
        else:
            session.sent[name] = row["seq"]
            self.record("frame", session=session.name, feed=name, epoch=self.epoch, seq=row["seq"], source=row["source"],
                        id=row["event_id"], secrets=list(row["secrets"]))
            if sum(session.sent[feed] - session.acked[feed] for feed in session.sent) >= WINDOW - 1:
                self.ack(session)

    def skip(self, session: Session, feed: str, seq: int, reason: str) -> None:
        session.sent[feed] = seq
        self.record("skipped", session=session.name, feed=feed, to=seq, reason=reason, **{"from": seq})

    def ack(self, session: Session, kept: bool = True) -> None:
        for feed, seq in session.sent.items():
            if seq > session.acked[feed]:
                session.acked[feed] = seq
                self.record("ack_sent", session=session.name, feed=feed, seq=seq)
                key = (feed, session.subscriber, session.device)
                if kept:
                    self.cursors[key] = max(self.cursors[key], seq)

    def close(self, session: Session, code: int = 1000) -> None:
        self.record("session_closed", session=session.name, code=code, clean=code != 1006)
        del self.sessions[session.subscriber, session.device]

    def mark(self, session: Session, kind: str, feed: str, seqs: list[int], confirmed: bool = True) -> None:
        fields = {"session": session.name, "mark": kind, "feed": feed, "seqs": seqs}
        self.record("mark_invoked", **fields)
        column = "read_at" if kind == "read" else "handled_at"
        state = self.feeds[feed]
        changed = [row for row in state.rows if row["seq"] in seqs and row[column] is None]
        for row in changed:
            row[column] = STARTED_AT + self.t
        if changed:
            state.versions += 1
            counts = self.counts(feed)
            state.marks.append({"feed": feed, "version": state.versions, "kind": kind, "seqs": [row["seq"] for row in changed],
                                "through": None, "marked_by": session.subscriber, "last_seq": state.last} | counts)
            for other in self.sessions.values():
                if feed in other.sent:
                    self.record("state", session=other.name, feed=feed, version=state.versions, last=state.last, **counts)
        if confirmed:
            self.record("mark_confirmed", **fields)

    def counts(self, feed: str) -> dict[str, int]:
        rows = self.feeds[feed].rows
        return {"unread": sum(row["read_at"] is None for row in rows), "unhandled": sum(row["handled_at"] is None for row in rows)}

    # --- the end ---

    def finish(self) -> None:
        """Heals, lets every device that is not offline get everything, and dumps the tables."""
        self.record("healed")
        for device in self.devices:
            if not device["offline"]:
                key = (device["subscriber"], device["device"])
                self.ack(self.sessions.get(key) or self.connect(*key))
        self.wait(2)
        self.record("drained", missing=None)
        for replica in REPLICAS:
            self.record("logs_searched", replica=replica, lines=1)
        self.tables = {
            "feeds": [{"feed": name, "last_seq": feed.last, "version": feed.versions, "trimmed_seq": feed.trimmed, "read_seq": 0,
                       "acked_seq": max((seq for key, seq in self.cursors.items() if key[0] == name), default=0)} | self.counts(name)
                      for name, feed in self.feeds.items()],
            "notifications": [row for feed in self.feeds.values() for row in feed.rows],
            "cursors": [{"feed": feed, "subscriber": subscriber, "device": device, "acked_seq": seq}
                        for (feed, subscriber, device), seq in self.cursors.items()],
            "marks": [mark for feed in self.feeds.values() for mark in feed.marks],
            "imports": list(self.imports.values()),
            "import_items": [{"feed": progress["feed"], "import_id": progress["import_id"], "run": 1, "chunk": 0,
                              "seen": "".join("1" if item in progress["items"] else "0" for item in range(512))}
                             for progress in self.imports.values()],
            "dead_letters": self.dead_letters,
            "unroutable": self.unroutable,
            "epochs": [{"epoch": self.epoch}],
        }

    def write(self, directory: Path) -> None:
        (directory / "database").mkdir()
        (directory / "run.json").write_text(json.dumps(self.settings))
        (directory / "secrets.json").write_text(json.dumps(self.secrets))
        (directory / "devices.json").write_text(json.dumps(self.devices))
        # Two recorders, so that the checker has to bring their lines into one order.
        for name, belongs in (("health.jsonl", True), ("load.jsonl", False)):
            lines = (json.dumps(record) for record in self.records if (record["kind"] in ("readiness", "memory")) == belongs)
            (directory / name).write_text("".join(f"{line}\n" for line in lines))
        for table, rows in self.tables.items():
            (directory / "database" / f"{table}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def story(seed: int = 1) -> World:
    """A run with everything that must stay green, in one history."""
    world = World(seed)
    for subscriber, device, offline in (
            ("anna", "till", False), ("anna", "phone", False), ("berta", "till", False), ("carla", "till", True)):
        world.device(subscriber, device, offline)
    world.wait(1)
    till, phone, berta = world.connect("anna", "till"), world.connect("anna", "phone"), world.connect("berta", "till")
    for _ in range(10):
        for feed in MERCHANTS:
            world.publish(feed)
    world.publish(BROADCAST, type="news", publisher="marketing")
    world.publish("berta", poison=True)
    world.mark(till, "read", "anna", [1, 2])
    world.mark(phone, "handled", "anna", [2, 3])
    world.mark(berta, "read", "berta", [4], confirmed=False)
    world.ack(till), world.ack(phone), world.ack(berta)
    world.wait(5)
    _lost_ack(world, till)
    _outage(world)
    _unknown_outcomes(world)
    _away(world, phone)
    _import(world)
    for feed in MERCHANTS:
        world.publish(feed)
    world.wait(1)
    world.finish()
    return world


def bystander(world: World) -> None:
    """Some of everything that must happen in a run, for a merchant of its own."""
    world.device(BYSTANDER, "till")
    world.wait(1)
    session = world.connect(BYSTANDER, "till")
    world.publish(BYSTANDER), world.publish(BYSTANDER)
    world.publish(BYSTANDER, poison=True)
    world.mark(session, "read", BYSTANDER, [1])
    world.ack(session)
    world.close(session)
    world.fault("kill-replica", 1, "replica-1")
    world.publish(BYSTANDER, expires_at=world.t + SECOND)
    world.publish(BYSTANDER)
    world.wait(10)
    world.ack(world.connect(BYSTANDER, "till"))


def _lost_ack(world: World, till: Session) -> None:
    """A replica is killed right after an ack. The device gets these notifications again."""
    world.publish("anna"), world.publish("anna")
    world.ack(till, kept=False)
    world.close(till, 1006)
    world.fault("kill-replica", 2, "replica-0")
    world.connect("anna", "till")
    world.wait(5)


def _outage(world: World) -> None:
    world.fault("stop-postgres", 15, "postgres", total=True)
    world.publish("anna")
    world.wait(10)


def _unknown_outcomes(world: World) -> None:
    """The connection of the publisher ends: some events are stored, some are not, some come again."""
    first, second = world.publish("berta", confirmed=False), world.publish("berta", confirmed=False, stored=False)
    world.publish_again(first, stored=True)
    world.publish_again(second, stored=False)
    world.publish("berta", publisher="other", confirmed=False, stored=False)
    world.publish("carla", publisher="other", confirmed=False)


def _away(world: World, phone: Session) -> None:
    """A device misses notifications that expire or collapse meanwhile."""
    world.close(phone)
    for _ in range(3):
        world.publish("anna", collapse_key="stock")
    world.publish("anna", expires_at=world.t + SECOND)
    world.wait(5)
    world.connect("anna", "phone")


def _import(world: World) -> None:
    world.publish("berta", type="import.started", import_id="i1", total=4)
    for item, failed in ((1, False), (2, True), (2, False), (3, True), (4, False)):
        world.publish("berta", type="import.item", import_id="i1", item=item, failed=failed)
    world.publish("berta", type="import.finished", import_id="i1", status="finished")
