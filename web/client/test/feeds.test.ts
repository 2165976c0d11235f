import assert from "node:assert/strict";
import { test } from "node:test";
import type { Notification } from "../src/events.js";
import { ABOVE_MAX, Feeds } from "../src/feeds.js";
import type { State, Welcome } from "../src/protocol.js";

const welcome = (more: Partial<Welcome["feeds"][number]> = {}): Welcome => ({
  type: "welcome",
  session: "s",
  subscriber: "me",
  device: "",
  window: 256,
  heartbeat_seconds: 25,
  token_expires_in: 60,
  feeds: [{ feed: "m", cursor: 0, last: 0, unread: 0, unhandled: 0, version: 0, ...more }],
});
const notification = (seq: number, more: Partial<Notification> = {}): Notification =>
  ({
    type: "notification",
    feed: "m",
    seq,
    id: "",
    source: "",
    event: "order.created",
    data: {},
    ...more,
  }) as Notification;
const state = (more: Partial<State>): State =>
  ({
    type: "state",
    feed: "m",
    seqs: [1],
    read_at: "t",
    unread: 0,
    unhandled: 0,
    last: 0,
    ...more,
  }) as State;
const feeds = (more?: Partial<Welcome["feeds"][number]>, completed = 0) => {
  const it = new Feeds(() => completed);
  it.onWelcome(welcome(more));
  return it;
};
const total = (it: Feeds) => it.counts().total;

test("a number that is neither received nor skipped is a gap", () => {
  const it = feeds({ cursor: 4, last: 9 });
  assert.equal(it.onNotification(notification(5), true), "next");
  assert.equal(it.onNotification(notification(5), true), "old");
  assert.equal(it.onNotification(notification(7), true), "gap");
  assert.equal(
    it.onSkipped({ type: "skipped", feed: "m", from: 7, through: 8, reason: "" }, true),
    "gap",
  );
  assert.equal(
    it.onSkipped({ type: "skipped", feed: "m", from: 6, through: 8, reason: "" }, true),
    "next",
  );
  assert.equal(it.onNotification(notification(9), true), "next");
  assert.equal(it.onNotification(notification(1, { feed: "x" }), true), "unknown");
});

test("notifications above last add to the counts unless marked", () => {
  const it = feeds({ last: 2, unread: 2, unhandled: 1 });
  it.onNotification(notification(1), true);
  it.onNotification(notification(2), true);
  assert.deepEqual(total(it), { unread: 2, unhandled: 1 });
  it.onNotification(notification(3), true);
  it.onNotification(notification(4, { read_at: "t" }), true);
  it.onNotification(notification(5, { read_at: "t", handled_at: "t" }), true);
  assert.deepEqual(total(it), { unread: 3, unhandled: 3 });
});

test("a state frame replaces the counts up to its last", () => {
  const it = feeds();
  for (let seq = 1; seq <= 4; seq++) it.onNotification(notification(seq), true);
  it.onState(state({ version: 1, unread: 2, unhandled: 3, last: 3 }));
  assert.deepEqual(total(it), { unread: 3, unhandled: 4 });
  // `last` may be ahead of the received notifications.
  it.onState(state({ version: 2, unread: 5, unhandled: 6, last: 6 }));
  it.onNotification(notification(5), true);
  it.onNotification(notification(6), true);
  assert.deepEqual(total(it), { unread: 5, unhandled: 6 });
});

test("counts stay exact above the bound on single notifications", () => {
  const it = feeds();
  for (let seq = 1; seq <= 3 * ABOVE_MAX; seq++) it.onNotification(notification(seq), true);
  assert.deepEqual(total(it), { unread: 3 * ABOVE_MAX, unhandled: 3 * ABOVE_MAX });
  // The counts are as of a number that is summed up already, so they must be requested.
  it.onState(state({ version: 1, unread: 0, unhandled: 0, last: 1 }));
  assert.deepEqual(it.stale(), ["m"]);
});

test("replayed marks do not change the counts of welcome", () => {
  const it = feeds({ version: 3 });
  it.onWelcome(welcome({ last: 9, unread: 4, unhandled: 5, version: 5 }));
  assert.equal(it.onState(state({ version: 4, unread: 7, last: 9 })), false);
  assert.deepEqual(total(it), { unread: 4, unhandled: 5 });
  assert.equal(it.onState(state({ version: 5, unread: 4, unhandled: 5, last: 9 })), false);
  assert.equal(it.onState(state({ version: 7, unread: 1, last: 9 })), true, "version 6 is missing");
  assert.equal(it.query().get("state"), "m:7");
});

test("a reply without a version changes only requested counts", () => {
  const it = feeds({ last: 3, unread: 3, unhandled: 3 });
  it.onState(state({ seqs: [1], unread: 9, last: 3 }));
  assert.equal(total(it).unread, 3);
  it.onState(state({ seqs: [], unread: 2, last: 3 }));
  assert.equal(total(it).unread, 2);
});

test("counts are stale after a skip until a reply covers it", () => {
  const it = feeds();
  it.onSkipped({ type: "skipped", feed: "m", from: 1, through: 3, reason: "expired" }, true);
  assert.deepEqual(it.stale(), ["m"]);
  it.onState(state({ seqs: [], last: 2 }));
  assert.deepEqual(it.stale(), ["m"]);
  it.onState(state({ seqs: [], last: 3 }));
  assert.deepEqual(it.stale(), []);
});

test("shared feeds are in no total and their counts are not requested", () => {
  const it = feeds({ shared: true, last: 4, unread: 4, unhandled: 4 });
  it.onSkipped({ type: "skipped", feed: "m", from: 5, through: 5, reason: "" }, false);
  assert.deepEqual(total(it), { unread: 0, unhandled: 0 });
  assert.equal(it.counts().feeds.m?.unread, 4);
  assert.deepEqual(it.stale(), []);
});

test("a number completed in another epoch rings again", () => {
  const it = feeds({ cursor: 2, last: 50, epoch: "e1" }, 40);
  assert.equal(it.completed("m"), 40);
  assert.equal(it.take(notification(40)), false);
  assert.equal(it.key(notification(40)), "m:40:e1");
  const renewed = new Feeds(() => 0);
  renewed.onWelcome(welcome({ cursor: 2, last: 50, epoch: "e1" }));
  renewed.onCompleted("m", 40);
  assert.equal(renewed.isRenewed(welcome({ epoch: "e1" })), false);
  assert.equal(renewed.isRenewed(welcome({ epoch: "e2" })), true);
  assert.deepEqual(renewed.onWelcome(welcome({ cursor: 2, last: 60, version: 0, epoch: "e2" })), [
    "m",
  ]);
  assert.equal(renewed.completed("m"), 2);
  assert.ok(renewed.take(notification(3)));
  assert.equal(renewed.query().get("state"), "m:0:e2");
});

test("the first epoch of a server keeps the completed numbers", () => {
  const it = feeds({ cursor: 2, last: 50 });
  it.onCompleted("m", 40);
  assert.equal(it.query().get("state"), "m:0");
  assert.deepEqual(it.onWelcome(welcome({ cursor: 2, last: 50, epoch: "e1" })), []);
  assert.equal(it.completed("m"), 40);
});

test("acks of another browser while away cause a resync", () => {
  const it = feeds({ cursor: 3, last: 3 });
  it.onNotification(notification(4), true);
  it.take(notification(4));
  assert.deepEqual(it.onWelcome(welcome({ cursor: 4, last: 9 })), []);
  assert.deepEqual(it.onWelcome(welcome({ cursor: 6, last: 9 })), ["m"]);
});

test("a tab that joins has the leader's positions and counts", () => {
  const first = feeds({ cursor: 2, last: 4, unread: 4, unhandled: 4 });
  for (const seq of [3, 4, 5]) first.onNotification(notification(seq), true);
  first.onCompleted("m", 3);
  const second = new Feeds(() => 0);
  const snapshot = first.snapshot(welcome());
  second.onWelcome(snapshot);
  assert.deepEqual(second.counts(), first.counts());
  assert.ok(second.take(notification(4)), "pending");
  assert.equal(second.onNotification(notification(6), false), "next");
  first.onNotification(notification(6), true);
  assert.deepEqual(second.counts(), first.counts());
});

test("a tab that comes back resyncs after missed marks", () => {
  const first = feeds();
  const second = feeds();
  assert.deepEqual(second.onWelcome(first.snapshot(welcome())), []);
  first.onState(state({ version: 1 }));
  assert.deepEqual(second.onWelcome(first.snapshot(welcome())), ["m"]);
  assert.equal(second.onState(state({ version: 2 })), false);
});
