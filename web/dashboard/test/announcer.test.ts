import assert from "node:assert/strict";
import { test } from "node:test";
import { Announcements } from "../src/announcer.js";
import { ConnectionNews, type ConnectionState } from "../src/header.js";
import { CHIME_INTERVAL_MS, mayChime } from "../src/sound.js";

test("a lost connection and its return are announced once each", () => {
  const news = new ConnectionNews();
  const states: ConnectionState[] = [
    "connecting",
    "reconnecting",
    "connecting",
    "catching_up",
    "live",
    "reconnecting",
    "connecting",
    "offline",
    "reconnecting",
    "catching_up",
    "live",
    "live",
  ];
  assert.deepEqual(
    states.map((state) => news.next(state)).filter((one) => one),
    ["lost", "regained"],
  );
});

test("many announcements become one of bounded length", () => {
  const announcements = new Announcements();
  for (let n = 1; n <= 50; n++) announcements.add(`and ${n} more`, "more");
  for (let n = 1; n <= 3; n++) announcements.add(`New order ${n}`);
  assert.equal(announcements.take(), "and 50 more. New order 1. New order 2. New order 3");
  for (let n = 1; n <= 50; n++) announcements.add(`New order ${n}`);
  assert.equal(announcements.take().split(". ").length, 4);
  assert.equal(announcements.take(), "");
});

test("a chime of one tab is not repeated by another", () => {
  const now = 1_000_000;
  assert.ok(mayChime(now, 0, true));
  assert.ok(!mayChime(now, now - CHIME_INTERVAL_MS + 1, true), "another tab repeated it");
  assert.ok(mayChime(now, now - CHIME_INTERVAL_MS, true));
  assert.ok(!mayChime(now, now - 500, false));
  assert.ok(!mayChime(now, now + 5, false), "another tab was first");
  assert.ok(mayChime(now, now + 60_000, false), "the clock was set back");
});
