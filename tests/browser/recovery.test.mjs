// The page recovers from each failure by itself and lists every order exactly once.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { seqs, shown, watchToasts } from "./page.mjs";
import { World, browser, live, until } from "./world.mjs";

/** Length of the network cut. */
const CUT_MS = 30_000;

let chromium;
before(async () => (chromium = await browser()));
after(() => chromium.close());

/** Opens a page with two orders that records its toasts. */
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

/**
 * Checks that no order had two toasts: single toasts differ, and with the summaries they are at
 * most the listed orders.
 */
async function shownOnce(page) {
  const [came, toasts] = [(await seqs(page)).length, await shown(page)];
  const single = toasts.filter(({ isOrder }) => isOrder).map(({ text }) => text);
  const summed = toasts
    .filter(({ kind }) => kind === "summary")
    .map(({ text }) => Number(/\d+/.exec(text)));
  assert.ok(single.length > 0 && new Set(single).size === single.length, single.join("\n"));
  assert.ok(
    single.length + summed.reduce((sum, count) => sum + count, 0) <= came,
    JSON.stringify(toasts),
  );
}

/** Process ids of the renderers. */
async function renderers() {
  const devtools = await chromium.newBrowserCDPSession();
  const { processInfo } = await devtools.send("SystemInfo.getProcessInfo");
  await devtools.detach();
  return processInfo.filter(({ type }) => type === "renderer").map(({ id }) => id);
}

async function away(page) {
  await page
    .locator('[data-testid="connection"]:not([data-state="live"])')
    .waitFor({ state: "attached" });
}

test("the page recovers from a restart and a crash of the service", async (t) => {
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
  await shownOnce(page);
});

test("the page recovers from a network cut of thirty seconds", async (t) => {
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
  assert.ok(Date.now() - mended < CUT_MS + 5_000, "within the longest back-off");
  await shownOnce(page);
});

test("a silent connection is replaced", async (t) => {
  const { world, page } = await stage(t);
  world.proxy.stall();
  await away(page);
  await world.publish();
  world.proxy.mend();
  await listed(page, 3);
  await shownOnce(page);
});

test("the page reconnects at once when the browser is online again", async (t) => {
  const { world, page } = await stage(t);
  world.proxy.cut();
  await away(page);
  await world.publish("--count", "4");
  // Waits until the back-off is long.
  const waitsLong = () =>
    page.evaluate(() =>
      Number(/\d+/.exec(document.querySelector('[data-testid="connection"]').innerText)?.[0] ?? 0),
    );
  await until(
    "the next attempt is at least 8 s away",
    async () => (await waitsLong()) >= 8,
    120_000,
  );
  world.proxy.mend();
  await page.evaluate(() => dispatchEvent(new Event("online")));
  const online = Date.now();
  await listed(page, 6);
  assert.ok(Date.now() - online < 4_000, "at once, without the back-off");
  await shownOnce(page);
});

test("the page recovers from a sleep that outlasts connection and token", async (t) => {
  const lifetime = 15;
  const { world, page } = await stage(t, { tokenSeconds: () => lifetime });
  const given = Date.now();
  const sockets = page.sockets;
  // SIGSTOP stops the renderer like a sleeping laptop: no timer and no event runs.
  const sleepers = await renderers();
  const send = (signal) => sleepers.forEach((sleeper) => process.kill(sleeper, signal));
  t.after(() => send("SIGCONT"));
  send("SIGSTOP");
  world.proxy.stall();
  await until(
    "the service has given the sleeper up",
    async () => (await world.metric("shopbell_sessions")) === 0,
  );
  await world.publish("--count", "3");
  // The server accepts an expired token for the leeway of clocks.
  await until("the token has expired", () => Date.now() - given > (lifetime + 6) * 1_000);
  world.proxy.mend();
  send("SIGCONT");
  await until("the page has reconnected", () => page.sockets > sockets);
  await listed(page, 5);
  await live(page);
  await shownOnce(page);
});

test("short-lived tokens are replaced without a reconnect", async (t) => {
  const lifetime = 25;
  let given = 0;
  const { world, page } = await stage(t, { tokenSeconds: () => ((given += 1), lifetime) });
  const begun = Date.now();
  await until(
    "the first token is long over",
    () => Date.now() - begun > (lifetime + 6) * 1_000,
    60_000,
  );
  await world.publish();
  await listed(page, 3);
  assert.ok(given > 1, "new tokens were fetched");
  assert.equal(page.sockets, 1, "the page still uses its first socket");
});
