// Five tabs of one browser share a socket; each order has one toast.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { badge, orders, seqs, shown, toasts, watchToasts } from "./page.mjs";
import { World, browser, until } from "./world.mjs";

let chromium;
before(async () => (chromium = await browser()));
after(() => chromium.close());

test("five tabs share a socket and a toast, and survive the leader", async (t) => {
  const world = await World.create(t);
  const profile = await world.profile(chromium);
  await watchToasts(profile);
  const tabs = [];
  for (let tab = 0; tab < 5; tab += 1) tabs.push(await world.open(profile));
  assert.equal(await world.metric("shopbell_sessions"), 1);

  await world.publish("--count", "3");
  await all(tabs, 3);
  await until("each order has one toast", async () => (await toastsOf(tabs)) === 3);

  // The first tab leads. It is closed while orders arrive.
  const publishing = world.publishing("--count", "20", "--rate", "10");
  await until("more than five orders are listed", async () => (await orders(tabs[1]).count()) > 5);
  await tabs.shift().close();
  await publishing;
  await all(tabs, 23);
  assert.equal(await world.metric("shopbell_sessions"), 1, "the tabs share one socket again");

  // Accepting all orders closes their toasts.
  await tabs[0].getByTestId("accept-all").click();
  for (const tab of tabs)
    await until("no toast is left", async () => (await toasts(tab).count()) === 0);
  const before = await toastsOf(tabs);
  await world.publish();
  await listed(tabs, 24);
  await until("the order has a toast", async () => (await toastsOf(tabs)) === before + 1);
  const toastTexts = (await Promise.all(tabs.map(texts))).flat();
  assert.equal(new Set(toastTexts).size, toastTexts.length, "no order has two toasts");

  // Closes tabs one by one; the others still receive each order.
  while (tabs.length > 1) {
    await tabs.shift().close();
    await world.publish();
    await listed(tabs, 25 + (3 - tabs.length));
  }
});

/** Waits until every tab lists `count` orders. */
async function listed(tabs, count) {
  for (const tab of tabs) {
    await until(
      `${count} orders in every tab`,
      async () => (await orders(tab).count()) === count || (await seqs(tab)).join(),
    );
  }
}

/** Waits until every tab lists `count` orders and shows them as unread. */
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
