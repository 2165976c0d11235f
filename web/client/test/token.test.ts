import assert from "node:assert/strict";
import { test } from "node:test";
import { TOKEN_TIMEOUT_MS } from "../src/socket.js";
import type { Status } from "../src/status.js";
import { jwt } from "./server.js";
import { World, alone } from "./world.js";

test("after 4401 the client reconnects at once, then with back-off", async () => {
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

test("a failing token callback is repeated; another subject is final", async () => {
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

test("tokens are replaced before they expire by the server's clock", async () => {
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

test("a token that arrives after a suspend opens no socket", async () => {
  const world = new World();
  const { tab } = alone(world, { token: () => tab.sleep(1_000).then(() => world.server.token()) });
  await world.pass(500);
  tab.page("suspend");
  tab.page("resume");
  await world.pass(5_000);
  assert.equal(tab.sockets.length, 1);
  assert.equal(tab.client.status.state, "live");
});

test("an invalid token or one without a subject is fetched again", async () => {
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

test("a refused auth is retried with one timer at a time", async () => {
  const world = new World();
  world.server.tokenSeconds = 100;
  world.server.refusesAuth = true;
  const { tab } = alone(world);
  await world.pass(600_000);
  const auths = tab.sockets[0]?.sent.filter(({ type }) => type === "auth").length ?? 0;
  assert.ok(auths > 10 && auths < 180, `${auths} auth frames in ten minutes`);
});
