import assert from "node:assert/strict";
import { test } from "node:test";
import { World, alone, upTo } from "./world.js";

test("completed numbers of another epoch are ignored", async () => {
  const world = new World();
  const before = alone(world);
  for (let n = 0; n < 9; n++) world.server.publish();
  await world.pass(200);
  before.tab.crash();
  world.server.restore(2);
  for (let n = 0; n < 9; n++) world.server.publish();
  const after = alone(world);
  await world.pass(200);
  assert.deepEqual(after.rung, [3, 4, 5, 6, 7, 8, 9, 10, 11]);
});

test("an open tab rings reused numbers after a restore and resyncs", async () => {
  const world = new World();
  const { tab, rung, statuses } = alone(world);
  const resynced: string[] = [];
  tab.client.watch("resync", ({ feed }) => resynced.push(feed));
  for (let n = 0; n < 10; n++) world.server.publish();
  await world.pass(200);
  world.server.restore(7);
  for (let n = 0; n < 4; n++) world.server.publish();
  await world.pass(2_000);
  assert.deepEqual(rung, [...upTo(10), 8, 9, 10, 11]);
  assert.equal(world.server.cursor(), 11);
  assert.deepEqual(resynced, ["m"]);
  assert.equal(statuses.at(-1), "live");
  assert.deepEqual(tab.client.counts.total, { unread: 11, unhandled: 11 });
  world.server.mark("m", "read", [1], "x");
  world.server.dropAll();
  await world.pass(2_000);
  assert.match(tab.sockets.at(-1)?.url ?? "", /state=m%3A1%3Ae2/);
  assert.deepEqual(resynced, ["m"]);
});

test("a handler that outlasts a restore completes no other notification", async () => {
  const world = new World();
  const tab = world.open({ share: false }, { visible: true });
  const rung: string[] = [];
  tab.client.ring("*", async ({ id }) => {
    rung.push(id);
    await tab.sleep(id === "e8" ? 1_000 : 0);
  });
  for (let n = 0; n < 8; n++) world.server.publish();
  await world.pass(200);
  assert.equal(world.server.cursor(), 7);
  world.server.restore(7);
  world.server.publish("order.created", "m", { id: "another" });
  await world.pass(5_000);
  assert.deepEqual(rung.slice(-2), ["e8", "another"]);
  assert.equal(world.server.cursor(), 8);
});

test("a mark from before a restore does not reach another notification", async () => {
  const world = new World();
  const { tab } = alone(world);
  for (let n = 0; n < 9; n++) world.server.publish();
  await world.pass(200);
  world.server.up = false;
  world.server.dropAll();
  const mark = tab.client.handle("m", [9]);
  const rejected = assert.rejects(mark, { code: "unknown_seq" });
  world.server.restore(7);
  for (let n = 0; n < 4; n++) world.server.publish();
  world.server.up = true;
  await world.pass(60_000);
  await rejected;
  assert.equal(world.server.feed("m").notifications[8]?.handled_at, undefined);
});
