// Five tabs of one browser: one socket, one toast, one badge.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { badge, orders, seqs, shown, toasts, watchToasts } from "./page.mjs";
import { World, browser, until } from "./world.mjs";

let chromium;
before(async () => (chromium = await browser()));
after(() => chromium.close());

test("five tabs share a socket and a toast, also if the leader closes", async (t) => {
  const world = await World.create(t);
  const profile = await world.profile(chromium);
  await watchToasts(profile);
  const tabs = [];
  for (let tab = 0; tab < 5; tab += 1) tabs.push(await world.open(profile));
  assert.equal(await world.metric("shopbell_sessions"), 1);

  await world.publish("--count", "3");
  await all(tabs, 3);
  await until("each has a toast in one tab", async () => (await toastsOf(tabs)) === 3);

  // The first tab has the socket. It closes in the middle of a flow.
  const publishing = world.publishing("--count", "20", "--rate", "10");
  await until("the flow has begun", async () => (await orders(tabs[1]).count()) > 5);
  await tabs.shift().close();
  await publishing;
  await all(tabs, 23);
  assert.equal(await world.metric("shopbell_sessions"), 1, "one socket again");

  // An accepted order needs no toast any more, which makes room for the next.
  await tabs[0].getByTestId("accept-all").click();
  for (const tab of tabs)
    await until("no toast is left", async () => (await toasts(tab).count()) === 0);
  const before = await toastsOf(tabs);
  await world.publish();
  await listed(tabs, 24);
  await until("it is told", async () => (await toastsOf(tabs)) === before + 1);
  const told = (await Promise.all(tabs.map(texts))).flat();
  assert.equal(new Set(told).size, told.length, "no order has two toasts");

  // Tabs close one after the other, and the last still lists everything.
  while (tabs.length > 1) {
    await tabs.shift().close();
    await world.publish();
    await listed(tabs, 25 + (3 - tabs.length));
  }
});

/** Every tab lists this many orders. */
async function listed(tabs, count) {
  for (const tab of tabs) {
    await until(
      `${count} orders in every tab`,
      async () => (await orders(tab).count()) === count || (await seqs(tab)).join(),
    );
  }
}

/** The same, and the badge shows this number because none is read. */
async function all(tabs, count) {
  await listed(tabs, count);
  for (const tab of tabs) {
    await until(`${count} on every badge`, async () =>
      new RegExp(`\\b${count}\\b`).test(await badge(tab).innerText()),
    );
  }
}

async function texts(tab) {
  return (await shown(tab)).filter(({ kind }) => kind !== "summary").map(({ text }) => text);
}

async function toastsOf(tabs) {
  return (await Promise.all(tabs.map(shown))).flat().length;
}
