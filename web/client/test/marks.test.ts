import assert from "node:assert/strict";
import { test } from "node:test";
import type { Notification } from "../src/events.js";
import { World, alone } from "./world.js";

test("read and handle resolve when confirmed and reject when refused", async () => {
  const world = new World();
  for (let n = 0; n < 3; n++) world.server.publish();
  const { tab } = alone(world);
  const seen: unknown[] = [];
  tab.client.watch("state", (state) => seen.push(state.seqs));
  await world.pass(200);
  assert.deepEqual(tab.client.counts.total, { unread: 3, unhandled: 3 });
  const read = tab.client.read("m", { seqs: [1, 2] });
  await world.pass(100);
  assert.equal((await read)[0]?.version, 1);
  assert.deepEqual(tab.client.counts.total, { unread: 1, unhandled: 3 });

  world.server.mark("m", "handle", [2], "somebody");
  const handled = tab.client.handle("m", [1, 2]);
  await world.pass(100);
  assert.deepEqual((await handled).map(({ handled_by }) => handled_by).sort(), [
    "merchant-1",
    "somebody",
  ]);

  world.server.errors.push("busy", "not_taken");
  (tab.sockets[0] as { dead: boolean }).dead = true;
  const late = tab.client.read("m", { seqs: [3] });
  world.server.dropAll();
  tab.page("hurry");
  await world.pass(30_000);
  assert.equal((await late)[0]?.seqs?.[0], 3);
  assert.deepEqual(tab.client.counts.total, { unread: 0, unhandled: 1 });
  assert.deepEqual(seen, [[1, 2], [2], [1], [2], [3]]);

  const unknown = assert.rejects(tab.client.read("m", { seqs: [99] }), { code: "unknown_seq" });
  await world.pass(100);
  await unknown;
});

test("marks made while away are replayed, a gap in them causes a resync", async () => {
  const world = new World();
  for (let n = 0; n < 3; n++) world.server.publish();
  const { tab } = alone(world);
  const seen: unknown[] = [];
  const resyncs: string[] = [];
  tab.client.watch("state", (state) => seen.push(state.version));
  tab.client.watch("resync", ({ feed }) => resyncs.push(feed));
  await world.pass(200);
  world.server.up = false;
  world.server.dropAll();
  await world.pass(100);
  world.server.mark("m", "read", [1], "x");
  world.server.mark("m", "read", [2], "x");
  world.server.up = true;
  await world.pass(60_000);
  assert.deepEqual([seen, resyncs], [[1, 2], []]);
  assert.match(tab.sockets.at(-1)?.url ?? "", /state=m%3A0/);
  assert.deepEqual(tab.client.counts.total, { unread: 1, unhandled: 3 });
  tab.sockets.at(-1)?.fromServer({
    type: "state",
    feed: "m",
    seqs: [3],
    read_at: "t",
    unread: 0,
    unhandled: 3,
    last: 3,
    version: 9,
  });
  await world.pass(100);
  assert.deepEqual(resyncs, ["m"]);
});

test("counts from before a mark are ignored after it", async () => {
  const world = new World();
  const { tab } = alone(world);
  const unread: number[] = [];
  tab.client.watch("counts", ({ total }) => unread.push(total.unread));
  await world.pass(200);
  const [socket] = tab.sockets;
  world.server.publish();
  world.server.publish();
  await world.pass(100);
  world.server
    .feed("m")
    .notifications.push({ type: "notification", feed: "m", seq: 3, read_at: "t" } as Notification);
  socket?.fromServer({ type: "skipped", feed: "m", from: 3, through: 3, reason: "expired" });
  world.server.mark("m", "read", [1, 2], "somebody");
  socket?.fromServer({ type: "state", feed: "m", seqs: [], unread: 2, unhandled: 2, last: 3 });
  await world.pass(3_000);
  assert.deepEqual(unread, [0, 1, 2, 0]);
});

test("counts are requested after a skip, at most once a second", async () => {
  const world = new World();
  const { tab } = alone(world);
  await world.pass(200);
  const [socket] = tab.sockets;
  for (let n = 1; n <= 40; n++) {
    world.server
      .feed("m")
      .notifications.push({ type: "notification", feed: "m", seq: n } as Notification);
    socket?.fromServer({ type: "skipped", feed: "m", from: n, through: n, reason: "expired" });
  }
  await world.pass(5_000);
  const asks = socket?.sent.filter(({ type }) => type === "read").length ?? 0;
  assert.ok(asks >= 1 && asks <= 3, `${asks} asks`);
  assert.deepEqual(tab.client.counts.total, { unread: 40, unhandled: 40 });
});

test("read through resolves for empty, partial and already read feeds", async () => {
  const world = new World();
  const { tab } = alone(world);
  await world.pass(200);
  const settled: (number | undefined)[] = [];
  const read = async (through: number) => {
    void tab.client.read("m", { through }).then((states) => settled.push(states.at(-1)?.through));
    await world.pass(200);
  };
  await read(5);
  assert.deepEqual(settled, [0]);
  for (let n = 0; n < 9; n++) world.server.publish();
  await read(6);
  await read(1_000);
  await read(3);
  await read(9);
  assert.deepEqual(settled, [0, 6, 9, 3, 9]);
  assert.deepEqual(tab.client.counts.total, { unread: 0, unhandled: 9 });
});
