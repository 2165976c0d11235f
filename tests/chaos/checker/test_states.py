"""One wrong detail in the counters, the health or the content turns the expected columns red.

usage: python3 -m unittest discover -s tests/chaos/checker"""

import json
from collections.abc import Callable
from typing import Any

from checks import Checks, finished, records, red, row_of, small, verdict_of
from synthetic import STARTED_AT, World, story


class CountMismatch(Checks):
    def test_a_counter_of_a_feed(self) -> None:
        def more(table: str, column: str, **fields: Any) -> Callable[[World], None]:
            def change(world: World) -> None:
                row_of(world, table, **fields)[column] += 1
            change.__name__ = f"{table}.{column}"
            return change

        self.expect_each(
            ("count_mismatch",),
            *(more("feeds", column, feed="berta") for column in ("unread", "unhandled", "acked_seq", "version")),
            *(more("imports", column, feed="berta") for column in ("done", "failed", "total")))

    def test_rows(self) -> None:
        def a_number_that_is_not_stored(world: World) -> None:
            row_of(world, "feeds", feed="berta")["last_seq"] += 1

        def the_status_of_an_import(world: World) -> None:
            row_of(world, "imports", feed="berta")["status"] = "running"

        def an_item_that_is_not_seen(world: World) -> None:
            row_of(world, "import_items", feed="berta")["seen"] = "0" * 512

        def no_row_for_an_import(world: World) -> None:
            world.tables["imports"].clear()
            world.tables["import_items"].clear()

        def the_progress_of_a_notification(world: World) -> None:
            row_of(world, "notifications", event_type="import.finished")["import_done"] = 3

        def a_cursor_above_the_last_number(world: World) -> None:
            row_of(world, "cursors", feed="all", subscriber="berta")["acked_seq"] = 2

        def a_gap_in_the_versions(world: World) -> None:
            world.tables["marks"].remove(row_of(world, "marks", feed="anna", version=1))
            row_of(world, "feeds", feed="anna")["version"] = 3
            row_of(world, "marks", feed="anna", version=2)["version"] = 3
            for state in records(world, "state", feed="anna"):
                state.pop("last")
            world.tables["marks"].append(row_of(world, "marks", feed="anna", version=3) | {"version": 1})

        def an_unread_one_among_the_read(world: World) -> None:
            row_of(world, "feeds", feed="berta")["read_seq"] = 1

        def a_row_below_the_watermark(world: World) -> None:
            row_of(world, "feeds", feed="carla")["trimmed_seq"] = 1

        def a_feed_without_a_row(world: World) -> None:
            world.tables["feeds"].remove(row_of(world, "feeds", feed="all"))

        self.expect_each(("count_mismatch",), the_status_of_an_import, an_item_that_is_not_seen, no_row_for_an_import,
                         the_progress_of_a_notification, a_gap_in_the_versions,
                         an_unread_one_among_the_read, a_row_below_the_watermark)
        self.expect_each(("count_mismatch", "not_drained"), a_number_that_is_not_stored)
        self.expect_each(("count_mismatch", "lost"), a_cursor_above_the_last_number)
        world = story()
        a_feed_without_a_row(world)
        self.assertIn("count_mismatch", red(verdict_of(world)))

    def test_marks(self) -> None:
        def a_confirmed_mark_is_missing(world: World) -> None:
            row_of(world, "notifications", feed="anna", seq=3)["handled_at"] = None
            row_of(world, "feeds", feed="anna")["unhandled"] += 1
            row_of(world, "marks", feed="anna", version=2)["seqs"] = [2]

        def a_row_lacks_its_mark(world: World) -> None:
            row_of(world, "notifications", feed="berta", seq=4)["read_at"] = None
            row_of(world, "feeds", feed="berta")["unread"] += 1

        def a_mark_that_nobody_asked_for(world: World) -> None:
            row_of(world, "notifications", feed="carla", seq=3)["read_at"] = STARTED_AT
            row_of(world, "feeds", feed="carla")["unread"] -= 1

        def a_session_received_other_counts(world: World) -> None:
            records(world, "state", feed="anna")[0]["unread"] += 1

        def a_session_received_another_count_at_the_end(world: World) -> None:
            world.record("counts", session="s3", feed="berta", unread=0, unhandled=0, last=world.feeds["berta"].last)

        def a_session_received_a_count_of_the_future(world: World) -> None:
            records(world, "state", feed="anna")[0]["last"] = 1_000

        self.expect_each(("count_mismatch",), a_confirmed_mark_is_missing, a_row_lacks_its_mark, a_mark_that_nobody_asked_for,
                         a_session_received_other_counts, a_session_received_a_count_of_the_future,
                         a_session_received_another_count_at_the_end)


class Health(Checks):
    def test_ready_while_postgres_is_away(self) -> None:
        def it_stayed_ready(world: World) -> None:
            for sample in records(world, "readiness", status=503):
                sample["status"] = 200

        self.expect_each(("readiness_untrue",), it_stayed_ready)

    def test_unready_without_a_fault(self) -> None:
        def the_last_sample(world: World) -> None:
            records(world, "readiness")[-1]["status"] = 503

        def a_long_silence(world: World) -> None:
            world.records = world.records[:-1]
            for _ in range(40):
                world.wait(0.5)
                for sample in world.records[-4:]:
                    if sample["kind"] == "readiness":
                        sample["status"] = 0
            world.record("drained")

        self.expect_each(("readiness_untrue",), the_last_sample, a_long_silence)

    def test_a_late_answer_is_no_untrue_one(self) -> None:
        world = story()
        records(world, "readiness")[-1]["status"] = 0
        self.expect(world)

    def test_memory(self) -> None:
        def a_replica_grew(world: World) -> None:
            records(world, "memory")[-1]["rss"] = 1_001

        def a_session_without_window(world: World) -> None:
            world.settings["window"] = 3

        self.expect_each(("memory_above_bound",), a_replica_grew, a_session_without_window)

    def test_a_secret_in_a_log(self) -> None:
        world = story()
        world.record("log_leak", replica="replica-0", text="secret-anna")
        self.expect(world, "log_leaks")
        self.assertNotIn("secret-anna", json.dumps(verdict_of(world)))

    def test_a_recovery_that_is_too_slow_or_does_not_come(self) -> None:
        def slower_than_the_bound(world: World) -> None:
            world.settings["bounds"]["recovery_seconds"] = 0

        def a_replica_that_stays_away(world: World) -> None:
            ended = records(world, "fault_ended")[-1]["t"]
            for sample in records(world, "readiness", replica="replica-1"):
                if sample["t"] > ended:
                    sample["status"] = 0

        self.expect_each(("recovery_above_bound",), slower_than_the_bound)
        self.expect_each(("recovery_above_bound", "readiness_untrue"), a_replica_that_stays_away)

    def test_nothing_delivered_after_the_last_fault(self) -> None:
        world, session = small()
        world.close(session)
        world.fault("kill-replica", 2, "replica-0")
        world.wait(2)
        world.finish()
        self.expect(world, "recovery_above_bound")


class Unexpected(Checks):
    def test_events_that_nobody_published(self) -> None:
        world, _ = small()
        event = world.publish("anna")
        world.records = [record for record in world.records
                         if record.get("id") != event["id"] or not record["kind"].startswith("publish")]
        self.expect(finished(world), "unexpected")

    def test_a_dead_letter_of_a_valid_event(self) -> None:
        world, _ = small()
        event = world.publish("anna", stored=False)
        world.dead_letters.append({"reason": "malformed_json", "source": "/chaos", "event_id": event["id"], "feed": "anna"})
        self.expect(finished(world), "unexpected")

    def test_poison_that_is_stored(self) -> None:
        world, _ = small()
        poison = world.publish("anna", poison=True)
        world.store(poison)
        world.deliver()
        self.expect(finished(world), "unexpected")

    def test_data_without_the_secret_of_the_feed(self) -> None:
        def a_row(world: World) -> None:
            row_of(world, "notifications", feed="carla")["secrets"].clear()

        def a_frame(world: World) -> None:
            records(world, "frame")[0]["secrets"].clear()

        self.expect_each(("unexpected",), a_row, a_frame)
