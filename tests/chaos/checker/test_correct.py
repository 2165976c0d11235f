"""Correct histories stay green, and an incomplete one has no verdict.

usage: python3 -m unittest discover -s tests/chaos/checker"""

import json
import subprocess
import sys
import tempfile
import unittest
from collections.abc import Callable
from pathlib import Path

from checks import Checks, fail_over, finished, records, red, small, store_in_wrong_order, trim, verdict_of
from judging import judge
from synthetic import SECOND, World, story


class StaysGreen(Checks):
    def test_a_correct_history_of_any_seed(self) -> None:
        for seed in range(1, 9):
            with self.subTest(seed=seed):
                self.expect(story(seed))

    def test_the_counts_of_a_correct_history(self) -> None:
        columns = verdict_of(story())["columns"]
        expected = {"attempted": 53, "confirmed": 51, "stored": 51, "delivered": 39, "acknowledged": 39}
        self.assertEqual({column: columns[column] for column in expected}, expected)

    def test_a_refused_event_that_is_stored_later(self) -> None:
        for kind in ("publish_returned", "publish_nacked"):
            with self.subTest(kind=kind):
                self._expect_any_place_after(kind)

    def _expect_any_place_after(self, kind: str) -> None:
        world, _ = small()
        world.n["shop", "anna"] += 1
        late = world.publish("anna", stored=False, confirmed=False) | {"n": 6}
        records(world, "publish_invoked", id=late["id"])[0]["n"] = 6
        records(world, "publish_unknown", id=late["id"])[0]["kind"] = kind
        world.publish("anna")
        world.publish_again(late, stored=False)
        self.expect(finished(world))

    def test_any_order_if_the_docs_allow_it(self) -> None:
        world, _ = small()
        store_in_wrong_order(world)
        self.expect(finished(world), "reordered")
        world.settings["ordered"] = False
        self.expect(world)

    def test_an_event_in_the_queue_of_unroutable_events(self) -> None:
        world, _ = small()
        event = world.publish("anna", stored=False)
        world.unroutable.append({"source": "/chaos", "event_id": event["id"], "feed": "anna"})
        self.expect(finished(world))

    def test_an_ack_that_crossed_a_close(self) -> None:
        world, session = small()
        world.publish("anna")
        world.ack(session, kept=False)
        world.close(session, 4410)
        world.wait(5)
        world.connect("anna", "till")
        self.expect(finished(world))

    def test_an_ack_that_a_fast_reconnect_overtakes(self) -> None:
        world, session = small()
        world.publish("anna")
        world.ack(session, kept=False)
        world.close(session)
        world.connect("anna", "till", "replica-1")
        self.expect(finished(world))

    def test_an_ack_that_waits_for_a_dead_connection(self) -> None:
        world, session = small()
        world.fault("black-hole-postgres", 3, "postgres", "network", total=True)
        world.wait(4)
        world.publish("anna")
        world.ack(session, kept=False)
        world.wait(5)
        world.close(session, 1006)
        world.fault("kill-replica", 1, "replica-0")
        world.connect("anna", "till")
        self.expect(finished(world))

    def test_an_ack_over_a_socket_that_died_before(self) -> None:
        world, session = small()
        world.publish("anna")
        world.fault("half-open-clients", 1, "network", "replica-0")
        world.wait(5)
        world.ack(session, kept=False)
        world.wait(10)
        world.close(session, 1006)
        world.connect("anna", "till")
        self.expect(finished(world))

    def test_a_new_epoch_after_a_fail_over_that_lost_rows(self) -> None:
        world, session = small(lossy=True)
        fail_over(world, session, new_epoch=True)
        self.expect(finished(world))

    def test_a_promotion_that_lost_nothing(self) -> None:
        world, session = small()
        world.close(session, 4410)
        world.fault("fail-over", 3, "postgres", total=True)
        world.epoch = "e2"
        world.connect("anna", "till")
        self.expect(finished(world))

    def test_removed_notifications_that_everyone_has(self) -> None:
        world, session = small()
        trim(world, 5)
        world.close(session)
        world.connect("anna", "till")
        world.device("anna", "new")
        world.cursors["anna", "anna", "new"] = 5
        world.connect("anna", "new")
        self.expect(finished(world))

    def test_a_removed_notification_that_expired(self) -> None:
        world, session = small()
        world.close(session)
        world.publish("anna", expires_at=world.t + SECOND)
        world.wait(4)
        trim(world, 6)
        world.connect("anna", "till")
        self.expect(finished(world))

    def test_a_removed_notification_that_a_newer_one_replaced(self) -> None:
        world, session = small()
        world.close(session)
        world.publish("anna", collapse_key="stock"), world.publish("anna", collapse_key="stock")
        world.connect("anna", "till")
        world.wait(4)
        trim(world, 7)
        self.expect(finished(world))

    def test_a_replacement_that_was_removed_before_another_one_came(self) -> None:
        world, session = small()
        world.publish("anna", collapse_key="stock")
        world.close(session)
        world.publish("anna", collapse_key="stock", expires_at=world.t + SECOND)
        world.wait(4)
        world.device("anna", "new")
        world.cursors["anna", "anna", "new"] = 5
        world.connect("anna", "new")
        trim(world, 7)
        world.publish("anna", collapse_key="stock")
        world.connect("anna", "till")
        self.expect(finished(world))

    def test_a_start_that_the_client_chose(self) -> None:
        world, session = small()
        world.close(session)
        world.cursors["anna", "anna", "till"] = 2
        world.connect("anna", "till")
        records(world, "session_opened")[-1]["feeds"][0]["after"] = True
        self.expect(finished(world))


class CannotJudge(unittest.TestCase):
    def expect_status(self, directory: Path) -> None:
        verdict = judge(directory)
        self.assertEqual((verdict["status"], bool(verdict["problems"])), (2, True), verdict)

    def test_an_empty_directory(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            self.expect_status(Path(directory))

    def test_a_part_is_missing(self) -> None:
        def without(kind: str) -> Callable[[Path], None]:
            def change(directory: Path) -> None:
                for path in directory.glob("*.jsonl"):
                    lines = path.read_text().splitlines(keepends=True)
                    path.write_text("".join(line for line in lines if json.loads(line)["kind"] != kind))
            return change

        def a_line_that_is_cut(directory: Path) -> None:
            path = directory / "load.jsonl"
            path.write_text(path.read_text()[:-20])

        def a_kind_that_nobody_described(directory: Path) -> None:
            with (directory / "load.jsonl").open("a") as lines:
                lines.write('{"t": 1, "kind": "surprise"}\n')

        def a_line_without_a_field(directory: Path) -> None:
            with (directory / "load.jsonl").open("a") as lines:
                lines.write('{"t": 1, "kind": "ack_sent", "session": "s1"}\n')

        def a_merchant_without_a_secret(directory: Path) -> None:
            (directory / "secrets.json").write_text('{"anna": "secret-anna"}')

        for change in (without("healed"), without("drained"), without("fault_ended"), without("memory"),
                       without("publish_confirmed"), without("ack_sent"), a_line_that_is_cut, a_kind_that_nobody_described,
                       a_line_without_a_field, a_merchant_without_a_secret,
                       lambda directory: (directory / "database" / "notifications.jsonl").unlink(),
                       lambda directory: (directory / "database" / "epochs.jsonl").write_text("")):
            with self.subTest(change.__name__), tempfile.TemporaryDirectory() as name:
                story().write(Path(name))
                change(Path(name))
                verdict = judge(Path(name))
                self.assertNotEqual(verdict["status"], 0)
                if not red(verdict):
                    self.assertEqual((verdict["status"], bool(verdict["problems"])), (2, True), verdict)

    def test_the_program_returns_the_status(self) -> None:
        program = Path(__file__).parent
        for world, status in ((story(), 0), (World(), 2)):
            with tempfile.TemporaryDirectory() as directory:
                world.write(Path(directory))
                done = subprocess.run([sys.executable, "-B", program, directory, "--json"], capture_output=True, text=True, check=False)
                self.assertEqual((done.returncode, json.loads(done.stdout)["status"]), (status, status), done.stderr)
