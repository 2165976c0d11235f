import assert from "node:assert/strict";
import { test } from "node:test";
import type { ConnectOptions } from "../src/client.js";
import { MISSED_MAX, PING_MS } from "../src/tabs.js";
import { jwt } from "./server.js";
import { World, type Tab } from "./world.js";

/** Numbers that rang, with their tab, in the order in which the handlers resolved. */
type Rung = { tab: Tab; seq: number }[];

function open(
  world: World,
  rung: Rung,
  page: Partial<Tab> = {},
  handlerMs = 0,
  options: Partial<ConnectOptions> = {},
): Tab {
  const tab = world.open(options, page);
  tab.client.ring("*", async ({ seq }) => {
    if (handlerMs > 0) await tab.sleep(handlerMs);
    rung.push({ tab, seq });
  });
  tab.client.watch("error", ({ error }) => tab.errors.push(error.code));
  return tab;
}
const seqs = (rung: Rung) => rung.map(({ seq }) => seq);
const leader = (tabs: Tab[]) =>
  tabs.find((tab) => tab.sockets.some(({ state }) => state === "open"));

test("five tabs share a socket and ring in the focused tab", async () => {
  const world = new World();
  const rung: Rung = [];
  const lists: number[][] = [];
  const tabs: Tab[] = [];
  for (let n = 0; n < 5; n++) {
    const tab = open(world, rung);
    const list: number[] = [];
    lists.push(list);
    tab.client.on("order.created", ({ seq }) => list.push(seq));
    tabs.push(tab);
    await world.pass(50);
  }
  tabs[3]?.look(true);
  await world.pass(300);
  for (let n = 0; n < 10; n++) world.server.publish();
  await world.pass(500);
  assert.equal(world.server.sockets.length, 1);
  for (const list of lists) assert.deepEqual(list, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
  assert.deepEqual(seqs(rung), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
  assert.ok(rung.every(({ tab }) => tab === tabs[3]));
  assert.equal(world.server.cursor(), 10);
  for (const tab of tabs) {
    assert.equal(tab.client.status.state, "live");
    assert.deepEqual(tab.client.counts.total, { unread: 10, unhandled: 10 });
  }
  tabs[3]?.look(false);
  tabs[1]?.look(true);
  await world.pass(50);
  world.server.publish();
  await world.pass(300);
  assert.equal(rung.at(-1)?.tab, tabs[1]);
});

test("a tab without a matching handler does not ring", async () => {
  const world = new World();
  const rung: Rung = [];
  const silent = world.open({}, { visible: true, focused: true });
  await world.pass(100);
  const other = open(world, rung);
  await world.pass(200);
  world.server.publish();
  await world.pass(200);
  assert.equal(rung[0]?.tab, other);
  assert.equal(leader([silent, other]), silent);
});

test("the next tab takes over when the leader closes", async () => {
  const world = new World();
  const rung: Rung = [];
  const tabs = [open(world, rung), open(world, rung), open(world, rung)];
  await world.pass(300);
  for (let n = 0; n < 50; n++) {
    world.server.publish();
    if (n === 20) tabs[0]?.client.close();
    if (n === 35) tabs[1]?.page("suspend");
    await world.pass(7);
  }
  await world.pass(500);
  assert.deepEqual(
    seqs(rung),
    [...Array(50).keys()].map((n) => n + 1),
  );
  assert.equal(tabs[2]?.client.status.state, "live");
  assert.deepEqual(world.server.violations, []);
});

test("another tab rings if the chosen tab crashes", async () => {
  const world = new World();
  const rung: Rung = [];
  const first = open(world, rung);
  await world.pass(100);
  const chosen = open(world, rung, { visible: true, focused: true }, 60_000);
  await world.pass(300);
  world.server.publish();
  await world.pass(200);
  assert.deepEqual(rung, []);
  chosen.crash();
  await world.pass(PING_MS * (MISSED_MAX + 2));
  assert.deepEqual(
    rung.map(({ tab }) => tab),
    [first],
  );
  assert.equal(world.server.cursor(), 1);
});

test("the ack waits for the every-tab handlers of the chosen tab", async () => {
  const world = new World();
  const rung: Rung = [];
  const tab = open(world, rung);
  tab.client.on("*", () => tab.sleep(1_000));
  await world.pass(100);
  world.server.publish();
  await world.pass(900);
  assert.equal(world.server.cursor(), 0);
  assert.deepEqual(rung, []);
  await world.pass(200);
  assert.equal(world.server.cursor(), 1);
});

test("the leader waits for a slow handler of a live tab", async () => {
  const world = new World();
  const rung: Rung = [];
  open(world, rung);
  await world.pass(100);
  const chosen = open(world, rung, { visible: true, focused: true }, 120_000);
  await world.pass(300);
  world.server.publish();
  await world.pass(119_000);
  assert.equal(world.server.cursor(), 0);
  await world.pass(2_000);
  assert.deepEqual(
    rung.map(({ tab }) => tab),
    [chosen],
  );
  assert.equal(world.server.cursor(), 1);
});

test("a new leader does not repeat a notification that is ringing", async () => {
  const world = new World();
  const rung: Rung = [];
  const first = open(world, rung);
  await world.pass(100);
  const third = open(world, rung);
  await world.pass(100);
  const chosen = open(world, rung, { visible: true, focused: true }, 5_000);
  await world.pass(300);
  world.server.publish();
  await world.pass(200);
  chosen.look(false);
  third.look(true);
  await world.pass(50);
  // Frozen until the new leader is connected, so that its presence arrives late.
  chosen.freeze();
  first.crash();
  await world.pass(80);
  await chosen.thaw();
  await world.pass(10_000);
  assert.deepEqual(
    rung.map(({ tab }) => tab),
    [chosen],
  );
  assert.equal(world.server.cursor(), 1);
});

test("a visible tab replaces a frozen leader", async () => {
  const world = new World();
  const rung: Rung = [];
  const frozen = open(world, rung, { visible: true });
  await world.pass(200);
  const second = open(world, rung);
  await world.pass(200);
  frozen.look(false);
  frozen.freeze();
  world.server.publish();
  await world.pass(60_000);
  assert.deepEqual(rung, [], "nobody looks");
  second.look(true);
  await world.pass(PING_MS * (MISSED_MAX + 1) + 2_000);
  assert.deepEqual(
    rung.map(({ tab }) => tab),
    [second],
  );
  world.server.publish();
  await world.pass(300);
  await frozen.thaw();
  await world.pass(5_000);
  assert.deepEqual(seqs(rung), [1, 2]);
  assert.equal(leader([frozen, second]), second);
  assert.deepEqual(frozen.client.counts.total, { unread: 2, unhandled: 2 });
  assert.equal(world.server.sessions.size, 1);
  second.client.close();
  await world.pass(500);
  assert.equal(frozen.client.status.state, "live");
});

test("frames of a deposed leader are ignored", async () => {
  const world = new World();
  const rung: Rung = [];
  const lists: number[][] = [];
  const listing = (page: Partial<Tab> = {}) => {
    const tab = open(world, rung, page);
    const list: number[] = [];
    lists.push(list);
    tab.client.on("*", ({ seq }) => void list.push(seq));
    return tab;
  };
  const frozen = listing();
  await world.pass(200);
  const second = listing();
  world.server.publish();
  await world.pass(200);
  frozen.freeze();
  // The frozen tab handles these frames, and the `hello` of the tab that joins, when it thaws.
  for (let n = 0; n < 2; n++) world.server.publish();
  listing();
  second.look(true);
  await world.pass(PING_MS * (MISSED_MAX + 1) + 2_000);
  for (let n = 0; n < 2; n++) world.server.publish();
  await world.pass(300);
  await frozen.thaw();
  await world.pass(5_000);
  world.server.publish();
  await world.pass(300);
  assert.deepEqual(lists.slice(1), [
    [1, 2, 3, 4, 5, 6],
    [2, 3, 4, 5, 6],
  ]);
  const [own = []] = lists;
  assert.deepEqual(
    own,
    [...new Set(own)].sort((a, b) => a - b),
  );
  assert.equal(own.at(-1), 6);
  assert.deepEqual(seqs(rung), [1, 2, 3, 4, 5, 6]);
});

test("the lock of a live leader is not stolen", async () => {
  const world = new World();
  const rung: Rung = [];
  const first = open(world, rung);
  await world.pass(100);
  const second = open(world, rung, { visible: true, focused: true });
  await world.pass(300_000);
  assert.equal(leader([first, second]), first);
  assert.equal(world.server.sockets.length, 1);
});

test("a follower's marks survive the leader", async () => {
  const world = new World();
  const rung: Rung = [];
  const first = open(world, rung);
  await world.pass(100);
  const second = open(world, rung, { visible: true });
  world.server.publish();
  await world.pass(300);
  for (const socket of first.sockets) socket.dead = true;
  const read = second.client.read("m", { seqs: [1] });
  const handled = second.client.handle("m", [1]);
  await world.pass(10);
  first.crash();
  await world.pass(500);
  assert.equal((await read)[0]?.feed, "m");
  assert.equal((await handled)[0]?.handled_by, "merchant-1");
  const refused = assert.rejects(second.client.handle("m", [7]), { code: "unknown_seq" });
  await world.pass(100);
  await refused;
});

test("tokens of different subjects or rights share no socket", async () => {
  const world = new World();
  const rung: Rung = [];
  const token = (claims: object) => ({
    token: () => jwt({ exp: world.now / 1000 + 3600, ...claims }),
  });
  open(world, rung, {}, 0, token({ sub: "a" }));
  open(world, rung, {}, 0, token({ sub: "a", iat: 5 }));
  open(world, rung, {}, 0, token({ sub: "b" }));
  open(world, rung, {}, 0, token({ sub: "a", feeds: ["a", "b"] }));
  open(world, rung, {}, 0, { ...token({ sub: "a" }), shareKey: "till" });
  open(world, rung, {}, 0, { token: () => "opaque" });
  await world.pass(500);
  assert.equal(world.server.sockets.length, 5);
});

test("tabs without locks ring once because of the store", async () => {
  const world = new World();
  const rung: Rung = [];
  open(world, rung, { shares: false });
  open(world, rung, { shares: false });
  await world.pass(300);
  assert.equal(world.server.sessions.size, 2);
  world.server.publish();
  await world.pass(300);
  assert.deepEqual(seqs(rung), [1]);
});

test("a tab back from the back/forward cache resyncs", async () => {
  const world = new World();
  const rung: Rung = [];
  open(world, rung);
  await world.pass(100);
  const cached = open(world, rung);
  const resyncs: string[] = [];
  cached.client.watch("resync", ({ feed }) => resyncs.push(feed));
  await world.pass(300);
  cached.page("suspend");
  world.server.publish();
  await world.pass(1_000);
  cached.page("resume");
  await world.pass(300);
  assert.deepEqual(resyncs, ["m"]);
  assert.deepEqual(cached.client.counts.total, { unread: 1, unhandled: 1 });
  assert.deepEqual(seqs(rung), [1]);
});

test("marks of a tab that has not joined are sent when it joins", async () => {
  const world = new World();
  const rung: Rung = [];
  open(world, rung);
  await world.pass(100);
  for (let n = 0; n < 3; n++) world.server.publish();
  await world.pass(300);
  const other = open(world, rung);
  const confirmed: unknown[] = [];
  const read = (seq: number) =>
    void other.client.read("m", { seqs: [seq] }).then(([state]) => confirmed.push(state?.seqs));
  read(1);
  await world.pass(500);
  assert.deepEqual(confirmed, [[1]]);
  other.page("suspend");
  read(2);
  await world.pass(500);
  other.page("resume");
  await world.pass(500);
  assert.deepEqual(confirmed, [[1], [2]]);
  read(3);
  other.page("suspend");
  await world.pass(500);
  other.page("resume");
  await world.pass(500);
  assert.deepEqual(confirmed, [[1], [2], [3]], "confirmed while it was suspended");
  assert.equal(world.server.sockets.length, 1);
});

test("a tab that comes back rejects its marks from before a restore", async () => {
  const world = new World();
  const rung: Rung = [];
  open(world, rung);
  await world.pass(100);
  const other = open(world, rung);
  for (let n = 0; n < 8; n++) world.server.publish();
  await world.pass(500);
  other.page("suspend");
  const refused = [
    assert.rejects(other.client.handle("m", [8]), { code: "unknown_seq" }),
    assert.rejects(other.client.read("m", { through: 8 }), { code: "unknown_seq" }),
  ];
  world.server.restore(7);
  world.server.publish();
  await world.pass(1_000);
  other.page("resume");
  await world.pass(1_000);
  assert.deepEqual(world.server.counts("m"), { unread: 8, unhandled: 8, last: 8 });
  await Promise.all(refused);
  const handled = other.client.handle("m", [8]);
  await world.pass(500);
  assert.deepEqual((await handled)[0]?.seqs, [8]);
});

test("a new leader ignores marks of another epoch", async () => {
  const world = new World();
  const rung: Rung = [];
  const first = open(world, rung);
  await world.pass(100);
  const second = open(world, rung);
  await world.pass(100);
  const other = open(world, rung);
  for (let n = 0; n < 8; n++) world.server.publish();
  await world.pass(500);
  other.page("suspend");
  const refused = assert.rejects(other.client.handle("m", [8]), { code: "unknown_seq" });
  world.server.restore(7);
  world.server.publish();
  await world.pass(1_000);
  // The second tab is the first in the lock's queue, so the tab that comes back receives `lead` before any `welcome`.
  first.freeze();
  other.page("resume");
  first.crash();
  await world.pass(1_000);
  assert.equal(leader([second, other]), second);
  assert.deepEqual(world.server.counts("m"), { unread: 8, unhandled: 8, last: 8 });
  await refused;
});

test("a follower's mark reaches a leader without a session", async () => {
  const world = new World();
  const rung: Rung = [];
  const first = open(world, rung);
  await world.pass(100);
  const fresh = open(world, rung);
  await world.pass(100);
  const other = open(world, rung);
  world.server.publish();
  await world.pass(300);
  fresh.client.close();
  world.server.up = false;
  for (const socket of first.sockets) socket.dead = true;
  other.page("suspend");
  first.crash();
  const newcomer = open(world, rung);
  await world.pass(1_000);
  other.page("resume");
  const handled = other.client.handle("m", [1]);
  await world.pass(1_000);
  world.server.up = true;
  await world.pass(60_000);
  assert.equal(leader([newcomer, other]), newcomer);
  assert.deepEqual((await handled)[0]?.seqs, [1]);
});
