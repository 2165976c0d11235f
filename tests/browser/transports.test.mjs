// Networks that block WebSockets: the page receives, acks and replays as with a WebSocket.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { BUFFERS, NO_UPGRADES, Nginx, UPGRADES } from "./nginx.mjs";
import { accept, order, seqs, shown, watchToasts } from "./page.mjs";
import { World, browser, live, until } from "./world.mjs";

let chromium;
before(async () => (chromium = await browser()));
after(() => chromium.close());

/** Opens a page behind an nginx with these settings, with three orders. */
async function stage(t, settings) {
  const world = await World.create(t);
  const nginx = await Nginx.before(t, world.proxy.url, settings);
  const profile = await world.profile(chromium);
  await watchToasts(profile);
  const url = `${nginx.url}/?token-url=/test/token`;
  const page = await world.open(profile, url);
  await world.publish("--count", "3");
  await listed(page, 3);
  return { world, nginx, profile, page, url };
}

async function listed(page, count) {
  const expected = Array.from({ length: count }, (_, index) => count - index).join();
  await until(`${count} orders, each once`, async () => {
    const seen = (await seqs(page)).join();
    return seen === expected || seen;
  });
}

async function uses(page, transport) {
  await page
    .locator(`[data-testid="connection"][data-state="live"][data-transport="${transport}"]`)
    .waitFor({ state: "attached" });
}

async function acked(world, seq) {
  const query = `select max(acked_seq) from cursors where feed = '${world.merchant}'`;
  await until(`${seq} is acked`, async () => {
    const acked = await world.sql(query);
    return acked === String(seq) || acked;
  });
}

/** The story of a WebSocket, over another transport. */
async function story({ world, profile, page, url }, transport) {
  await uses(page, transport);
  await acked(world, 3);

  // A mark of this page, and one of a page on another network.
  await accept(page, 2).click();
  const handled = async (seq) =>
    world.sql(
      `select handled_at is not null from notifications where feed = '${world.merchant}' and seq = ${seq}`,
    );
  await until("the order is accepted", async () => (await handled(2)) === "t");
  const colleague = await world.open(await world.profile(chromium));
  await listed(colleague, 3);
  await accept(colleague, 1).click();
  await order(page, 1).locator(":scope:not(:has([data-testid='accept']))").waitFor();

  // A crash of the service, and orders meanwhile.
  await world.stop("SIGKILL");
  await world.publish("--count", "2");
  await world.start();
  await live(page);
  await listed(page, 5);
  await acked(world, 5);

  // A cut network while orders arrive.
  const publishing = world.publishing("--count", "20", "--rate", "10");
  await until("some arrived", async () => (await seqs(page)).length > 10);
  world.proxy.cut();
  await publishing;
  world.proxy.mend();
  await listed(page, 25);
  await live(page);
  await acked(world, 25);
  const toasts = (await shown(page)).filter(({ isOrder }) => isOrder).map(({ text }) => text);
  assert.equal(new Set(toasts).size, toasts.length, "no order has two toasts");

  // The next visit has nothing to ring, and misses nothing that came meanwhile.
  await page.close();
  await world.publish();
  const later = await world.open(profile, url);
  await listed(later, 26);
  await acked(world, 26);
  return later;
}

test("a page behind a proxy without upgrades uses a stream", async (t) => {
  const staged = await stage(t, NO_UPGRADES);
  await story(staged, "stream");
});

test("a page behind a proxy that keeps streams polls", async (t) => {
  const staged = await stage(t, BUFFERS);
  await story(staged, "poll");
});

test("the page returns to the WebSocket when the network allows it", async (t) => {
  const { world, nginx, page } = await stage(t, NO_UPGRADES);
  await uses(page, "stream");
  nginx.reload(UPGRADES);
  const publishing = world.publishing("--count", "40", "--rate", "10");
  await page.evaluate(() => dispatchEvent(new Event("online")));
  await uses(page, "websocket");
  await publishing;
  await listed(page, 43);
  await acked(world, 43);
  await until("one session is left", async () => (await world.metric("shopbell_sessions")) === 1);
  assert.equal(await world.metric("shopbell_http_sessions"), 0);
  const toasts = (await shown(page)).filter(({ isOrder }) => isOrder).map(({ text }) => text);
  assert.equal(new Set(toasts).size, toasts.length, "no order has two toasts");
});
