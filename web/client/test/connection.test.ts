import assert from "node:assert/strict";
import { test } from "node:test";
import type { ConnectOptions } from "../src/client.js";
import { BACKOFF_CAP_MS } from "../src/backoff.js";
import type { Notification } from "../src/events.js";
import { CONNECT_TIMEOUT_MS, PROBE_TIMEOUT_MS, TOKEN_TIMEOUT_MS } from "../src/socket.js";
import type { Status } from "../src/status.js";
import { World, jwt, type Tab } from "./world.js";

/** One tab with its own socket, visible, that rings into a list. */
function alone(
  world: World,
  options: Partial<ConnectOptions> = {},
): { tab: Tab; rung: number[]; statuses: string[] } {
  const tab = world.open({ share: false, ...options }, { visible: true });
  const rung: number[] = [];
  const statuses: string[] = [];
  tab.client.ring("*", ({ seq }) => rung.push(seq));
  tab.client.watch("error", ({ error }) => tab.errors.push(error.code));
  tab.client.watch("status", ({ state }) => statuses.push(state));
  return { tab, rung, statuses };
}
const upTo = (count: number) => Array.from({ length: count }, (_, index) => index + 1);

test("from the handshake to a toast and its ack", async () => {
  const world = new World();
  for (let n = 0; n < 3; n++) world.server.publish();
  const { tab, rung, statuses } = alone(world, { device: "till" });
  await world.pass(200);
  assert.deepEqual(rung, [1, 2, 3]);
  assert.equal(world.server.cursor(), 3);
  assert.deepEqual(statuses, ["catching_up", "live"]);
  const [socket] = tab.sockets;
  assert.equal(socket?.url, "wss://shop.example/v1/ws?device=till");
  assert.match(socket?.protocols.join() ?? "", /^shopbell\.v1,bearer\.[\w-]+\.[\w-]+\.x$/);
  assert.ok(!socket?.url.includes("ey"), "no token in an address");
});

test("a burst is acknowledged with few acks, and more than a window comes through", async () => {
  const world = new World();
  world.server.window = 16;
  for (let n = 0; n < 200; n++) world.server.publish();
  const { tab, rung } = alone(world);
  await world.pass(5_000);
  assert.deepEqual(rung, upTo(200));
  assert.ok(
    (tab.sockets[0]?.sent.length ?? 0) <= 60,
    `${tab.sockets[0]?.sent.length} acks for 200`,
  );
  assert.deepEqual(world.server.violations, []);
});

test("a handler that fails is tried again, later ones wait, and nothing is acknowledged before it succeeds", async () => {
  const world = new World();
  const { tab } = alone(world);
  const log: string[] = [];
  let failures = 3;
  tab.client.on("order.created", async ({ seq }) => {
    log.push(`on ${seq}`);
  });
  tab.client.ring("order.*", async ({ seq }) => {
    await tab.sleep(5);
    if (seq === 1 && failures-- > 0) throw new Error("no sound");
    log.push(`ring ${seq}`);
  });
  world.server.publish();
  world.server.publish();
  await world.pass(60);
  assert.equal(world.server.cursor(), 0);
  await world.pass(10_000);
  assert.deepEqual(log, ["on 1", "on 2", "ring 1", "ring 2"]);
  assert.deepEqual(tab.errors, ["handler_failed", "handler_failed", "handler_failed"]);
  assert.equal(world.server.cursor(), 2);
});

test("a reload between the handler and the ack does not ring twice", async () => {
  const world = new World();
  const first = alone(world);
  await world.pass(100);
  world.server.publish();
  while (first.rung.length === 0) await world.pass(1);
  first.tab.crash();
  assert.equal(world.server.cursor(), 0);
  const second = alone(world);
  world.server.publish();
  await world.pass(200);
  assert.deepEqual([first.rung, second.rung], [[1], [2]]);
  assert.equal(world.server.cursor(), 2, "what was handled before is acknowledged now");
});

test("what is stored here of another epoch counts for nothing", async () => {
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

test("a tab that stays open rings what got old numbers, and fetches its history again", async () => {
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
  world.server.change("m", "read", [1], "x");
  world.server.dropAll();
  await world.pass(2_000);
  assert.match(tab.sockets.at(-1)?.url ?? "", /state=m%3A1%3Ae2/);
  assert.deepEqual(resynced, ["m"]);
});

test("a handler that outlasts a restore marks no other notification", async () => {
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

test("what a person asked for before a restore is not done to another notification", async () => {
  const world = new World();
  const { tab } = alone(world);
  for (let n = 0; n < 9; n++) world.server.publish();
  await world.pass(200);
  world.server.up = false;
  world.server.dropAll();
  const asked = tab.client.handle("m", [9]);
  const rejected = assert.rejects(asked, { code: "unknown_seq" });
  world.server.restore(7);
  for (let n = 0; n < 4; n++) world.server.publish();
  world.server.up = true;
  await world.pass(60_000);
  await rejected;
  assert.equal(world.server.feed("m").notifications[8]?.handled_at, undefined);
});

test("a gap is a fault: connect anew, and the missing one comes", async () => {
  const world = new World();
  const { tab, rung } = alone(world);
  await world.pass(100);
  tab.sockets[0]?.fromServer({
    type: "notification",
    feed: "m",
    seq: 2,
    id: "",
    source: "",
    event: "x",
    data: {},
  });
  await world.pass(50);
  assert.deepEqual(tab.errors, ["protocol_fault"]);
  assert.equal(tab.sockets[0]?.closedWith, 4500);
  world.server.publish();
  world.server.publish();
  await world.pass(2_000);
  assert.deepEqual(rung, [1, 2]);
});

test("codes that mean go away are final, with a typed error", async () => {
  for (const [code, name] of [
    [4501, "token_refused"],
    [4503, "no_feed"],
    [1002, "broken_framing"],
  ] as const) {
    const world = new World();
    world.server.refusals.push({ code });
    const { tab } = alone(world);
    const open = tab.client.read("m", { seqs: [1] });
    const rejected = assert.rejects(open, { code: "closed" });
    await world.pass(300_000);
    await rejected;
    assert.ok(tab.client.status.state === "closed" && tab.client.status.error?.code === name);
    assert.equal(tab.sockets.length, 1);
  }
});

test("a server that stays away is tried again with growing waits, none above the cap", async () => {
  const world = new World(7);
  world.server.up = false;
  const { tab, statuses } = alone(world);
  await world.pass(600_000);
  const attempts = tab.sockets.length;
  assert.ok(
    attempts > 600_000 / BACKOFF_CAP_MS && attempts < 80,
    `${attempts} attempts in ten minutes`,
  );
  assert.equal(statuses.at(-1), "waiting");
  world.server.up = true;
  tab.page("hurry");
  await world.pass(100);
  assert.equal(tab.client.status.state, "live");
});

test("the server's wish is kept, also when somebody looks", async () => {
  const world = new World();
  const { tab } = alone(world);
  await world.pass(10_000);
  tab.sockets[0]?.fromServer({ type: "goaway", retry_after_ms: 4_000 });
  world.server.dropAll(1012, "");
  await world.pass(100);
  const status = tab.client.status;
  assert.ok(status.state === "waiting" && Math.abs(status.retryAt - world.now - 4_000) < 150);
  tab.look(true);
  await world.pass(3_500);
  assert.equal(tab.sockets.length, 1);
  await world.pass(600);
  assert.equal(tab.client.status.state, "live");
});

test("4401: a fresh token at once, but not for ever", async () => {
  const world = new World();
  const { tab } = alone(world);
  await world.pass(10_000);
  world.server.dropAll(4401, '{"code":"token_expired","retry_after_ms":0}');
  await world.pass(100);
  assert.equal(tab.client.status.state, "live");
  assert.equal(world.server.tokens, 2);
  await world.pass(10_000);
  for (let n = 0; n < 1000; n++)
    world.server.refusals.push({ code: 4401, reason: '{"retry_after_ms":0}' });
  world.server.dropAll(4401);
  await world.pass(60_000);
  assert.ok(world.server.tokens < 25, `${world.server.tokens} tokens in a minute`);
});

test("a token callback that fails, hangs or gives nothing is asked again; another's token ends it", async () => {
  const world = new World();
  const gives = [
    () => Promise.reject(new Error("401")),
    () => new Promise<string>(() => {}),
    () => "",
    () => world.server.token(),
  ];
  const { tab } = alone(world, { token: () => (gives.shift() as () => string)() });
  await world.pass(TOKEN_TIMEOUT_MS + 4_000);
  assert.deepEqual(tab.errors, ["token_failed", "token_failed", "token_failed"]);
  assert.equal(tab.client.snapshot.status.state, "live");
  gives.push(() => jwt({ sub: "merchant-2" }));
  world.server.dropAll();
  await world.pass(3_000);
  const { status }: { status: Status } = tab.client;
  assert.ok(status.state === "closed" && status.error?.code === "subscriber_changed");
});

test("an attempt that hangs is given up", async () => {
  const world = new World();
  const { tab } = alone(world);
  await world.pass(0);
  for (const socket of tab.sockets) socket.dead = true;
  await world.pass(CONNECT_TIMEOUT_MS + 600);
  assert.equal(tab.client.status.state, "live");
});

test("a dead connection is noticed by its silence, a quiet one is not taken for dead", async () => {
  const world = new World();
  const { tab } = alone(world);
  await world.pass(600_000);
  assert.equal(tab.sockets.length, 1);
  (tab.sockets[0] as { dead: boolean }).dead = true;
  world.server.publish();
  await world.pass(90_000);
  assert.equal(tab.sockets.length, 2);
  assert.equal(world.server.cursor(), 1);
});

test("after a sleep the server is asked once, and a connection that answers is kept", async () => {
  for (const dead of [false, true]) {
    const world = new World();
    const { tab } = alone(world);
    await world.pass(1_000);
    tab.freeze();
    (tab.sockets[0] as { dead: boolean }).dead = true;
    await world.pass(8 * 3_600_000);
    (tab.sockets[0] as { dead: boolean }).dead = dead;
    await tab.thaw();
    await world.pass(PROBE_TIMEOUT_MS + 1_000);
    assert.equal(tab.client.status.state, "live");
    assert.equal(tab.sockets.length, dead ? 2 : 1);
    assert.ok(tab.sockets[0]?.sent.some(({ type }) => type === "ping"));
  }
});

test("the network comes back: a connection is probed, a wait is over", async () => {
  const world = new World();
  const { tab } = alone(world);
  await world.pass(1_000);
  (tab.sockets[0] as { dead: boolean }).dead = true;
  tab.page("hurry");
  await world.pass(PROBE_TIMEOUT_MS + 1_000);
  assert.equal(tab.client.status.state, "live");
  assert.equal(tab.sockets.length, 2);
});

test("a token is replaced before it expires, by the server's clock, and one that lives for years does not loop", async () => {
  for (const [seconds, least, most] of [
    [100, 4, 8],
    [3600 * 24 * 365, 0, 0],
    [2, 100, 420],
  ] as const) {
    const world = new World();
    world.server.tokenSeconds = seconds;
    const { tab } = alone(world);
    await world.pass(400_000);
    const auths = tab.sockets
      .flatMap(({ sent }) => sent)
      .filter(({ type }) => type === "auth").length;
    assert.ok(auths >= least && auths <= most, `${auths} auth frames for ${seconds} s`);
    assert.equal(tab.sockets.length, 1);
  }
});

test("the page goes into the back/forward cache and comes back", async () => {
  const world = new World();
  const { tab, rung } = alone(world);
  await world.pass(100);
  tab.page("suspend");
  await world.pass(100);
  assert.equal(world.server.sessions.size, 0);
  world.server.publish();
  await world.pass(60_000);
  tab.page("resume");
  await world.pass(200);
  assert.deepEqual(rung, [1]);
  assert.equal(tab.client.status.state, "live");
});

test("read and handle: first, too late, lost on the way, refused", async () => {
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

  world.server.change("m", "handle", [2], "somebody");
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

test("changes made while away come after, a gap in them asks for the history", async () => {
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
  world.server.change("m", "read", [1], "x");
  world.server.change("m", "read", [2], "x");
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

test("an answer about counts from before a change is not believed after it", async () => {
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
  world.server.change("m", "read", [1, 2], "somebody");
  socket?.fromServer({ type: "state", feed: "m", seqs: [], unread: 2, unhandled: 2, last: 3 });
  await world.pass(3_000);
  assert.deepEqual(unread, [0, 1, 2, 0]);
});

test("a token that comes after the page was put aside opens nothing", async () => {
  const world = new World();
  const { tab } = alone(world, { token: () => tab.sleep(1_000).then(() => world.server.token()) });
  await world.pass(500);
  tab.page("suspend");
  tab.page("resume");
  await world.pass(5_000);
  assert.equal(tab.sockets.length, 1);
  assert.equal(tab.client.status.state, "live");
});

test("after a skipped above last the counts are asked for, once a second at most", async () => {
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

test("read through more than is stored, in steps, of an empty feed, and what was read before", async () => {
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

test("what is no token for a handshake, or no longer says whose it is, is asked for again", async () => {
  const world = new World();
  const page = "<html>502 Bad Gateway</html>";
  const gives = [
    () => page,
    () => "two words",
    () => "é",
    () => world.server.token(),
    () => page,
    () => "opaque",
  ];
  const { tab } = alone(world, { token: () => (gives.shift() ?? (() => world.server.token()))() });
  await world.pass(10_000);
  assert.deepEqual(tab.errors, ["token_failed", "token_failed", "token_failed"]);
  assert.equal(tab.client.status.state, "live");
  world.server.dropAll();
  await world.pass(10_000);
  assert.deepEqual(tab.errors.slice(3), ["token_failed", "token_failed"]);
  assert.equal(tab.client.status.state, "live");
});

test("an address that no socket takes is final, and the error does not quote the token", async () => {
  const world = new World();
  const { tab } = alone(world);
  tab.refuse = (protocols) => {
    throw new Error(`no ${protocols.join()}`);
  };
  await world.pass(1_000);
  const { status } = tab.client;
  assert.ok(status.state === "closed" && status.error?.code === "bad_request");
  assert.equal(status.error.cause, undefined);
});

test("a close for a feed that the token names no more is followed by an attempt without it", async () => {
  const world = new World();
  const { tab } = alone(world);
  await world.pass(100);
  for (let n = 0; n < 2; n++)
    world.server.refusals.push({ code: 4503, reason: '{"code":"foreign_feed"}' });
  world.server.dropAll();
  await world.pass(60_000);
  assert.equal(tab.client.status.state, "live");
  assert.deepEqual(tab.errors, ["foreign_feed", "foreign_feed"]);
  assert.ok(!tab.sockets.at(-1)?.url.includes("state="), tab.sockets.at(-1)?.url);
});

test("a handshake that is refused for a feed that the token names no more is tried without it", async () => {
  const world = new World();
  world.server.feed("gone");
  for (let n = 0; n < 3; n++) world.server.publish();
  const tabs = [alone(world, { share: true }).tab, alone(world, { share: true }).tab];
  const resyncs: string[] = [];
  for (const { client } of tabs) client.watch("resync", ({ feed }) => resyncs.push(feed));
  await world.pass(300);
  world.server.feeds.delete("gone");
  world.server.dropAll();
  await world.pass(10);
  world.server.change("m", "read", [1], "x");
  await world.pass(30_000);
  for (const { client } of tabs) {
    assert.equal(client.status.state, "live");
    assert.deepEqual(client.counts.total, { unread: 2, unhandled: 3 });
  }
  assert.deepEqual(resyncs, ["m", "m"], "what was said meanwhile does not come");
  assert.equal(world.server.sockets.length, 4);
  world.server.change("m", "read", [2], "x");
  world.server.dropAll();
  await world.pass(30_000);
  assert.match(world.server.sockets.at(-1)?.url ?? "", /state=m%3A2%3Ae1$/);
  assert.equal(resyncs.length, 2);
});

test("a refusal that time mends reaches the app with the server's reason, and is tried again", async () => {
  const world = new World();
  const reason = JSON.stringify({
    code: "token_not_valid_yet",
    retry_after_ms: 7_000,
    message: "valid in 7 s",
  });
  world.server.refusals.push({ code: 4402, reason });
  const { tab } = alone(world);
  const messages: string[] = [];
  tab.client.watch(
    "error",
    ({ error }) => void messages.push(`${error.closeCode} ${error.message}`),
  );
  await world.pass(6_000);
  assert.deepEqual(tab.errors, ["token_not_valid_yet"]);
  assert.ok(messages[0]?.startsWith("4402") && messages[0].includes("valid in 7 s"), messages[0]);
  assert.deepEqual([tab.client.status.state, tab.sockets.length], ["waiting", 1]);
  await world.pass(2_000);
  assert.equal(tab.client.status.state, "live");
  assert.equal(tab.sockets.length, 2);
});

test("a refusal for good ends with the server's reason", async () => {
  const world = new World();
  const message = "device: at most 64 characters";
  world.server.refusals.push({
    code: 4500,
    reason: JSON.stringify({ code: "bad_request", message }),
  });
  const { tab } = alone(world);
  await world.pass(300_000);
  const { status } = tab.client;
  assert.ok(
    status.state === "closed" &&
      status.error?.code === "bad_request" &&
      status.error.message.includes(message),
  );
  assert.equal(tab.sockets.length, 1);
});

test("refusals in a row that a page cannot see are reported once, and tried again", async () => {
  const world = new World();
  world.server.up = false;
  const { tab } = alone(world);
  await world.pass(300_000);
  assert.deepEqual(tab.errors, ["connect_failed"]);
  world.server.up = true;
  await world.pass(60_000);
  assert.equal(tab.client.status.state, "live");
  world.server.up = false;
  world.server.dropAll();
  await world.pass(300_000);
  assert.deepEqual(tab.errors, ["connect_failed", "connect_failed"]);
});

test("a session that ends is no error of the app's", async () => {
  const world = new World();
  const { tab } = alone(world);
  await world.pass(100);
  world.server.dropAll(1012, JSON.stringify({ code: "going_away", retry_after_ms: 100 }));
  await world.pass(1_000);
  assert.deepEqual(tab.errors, []);
  assert.equal(tab.client.status.state, "live");
});
