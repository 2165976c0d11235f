"""One wrong detail in the way of the notifications turns the expected columns red.

usage: python3 -m unittest discover -s tests/chaos/checker"""

from checks import (
    Checks, fail_over, finished, insert_after, records, red, replace_by_skip, row_of, small, store_in_wrong_order, trim, verdict_of,
)
from synthetic import SECOND, World, story


class Lost(Checks):
    def test_confirmed_but_not_stored(self) -> None:
        world, _ = small()
        world.publish("anna", stored=False)
        self.expect(finished(world), "lost")

    def test_stored_but_not_delivered(self) -> None:
        def the_newest_never_arrived(world: World) -> None:
            frame = records(world, "frame", feed="berta")[-1]
            for ack in records(world, "ack_sent", session=frame["session"], feed="berta", seq=frame["seq"]):
                ack["seq"] -= 1
            row_of(world, "cursors", feed="berta", subscriber="berta")["acked_seq"] -= 1
            row_of(world, "feeds", feed="berta")["acked_seq"] -= 1
            world.records.remove(frame)

        def a_device_never_connected(world: World) -> None:
            world.device("carla", "phone")

        self.expect_each(("lost", "not_drained"), the_newest_never_arrived, a_device_never_connected)

    def test_a_device_that_starts_above_every_ack(self) -> None:
        world, _ = small()
        world.publish("berta"), world.publish("berta")
        world.device("berta", "till")
        world.cursors["berta", "berta", "till"] = 1
        world.connect("berta", "till")
        self.expect(finished(world), "lost")

    def test_delivered_but_not_stored(self) -> None:
        world, session = small()
        world.publish("anna", confirmed=False)
        world.feeds["anna"].rows.pop()
        world.feeds["anna"].last -= 1
        world.close(session, 1006)
        world.finish()
        self.expect(world, "lost", "count_mismatch")

    def test_removed_before_a_device_had_it(self) -> None:
        world, session = small()
        world.close(session)
        world.device("anna", "phone")
        world.connect("anna", "phone")
        world.publish("anna")
        world.wait(4)
        trim(world, 6)
        world.connect("anna", "till")
        self.expect(finished(world), "lost")

    def test_removed_without_a_number(self) -> None:
        world, session = small()
        world.close(session)
        world.publish("anna", collapse_key="stock", stored=False)
        world.publish("anna", collapse_key="stock"), world.publish("anna", collapse_key="stock")
        world.connect("anna", "till")
        world.wait(4)
        trim(world, 7)
        self.expect(finished(world), "lost")

    def test_removed_above_a_cursor(self) -> None:
        world, _ = small()
        trim(world, 5)
        finished(world)
        row_of(world, "cursors", feed="anna")["acked_seq"] = 4
        self.expect(world, "lost", "acknowledged_but_replayed", "not_drained")

    def test_removed_before_anyone_had_it(self) -> None:
        world, _ = small()
        world.publish("berta"), world.publish("berta")
        finished(world)
        world.tables["notifications"] = [row for row in world.tables["notifications"] if row["feed"] != "berta"]
        row_of(world, "feeds", feed="berta").update(trimmed_seq=2, unread=0, unhandled=0)
        self.expect(world, "lost")

    def test_lost_after_the_new_epoch(self) -> None:
        world, session = small(lossy=True)
        fail_over(world, session, new_epoch=True)
        world.publish("anna", stored=False)
        self.expect(finished(world), "lost")

    def test_skipped_as_lost(self) -> None:
        world, _ = small()
        event = world.publish("berta")
        world.device("berta", "till")
        world.connect("berta", "till")
        finished(world)
        world.tables["notifications"].remove(row_of(world, "notifications", event_id=event["id"]))
        row_of(world, "feeds", feed="berta").update(unread=0, unhandled=0)
        replace_by_skip(records(world, "frame", feed="berta")[0], "lost")
        self.expect(world, "lost", "count_mismatch")


class Duplicated(Checks):
    def test_a_number_that_comes_twice_in_a_session(self) -> None:
        def the_same_frame(world: World) -> None:
            frame = records(world, "frame", feed="berta")[-1]
            insert_after(world, frame, **{name: value for name, value in frame.items() if name != "t"})

        self.expect_each(("duplicated",), the_same_frame)

    def test_an_event_that_is_stored_twice(self) -> None:
        world, _ = small()
        world.store(world.publish("anna"))
        world.deliver()
        self.expect(finished(world), "duplicated")

    def test_a_number_that_is_given_out_again_in_the_same_epoch(self) -> None:
        world, session = small(lossy=True)
        fail_over(world, session, new_epoch=False)
        self.expect(finished(world), "duplicated", "lost")


class Reordered(Checks):
    def test_stored_against_the_order_of_the_publisher(self) -> None:
        world, _ = small()
        store_in_wrong_order(world)
        self.expect(finished(world), "reordered")

    def test_descending_numbers_in_a_session(self) -> None:
        def two_frames_swapped(world: World) -> None:
            first, second = records(world, "frame", session="s3", feed="berta")[2:4]
            first["t"], second["t"] = second["t"], first["t"]

        self.expect_each(("reordered",), two_frames_swapped)


class Leaked(Checks):
    def test_another_merchant(self) -> None:
        def a_frame_of_another_feed(world: World) -> None:
            frame = records(world, "frame", session="s3", feed="berta")[-1]
            row = row_of(world, "notifications", feed="anna", seq=1)
            insert_after(world, frame, "frame", session="s3", feed="anna", epoch="e1", seq=1, source=row["source"],
                         id=row["event_id"], secrets=row["secrets"])

        def a_frame_of_a_feed_that_the_session_did_not_open(world: World) -> None:
            a_frame_of_another_feed(world)
            records(world, "frame", session="s3", feed="anna")[0]["epoch"] = None

        def the_secret_of_another_merchant(world: World) -> None:
            records(world, "frame", feed="berta")[3]["secrets"].append("secret-anna")

        def a_stored_secret_of_another_merchant(world: World) -> None:
            row_of(world, "notifications", feed="carla")["secrets"].append("secret-anna")

        def a_session_with_another_feed(world: World) -> None:
            feeds = records(world, "session_opened", subscriber="berta")[0]["feeds"]
            feeds.append({"feed": "carla", "epoch": "e1", "cursor": 0, "last_seq": 0})

        def the_counts_of_another_feed(world: World) -> None:
            frame = records(world, "frame", session="s3")[-1]
            insert_after(world, frame, "counts", session="s3", feed="anna", unread=1, unhandled=1, version=0)

        def an_explanation_of_another_feed(world: World) -> None:
            frame = records(world, "frame", session="s3")[-1]
            insert_after(world, frame, "skipped", session="s3", feed="anna", to=1, reason="expired", **{"from": 1})

        self.expect_each(("leaked",), a_frame_of_another_feed, a_frame_of_a_feed_that_the_session_did_not_open,
                         the_secret_of_another_merchant, a_session_with_another_feed, a_stored_secret_of_another_merchant,
                         the_counts_of_another_feed, an_explanation_of_another_feed)

    def test_an_event_that_is_stored_for_another_merchant(self) -> None:
        world, _ = small()
        event = world.publish("berta", stored=False)
        world.store(event | {"feed": "carla"})
        self.assertIn("leaked", red(verdict_of(finished(world))))


class AcknowledgedButReplayed(Checks):
    def test_a_session_that_starts_below_an_ack(self) -> None:
        world, session = small()
        world.close(session)
        world.wait(5)
        world.cursors["anna", "anna", "till"] = 3
        world.connect("anna", "till")
        self.expect(finished(world), "acknowledged_but_replayed")

    def test_a_session_that_starts_below_an_earlier_start(self) -> None:
        world, session = small()
        # Only the starts of sessions show this place, because its acks are not in the history.
        world.records = [record for record in world.records
                         if record["kind"] != "ack_sent" or record["session"] != session.name]
        world.device("anna", "phone")
        phone = world.connect("anna", "phone")
        world.ack(phone)
        for _ in range(2):
            world.close(session)
            world.wait(5)
            session = world.connect("anna", "till")
            world.cursors["anna", "anna", "till"] = 3
        self.expect(finished(world), "acknowledged_but_replayed")

    def test_a_fault_elsewhen_excuses_nothing(self) -> None:
        world, session = small()
        world.close(session)
        world.wait(5)
        world.fault("kill-replica", 2, "replica-0")
        world.cursors["anna", "anna", "till"] = 3
        world.connect("anna", "till")
        self.expect(finished(world), "acknowledged_but_replayed")

    def test_an_ack_that_was_written_after_an_outage(self) -> None:
        world, session = small()
        world.fault("stop-postgres", 3, "postgres", total=True)
        world.wait(4)
        world.publish("anna")
        world.ack(session, kept=False)
        world.wait(20)
        world.close(session)
        world.connect("anna", "till")
        self.expect(finished(world), "acknowledged_but_replayed")

    def test_a_frame_at_the_cursor(self) -> None:
        def it_comes_again(world: World) -> None:
            opened = records(world, "session_opened", subscriber="anna", device="phone")[-1]
            start = opened["feeds"][0]
            row = row_of(world, "notifications", feed="anna", seq=start["cursor"])
            insert_after(world, opened, "frame", session=opened["session"], feed="anna", epoch="e1", seq=row["seq"],
                         source=row["source"], id=row["event_id"], secrets=row["secrets"])

        self.expect_each(("acknowledged_but_replayed",), it_comes_again)


class UnexplainedGap(Checks):
    def test_a_missing_number(self) -> None:
        def one_of_those_that_come_again(world: World) -> None:
            # The ack of these was lost, so an earlier session of the device had them.
            world.records.remove(records(world, "frame", session="s4", feed="anna")[0])

        self.expect_each(("unexplained_gap",), one_of_those_that_come_again)

    def test_a_missing_number_that_no_other_session_had(self) -> None:
        def one_of_many(world: World) -> None:
            world.records.remove(records(world, "frame", session="s3", feed="berta")[5])

        self.expect_each(("unexplained_gap", "lost"), one_of_many)

    def test_an_untrue_reason(self) -> None:
        def expired_that_never_expires(world: World) -> None:
            replace_by_skip(records(world, "frame", session="s3", feed="berta")[5], "expired")

        def collapsed_without_key(world: World) -> None:
            replace_by_skip(records(world, "frame", session="s3", feed="berta")[5], "collapsed")

        def collapsed_without_successor(world: World) -> None:
            newest = max(row["seq"] for row in world.tables["notifications"] if row["collapse_key"] == "stock")
            replace_by_skip(records(world, "frame", feed="anna", seq=newest)[-1], "collapsed")

        def trimmed_but_stored(world: World) -> None:
            replace_by_skip(records(world, "frame", session="s3", feed="berta")[5], "trimmed")

        def lost_but_stored(world: World) -> None:
            replace_by_skip(records(world, "frame", session="s3", feed="berta")[5], "lost")

        def a_reason_that_the_protocol_lacks(world: World) -> None:
            replace_by_skip(records(world, "frame", session="s3", feed="berta")[5], "tired")

        def expired_too_early(world: World) -> None:
            expiring = next(record for record in records(world, "publish_invoked") if "expires_at" in record)
            expiring["expires_at"] += 60 * SECOND

        def collapsed_before_the_newer_one(world: World) -> None:
            first = next(record for record in records(world, "publish_invoked") if record.get("collapse_key") == "stock")
            replace_by_skip(records(world, "frame", id=first["id"])[0], "collapsed")

        def an_explanation_that_begins_later(world: World) -> None:
            skip = records(world, "skipped", reason="collapsed", session="s5")[0]
            skip["from"] += 1
            skip["to"] += 1

        self.expect_each(("unexplained_gap",), expired_that_never_expires, collapsed_without_key, collapsed_without_successor,
                         trimmed_but_stored, lost_but_stored, a_reason_that_the_protocol_lacks, expired_too_early,
                         collapsed_before_the_newer_one)
        world = story()
        an_explanation_that_begins_later(world)
        self.assertIn("unexplained_gap", red(verdict_of(world)))
