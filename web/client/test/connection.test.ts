import assert from "node:assert/strict";
import { test } from "node:test";
import { BACKOFF_CAP_MS } from "../src/backoff.js";
import { CONNECT_TIMEOUT_MS, PROBE_TIMEOUT_MS } from "../src/socket.js";
import { World, alone, upTo } from "./world.js";

test("a stored notification rings and is acked after the handshake", async () => {
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

test("one ack covers several notifications of a burst", async () => {
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

test("a failing handler is repeated before later notifications and the ack", async () => {
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
  assert.equal(world.server.cursor(), 2, "completed notifications are acked after the reload");
});

test("after a gap the client reconnects and receives the missing one", async () => {
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

test("a final close code closes the client with a typed error", async () => {
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

test("the client retries with growing waits up to the cap", async () => {
  const world = new World(7);
  world.server.up = false;
  const { tab, statuses } = alone(world);
  await world.pass(600_000);
  const attempts = tab.sockets.length;
  assert.ok(
    attempts > 600_000 / BACKOFF_CAP_MS && attempts < 180,
    `${attempts} attempts in ten minutes`,
  );
  assert.equal(statuses.at(-1), "waiting");
  world.server.up = true;
  tab.page("hurry");
  await world.pass(100);
  assert.equal(tab.client.status.state, "live");
});

test("after an outage, a client is live within the cap of the back-off", async () => {
  for (let seed = 1; seed <= 40; seed++) {
    const world = new World(seed);
    const { tab } = alone(world);
    await world.pass(100);
    world.server.up = false;
    world.server.dropAll();
    await world.pass(10_000);
    world.server.up = true;
    await world.pass(10_200);
    assert.equal(tab.client.status.state, "live", `seed ${seed}`);
  }
});

test("the server's delay is kept even if the tab becomes visible", async () => {
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

test("an attempt without welcome ends after the time limit", async () => {
  const world = new World();
  const { tab } = alone(world);
  await world.pass(0);
  for (const socket of tab.sockets) socket.dead = true;
  await world.pass(CONNECT_TIMEOUT_MS + 600);
  assert.equal(tab.client.status.state, "live");
});

test("a silent connection is replaced, an idle one is kept", async () => {
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

test("after a sleep the client pings and keeps a live connection", async () => {
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

test("when the network is back the client pings its connection", async () => {
  const world = new World();
  const { tab } = alone(world);
  await world.pass(1_000);
  (tab.sockets[0] as { dead: boolean }).dead = true;
  tab.page("hurry");
  await world.pass(PROBE_TIMEOUT_MS + 1_000);
  assert.equal(tab.client.status.state, "live");
  assert.equal(tab.sockets.length, 2);
});

test("a page in the back/forward cache holds no session", async () => {
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

test("an invalid URL is final and its error does not contain the token", async () => {
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

test("after a close for a foreign feed the client omits the query", async () => {
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

test("after a refused handshake the client tries without the query", async () => {
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
  world.server.mark("m", "read", [1], "x");
  await world.pass(30_000);
  for (const { client } of tabs) {
    assert.equal(client.status.state, "live");
    assert.deepEqual(client.counts.total, { unread: 2, unhandled: 3 });
  }
  assert.deepEqual(resyncs, ["m", "m"], "marks from the meantime are not replayed");
  assert.equal(world.server.sockets.length, 4);
  world.server.mark("m", "read", [2], "x");
  world.server.dropAll();
  await world.pass(30_000);
  assert.match(world.server.sockets.at(-1)?.url ?? "", /state=m%3A2%3Ae1$/);
  assert.equal(resyncs.length, 2);
});

test("a transient refusal is reported with its reason and retried", async () => {
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

test("a final refusal closes the client with the server's reason", async () => {
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

test("several failed attempts are reported once and retried", async () => {
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

test("the end of a session is not reported as an error", async () => {
  const world = new World();
  const { tab } = alone(world);
  await world.pass(100);
  world.server.dropAll(1012, JSON.stringify({ code: "going_away", retry_after_ms: 100 }));
  await world.pass(1_000);
  assert.deepEqual(tab.errors, []);
  assert.equal(tab.client.status.state, "live");
});
