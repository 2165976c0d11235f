// The page recovers alone, whatever was away, and what came meanwhile is there exactly once.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { seqs, shown, watchToasts } from "./page.mjs";
import { World, browser, live, until } from "./world.mjs";

/** As long as the mission says that a network is away. */
const CUT_MS = 30_000;

let chromium;
before(async () => (chromium = await browser()));
after(() => chromium.close());

/** A page that has had two orders, and tells each toast that it shows. */
async function stage(t, options) {
  const world = await World.create(t);
  const profile = await world.profile(chromium, options);
  await watchToasts(profile);
  const page = await world.open(profile);
  await world.publish("--count", "2");
  await listed(page, 2);
  return { world, profile, page };
}

async function listed(page, count) {
  const expected = Array.from({ length: count }, (_, index) => count - index);
  await until(`${count} orders, each once`, async () => {
    const seen = await seqs(page);
    return JSON.stringify(seen) === JSON.stringify(expected) || seen.join();
  });
}

/** No order was told twice: the toasts of single orders name different ones. */
async function toldOnce(page) {
  const told = (await shown(page)).filter(({ kind }) => kind !== "summary").map(({ text }) => text);
  assert.equal(new Set(told).size, told.length, told.join("\n"));
}

async function away(page) {
  await page.locator('[data-testid="connection"]:not([data-state="live"])').waitFor({ state: "attached" });
}

test("the service is restarted, and crashes", async (t) => {
  const { world, page } = await stage(t);
  await world.stop();
  await away(page);
  await world.publish("--count", "2");
  await world.start();
  await live(page);
  await listed(page, 4);
  await world.stop("SIGKILL");
  await world.publish();
  await world.start();
  await listed(page, 5);
  await toldOnce(page);
  assert.deepEqual(page.faults, []);
});

test("the network is cut for thirty seconds", async (t) => {
  const { world, page } = await stage(t);
  world.proxy.cut();
  await away(page);
  const cut = Date.now();
  await world.publish("--count", "3");
  await new Promise((resolve) => setTimeout(resolve, CUT_MS - (Date.now() - cut)));
  world.proxy.mend();
  const mended = Date.now();
  await live(page);
  await listed(page, 5);
  assert.ok(Date.now() - mended < CUT_MS + 5_000, "no later than its longest wait");
  await toldOnce(page);
  assert.deepEqual(page.faults, []);
});

test("the network goes silent: a dead connection is noticed, and left", async (t) => {
  const { world, page } = await stage(t);
  world.proxy.stall();
  await away(page);
  await world.publish();
  world.proxy.mend();
  await listed(page, 3);
  await toldOnce(page);
});

test("the browser says that it is offline, and online again", async (t) => {
  const { world, profile, page } = await stage(t);
  world.proxy.cut();
  await profile.setOffline(true);
  await away(page);
  await world.publish("--count", "4");
  world.proxy.mend();
  await profile.setOffline(false);
  const online = Date.now();
  await listed(page, 6);
  assert.ok(Date.now() - online < 5_000, "at once, not after its wait");
  await toldOnce(page);
});

test("the laptop sleeps, the connection dies meanwhile, and the token expires", async (t) => {
  // Longer than the leeway of a clock.
  const { world, profile, page } = await stage(t, { tokenSeconds: () => 4 });
  const devtools = await profile.newCDPSession(page);
  await devtools.send("Page.setWebLifecycleState", { state: "frozen" });
  world.proxy.stall();
  await until("the service has given the sleeper up", async () => (await world.metric("shopbell_sessions")) === 0);
  await world.publish("--count", "3");
  await new Promise((resolve) => setTimeout(resolve, 10_000));
  world.proxy.mend();
  await devtools.send("Page.setWebLifecycleState", { state: "active" });
  await listed(page, 5);
  await live(page);
  await toldOnce(page);
  assert.deepEqual(page.faults, []);
});

test("tokens that live for seconds are replaced without a reconnect", async (t) => {
  let lifetime = 12;
  const { world, page } = await stage(t, { tokenSeconds: () => lifetime });
  lifetime = 3600;
  await new Promise((resolve) => setTimeout(resolve, 20_000));
  await world.publish();
  await listed(page, 3);
  assert.equal(await world.metric("shopbell_sessions"), 1);
});
