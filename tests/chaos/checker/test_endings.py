"""The end of a run, its acks, and the amounts that prove something.

usage: python3 -m unittest discover -s tests/chaos/checker"""

from collections.abc import Callable

from checks import Checks, fail_over, finished, records, red, row_of, small, trim, verdict_of
from synthetic import World, story


class NotDrained(Checks):
    def test_a_bound_that_passed(self) -> None:
        def something_is_missing(world: World) -> None:
            records(world, "drained")[0]["missing"] = "1 devices are behind: anna/till in anna"

        self.expect_each(("not_drained",), something_is_missing)

    def test_a_final_cursor_below_the_last_number(self) -> None:
        def below_its_ack(world: World) -> None:
            row_of(world, "cursors", feed="berta", subscriber="berta")["acked_seq"] -= 1
            row_of(world, "feeds", feed="berta")["acked_seq"] -= 1

        def no_cursor(world: World) -> None:
            world.tables["cursors"].remove(row_of(world, "cursors", feed="all", subscriber="berta"))

        world = story()
        below_its_ack(world)
        self.assertEqual(red(verdict_of(world)), {"not_drained", "acknowledged_but_replayed"})
        self.expect_each(("not_drained",), no_cursor)

    def test_a_final_cursor_above_every_ack(self) -> None:
        def nobody_acked_the_newest(world: World) -> None:
            last = world.feeds["berta"].last
            world.records = [record for record in world.records
                             if record["kind"] != "ack_sent" or record["feed"] != "berta" or record["seq"] < last]

        world = story()
        nobody_acked_the_newest(world)
        self.assertIn("lost", red(verdict_of(world)))

    def test_the_recorded_ack_of_a_feed_may_be_below_its_cursors_and_never_above_every_ack(self) -> None:
        world = story()
        row_of(world, "feeds", feed="berta")["acked_seq"] -= 1
        self.assertEqual(red(verdict_of(world)), set())

        def above_every_ack(world: World) -> None:
            row_of(world, "feeds", feed="berta")["acked_seq"] += 1

        self.expect_each(("count_mismatch",), above_every_ack)

    def test_a_cursor_of_a_device_that_never_connects(self) -> None:
        def it_has_one(world: World) -> None:
            world.tables["cursors"].append({"feed": "carla", "subscriber": "carla", "device": "till", "acked_seq": 0})

        self.expect_each(("unexpected",), it_has_one)


class Acks(Checks):
    def lose(self, before: Callable[[World], None], replica: str = "replica-1") -> World:
        """A device acks 6, something happens, and its next session starts after 5."""
        world, session = small()
        world.publish("anna")
        world.ack(session, kept=False)
        before(world)
        world.close(session)
        world.connect("anna", "till", replica)
        return finished(world)

    def test_an_ack_near_a_fault_that_cannot_lose_it(self) -> None:
        for fault, part in (("kill-rabbitmq", "rabbitmq"), ("kill-replica", "replica-1"), ("retention", "retention")):
            with self.subTest(fault=fault):
                self.expect(self.lose(lambda world: world.fault(fault, 8, part)), "acknowledged_but_replayed")

    def test_an_ack_near_a_fault_that_may_lose_it(self) -> None:
        for fault, parts in (("kill-replica", ("replica-0",)), ("kill-postgres", ("postgres",)), ("half-open-clients", ("network", "replica-0"))):
            with self.subTest(fault=fault):
                self.expect(self.lose(lambda world: world.fault(fault, 2, *parts)))

    def test_an_ack_that_the_same_replica_has_in_memory(self) -> None:
        self.expect(self.lose(lambda world: None, "replica-0"), "acknowledged_but_replayed")
        self.expect(self.lose(lambda world: world.fault("pause-postgres", 2, "postgres", total=True), "replica-0"),
                    "acknowledged_but_replayed")

    def test_an_ack_that_a_crash_of_postgres_lost(self) -> None:
        def crash_later(fault: str, seconds: float) -> Callable[[World], None]:
            def crash(world: World) -> None:
                world.wait(seconds)
                world.fault(fault, 2, "postgres", total=True)
                world.wait(20)
            return crash

        for fault in ("kill-postgres", "full-disk"):
            with self.subTest(fault=fault):
                self.expect(self.lose(crash_later(fault, 1), "replica-0"))
                self.expect(self.lose(crash_later(fault, 1)))
                self.expect(self.lose(crash_later(fault, 8), "replica-0"), "acknowledged_but_replayed")
        self.expect(self.lose(crash_later("restart-postgres", 1)), "acknowledged_but_replayed")

    def test_an_ack_that_waited_for_the_end_of_an_outage(self) -> None:
        def outage(world: World) -> None:
            world.fault("pause-postgres", 2, "postgres", total=True)
            world.wait(16)

        self.expect(self.lose(outage), "acknowledged_but_replayed")

    def test_a_socket_that_worked_after_a_fault(self) -> None:
        world, session = small()
        world.fault("pause-replica", 2, "replica-0")
        world.wait(11)
        world.publish("anna")
        world.ack(session, kept=False)
        world.wait(4)
        world.close(session)
        world.connect("anna", "till")
        self.expect(finished(world), "acknowledged_but_replayed")

    def test_acks_that_a_new_epoch_keeps(self) -> None:
        world, session = small()
        world.close(session, 4410)
        world.fault("fail-over", 3, "postgres", total=True)
        world.epoch = "e2"
        world.connect("anna", "till")
        verdict = verdict_of(finished(world))
        self.assertEqual((verdict["status"], verdict["also"]["acks_judged"]), (0, verdict["also"]["acks"]), verdict)

    def test_too_few_judged_acks(self) -> None:
        world, session = small()
        world.settings["floors"]["acks_judged_percent"] = 90
        for _ in range(5):
            world.publish("anna")
            world.ack(session, kept=False)
        world.close(session, 1006)
        world.connect("anna", "till", "replica-1")
        verdict = verdict_of(finished(world))
        self.assertEqual((verdict["status"], verdict["also"]["acks"], verdict["also"]["acks_judged"]), (2, 9, 4), verdict)


class Floors(Checks):
    def expect_problem(self, world: World, text: str) -> None:
        verdict = verdict_of(world)
        self.assertEqual(verdict["status"], 2, verdict)
        self.assertTrue(any(text in problem for problem in verdict["problems"]), verdict["problems"])

    def test_each_amount_has_a_floor(self) -> None:
        for name in story().settings["floors"]:
            with self.subTest(name=name):
                world = story()
                world.settings["floors"][name] = 100_000
                self.expect_problem(world, f"{name} is ")
                world.settings["floors"][name] = 0
                self.expect_problem(world, f"no floor for {name}")
                del world.settings["floors"][name]
                self.expect_problem(world, f"no floor for {name}")

    def test_a_run_without_a_fault(self) -> None:
        world = story()
        for fault in records(world, "fault_begun") + records(world, "fault_ended"):
            world.records.remove(fault)
        for sample in records(world, "readiness"):
            sample["status"] = 200
        self.expect_problem(world, "faults is 0")
        # The operator wanted none, and the verdict shows it.
        world.settings["scenarios"] = []
        world.settings["floors"]["faults"] = 0
        verdict = verdict_of(world)
        self.assertNotEqual(verdict["verdict"], "good", verdict)

    def test_a_fault_without_effect(self) -> None:
        world = story()
        ended = records(world, "fault_ended", fault="stop-postgres")[0]
        ended["effect"] = 0
        verdict = verdict_of(world)
        self.assertEqual([fault["fault"] for fault in verdict["without_effect"]], ["stop-postgres"])
        self.assertEqual(verdict["problems"], [])
        # Three of them prove that the fault does not work.
        for _ in range(2):
            world.fault("stop-postgres", 1, "postgres", effect=0)
        problems = verdict_of(world)["problems"]
        self.assertTrue(any("stop-postgres had no effect" in problem for problem in problems), problems)
        # Another one of its kind had an effect.
        world.fault("stop-postgres", 1, "postgres")
        world.publish("anna")
        world.deliver()
        verdict = verdict_of(world)
        self.assertFalse(any("had no effect" in problem for problem in verdict["problems"]), verdict["problems"])

    def test_a_column_that_compared_nothing(self) -> None:
        world = story()
        for record in records(world, "logs_searched"):
            world.records.remove(record)
        self.expect_problem(world, "log_leaks was not judged")
        self.assertIsNone(verdict_of(world)["columns"]["log_leaks"])

    def test_the_order_before_a_fault_that_breaks_it(self) -> None:
        world, _ = small(ordered=False, reordering_faults=["kill-rabbitmq"])
        self.assertIsNotNone(verdict_of(finished(world))["columns"]["reordered"])
        world, _ = small(ordered=False, reordering_faults=["kill-replica"])
        # Nothing was delivered before it.
        records(world, "fault_begun")[0]["t"] = 0
        verdict = verdict_of(finished(world))
        self.assertEqual((verdict["columns"]["reordered"], verdict["status"]), (None, 0), verdict)


    def test_an_outage_of_postgres_without_an_answer(self) -> None:
        world = story()
        self.assertGreater(verdict_of(world)["also"]["unreadiness_judged"], 0)
        for sample in records(world, "readiness", status=503):
            sample["status"] = 0
        self.expect_problem(world, "while Postgres was away")
        # A short one may be over before the bound.
        world, _ = small()
        world.fault("stop-postgres", 3, "postgres", total=True)
        for sample in records(world, "readiness", status=503):
            sample["status"] = 0
        verdict = verdict_of(finished(world))
        self.assertEqual((verdict["problems"], verdict["also"]["unreadiness_judged"]), ([], 0), verdict)


class Readiness(Checks):
    def test_the_share_of_time_in_which_it_was_judged(self) -> None:
        def percent(*parts: str) -> int:
            world, _ = small()
            world.fault("herd", 30, *parts)
            return int(verdict_of(finished(world))["also"]["readiness_judged_percent"])

        self.assertGreater(percent("rabbitmq"), 50)
        self.assertLess(percent("machine"), 25)

    def test_ready_in_a_short_outage(self) -> None:
        world = story()
        world.fault("kill-postgres", 5, "postgres", total=True)
        for sample in world.records[-20:]:
            if sample["kind"] == "readiness":
                sample["status"] = 200
        self.assertIn("readiness_untrue", red(verdict_of(world)))

    def test_an_answer_that_was_asked_for_before_the_outage(self) -> None:
        world = story()
        outage = records(world, "fault_begun", fault="stop-postgres")[0]["t"]
        for sample in records(world, "readiness", status=503)[:6]:
            sample |= {"status": 200, "asked": outage - 1}
        self.expect(world)

    def test_unready_while_only_something_else_is_broken(self) -> None:
        def during(fault: str, part: str) -> World:
            world, _ = small()
            world.fault(fault, 12, part)
            for sample in records(world, "readiness", replica="replica-0")[-3:]:
                sample["status"] = 503
            world.wait(1)
            return finished(world)

        self.expect(during("pause-rabbitmq", "rabbitmq"), "readiness_untrue")
        self.expect(during("pause-replica", "replica-1"), "readiness_untrue")
        self.expect(during("pause-replica", "replica-0"))


class Overload(Checks):
    """The machine is overloaded if Postgres does not answer the recorder itself soon."""

    def slow(self, answered: bool, seconds: int) -> World:
        world, session = small()
        world.publish("anna")
        world.ack(session, kept=False)
        asked = world.t
        world.wait(5)
        world.records.append({"t": asked + seconds * 1_000_000, "kind": "witness", "asked": asked, "answered": answered})
        world.close(session)
        world.connect("anna", "till", "replica-1")
        return finished(world)

    def test_a_slow_answer_delays_an_ack(self) -> None:
        self.expect(self.slow(True, 0), "acknowledged_but_replayed")
        self.expect(self.slow(True, 1))
        self.expect(self.slow(False, 1))

    def test_a_slow_answer_excuses_an_unready_replica_while_something_else_is_broken(self) -> None:
        for seconds, columns in ((0, ("readiness_untrue",)), (3, ())):
            world, _ = small()
            world.fault("pause-rabbitmq", 12, "rabbitmq")
            for sample in records(world, "readiness", replica="replica-0")[-3:]:
                sample["status"] = 503
            asked = world.t - 10_000_000
            world.records.append({"t": asked + seconds * 1_000_000, "kind": "witness", "asked": asked, "answered": True})
            self.expect(finished(world), *columns)


    def test_a_slow_answer_excuses_an_unready_replica_without_a_fault(self) -> None:
        for seconds, columns in ((0, ("readiness_untrue",)), (3, ())):
            world, _ = small()
            world.wait(20)
            asked = world.t - 4_000_000
            world.records.append({"t": asked + seconds * 1_000_000, "kind": "witness", "asked": asked, "answered": True})
            records(world, "readiness", replica="replica-0")[-1]["status"] = 503
            self.expect(finished(world), *columns)


class AnnouncedLoss(Checks):
    def lossy(self, seconds: int) -> World:
        """Two notifications are stored that many seconds before the primary dies, and are gone."""
        world, session = small(lossy=True, lag_seconds=2)
        for _ in range(2):
            world.publish("anna")
        world.ack(session, kept=False)
        world.wait(seconds)
        world.close(session, 1006)
        del world.feeds["anna"].rows[-2:]
        world.feeds["anna"].last -= 2
        world.epoch = "e2"
        world.fault("fail-over", 3, "postgres", total=True)
        world.publish("anna")
        world.connect("anna", "till")
        return finished(world)

    def test_only_the_lag_may_be_lost(self) -> None:
        self.expect(self.lossy(1))
        self.expect(self.lossy(8), "lost")

    def test_a_fail_over_without_a_lag(self) -> None:
        world, session = small(lossy=True, lag_seconds=0)
        world.publish("anna", stored=False)
        world.wait(20)
        fail_over(world, session, new_epoch=True)
        self.expect(finished(world), "lost")


class Marks(Checks):
    def test_the_newest_mark_is_lost(self) -> None:
        world, session = small()
        world.mark(session, "read", "anna", [1])
        world.mark(session, "read", "anna", [2])
        finished(world)
        world.tables["marks"] = [mark for mark in world.tables["marks"] if (mark["feed"], mark["version"]) != ("anna", 2)]
        feed = row_of(world, "feeds", feed="anna")
        feed["version"] -= 1
        feed["unread"] += 1
        row_of(world, "notifications", feed="anna", seq=2)["read_at"] = None
        # Nothing but the version shows it, because the mark was not confirmed.
        world.records.remove(records(world, "mark_confirmed", feed="anna", seqs=[2])[0])
        self.expect(world, "count_mismatch")

    def test_a_mark_of_other_notifications(self) -> None:
        world, session = small()
        world.mark(session, "read", "anna", [1])
        finished(world)
        records(world, "state", feed="anna")[-1].update(seqs=[1, 2], read_at="2026-09-21T14:13:21Z")
        self.expect(world, "count_mismatch")


class Removals(Checks):
    def removed(self, *newer: dict[str, str]) -> World:
        """A notification with a key is removed before anyone got it. `newer` are published after it."""
        world, session = small()
        world.close(session)
        world.publish("anna", collapse_key="stock")
        for attributes in newer:
            world.publish("anna", **attributes)
        # Retention removes it before the device returns.
        world.wait(4)
        trim(world, 6)
        world.connect("anna", "till")
        return finished(world)

    def test_a_newer_one_of_its_key(self) -> None:
        self.expect(self.removed({"collapse_key": "stock"}))

    def test_no_newer_one_of_its_key(self) -> None:
        self.assertIn("lost", red(verdict_of(self.removed({"collapse_key": "other"}))))
        self.assertIn("lost", red(verdict_of(self.removed())))

    def test_a_removed_number_without_an_event(self) -> None:
        world, session = small()
        world.close(session)
        world.feeds["anna"].last += 1
        trim(world, 6)
        world.connect("anna", "till")
        self.expect(finished(world), "count_mismatch")

    def test_more_reasons_than_events(self) -> None:
        world = self.removed({"collapse_key": "stock"})
        records(world, "skipped", feed="anna", reason="trimmed")[-1]["reason"] = "expired"
        self.expect(world, "unexplained_gap")

    def test_a_watermark_above_the_last_number(self) -> None:
        world, _ = small()
        finished(world)
        trimmed = [row for row in world.tables["notifications"] if row["feed"] == "anna"]
        for row in trimmed:
            world.tables["notifications"].remove(row)
        row_of(world, "feeds", feed="anna").update(trimmed_seq=7, unread=0, unhandled=0)
        self.expect(world, "count_mismatch")

    def test_two_rows_with_one_number(self) -> None:
        world, _ = small()
        finished(world)
        row = row_of(world, "notifications", feed="anna", seq=2)
        world.tables["notifications"].append(dict(row))
        self.assertIn("duplicated", red(verdict_of(world)))

    def test_a_number_above_the_last_one(self) -> None:
        world, _ = small()
        finished(world)
        frame = records(world, "frame", feed="anna")[-1]
        world.record("skipped", session=frame["session"], feed="anna", to=9, reason="expired", **{"from": 9})
        self.assertIn("count_mismatch", red(verdict_of(world)))
