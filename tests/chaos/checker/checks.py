"""Stories and expectations that the tests of the checker share."""

import json
import tempfile
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

from findings import BAD_COLUMNS
from judging import judge
from synthetic import Record, Session, World, bystander, story


def verdict_of(world: World) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        world.write(Path(directory))
        return judge(Path(directory))


def red(verdict: dict[str, Any]) -> set[str]:
    return {column for column in BAD_COLUMNS if verdict["columns"][column]}


class Checks(unittest.TestCase):
    def expect(self, world: World, *columns: str) -> None:
        verdict = verdict_of(world)
        shown = json.dumps({key: verdict[key] for key in ("columns", "evidence", "problems")}, indent=1)
        self.assertEqual(verdict["problems"], [], shown)
        self.assertEqual(red(verdict), set(columns), shown)
        self.assertEqual(verdict["status"], 1 if columns else 0, shown)
        for column in columns:
            self.assertTrue(verdict["evidence"][column], shown)

    def expect_each(self, columns: tuple[str, ...], *changes: Callable[[World], None]) -> None:
        """Each change of a finished story turns these columns red."""
        for change in changes:
            with self.subTest(change.__name__):
                world = story()
                change(world)
                self.expect(world, *columns)


def records(world: World, kind: str, **fields: Any) -> list[Record]:
    return [record for record in world.records
            if record["kind"] == kind and all(record.get(name) == value for name, value in fields.items())]


def insert_after(world: World, record: Record, kind: str, **fields: Any) -> None:
    place = next(place for place, other in enumerate(world.records) if other is record)
    world.records.insert(place + 1, {"t": record["t"], "kind": kind} | fields)


def row_of(world: World, table: str, **fields: Any) -> Record:
    return next(row for row in world.tables[table] if all(row[name] == value for name, value in fields.items()))


def replace_by_skip(frame: Record, reason: str) -> None:
    skip = {"t": frame["t"], "kind": "skipped", "session": frame["session"], "feed": frame["feed"], "from": frame["seq"],
            "to": frame["seq"], "reason": reason}
    frame.clear()
    frame.update(skip)


def small(**settings: Any) -> tuple[World, Session]:
    """A world with one device that has got and acknowledged five events."""
    world = World(**settings)
    bystander(world)
    world.device("anna", "till")
    world.wait(1)
    session = world.connect("anna", "till")
    for _ in range(5):
        world.publish("anna")
    world.ack(session)
    world.wait(5)
    return world, session


def finished(world: World) -> World:
    """Ends the world with one more event, so that the recovery from every fault can be measured."""
    world.publish("anna")
    world.wait(1)
    world.finish()
    return world


def store_in_wrong_order(world: World) -> None:
    first = world.publish("anna", stored=False)
    world.publish("anna")
    world.store(first)
    world.deliver()


def fail_over(world: World, session: Session, *, new_epoch: bool) -> None:
    """The primary dies with two notifications that its standby does not have, and their numbers are given out again."""
    for _ in range(2):
        world.publish("anna")
    world.ack(session, kept=not new_epoch)
    world.close(session, 1006)
    del world.feeds["anna"].rows[-2:]
    world.feeds["anna"].last -= 2
    if new_epoch:
        world.epoch = "e2"
    world.fault("fail-over", 3, "postgres", total=True)
    for _ in range(3):
        world.publish("anna")
    world.connect("anna", "till")


def trim(world: World, through: int) -> None:
    feed = world.feeds["anna"]
    feed.trimmed = through
    feed.rows = [row for row in feed.rows if row["seq"] > through]
