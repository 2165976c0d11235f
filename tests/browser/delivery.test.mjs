// Each order is shown once: as a toast, or in the summary after a closed page.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { badge, bell, orders, seqs, shown, toasts, watchToasts } from "./page.mjs";
import { World, browser, live, until } from "./world.mjs";

let chromium;
before(async () => (chromium = await browser()));
after(() => chromium.close());

test("orders become toasts, and missed ones share a toast", async (t) => {
  const world = await World.create(t);
  const profile = await world.profile(chromium);
  await watchToasts(profile);
  let page = await world.open(profile);
  await world.publish();
  await toasts(page).first().waitFor();
  assert.deepEqual(await seqs(page), [1]);
  assert.equal(await bell(page).getAttribute("data-ringing"), "true");
  // The page stays open until the service has stored the ack.
  await until("the order is acked", async () => (await acked(world)) === "1");
  await page.close();

  await world.publish("--count", "5");
  page = await world.open(profile);
  await until("all six are listed", async () => (await orders(page).count()) === 6);
  assert.deepEqual(await seqs(page), [6, 5, 4, 3, 2, 1]);
  await until("a toast is shown", async () => (await shown(page)).length > 0);
  const summary = await shown(page);
  assert.equal(summary.length, 1, `several orders share a toast: ${JSON.stringify(summary)}`);
  assert.equal(summary[0].kind, "summary");
  assert.match(summary[0].text, /\b5\b/);
  await until("the orders are acked", async () => (await acked(world)) === "6");

  await page.reload();
  await live(page);
  await until("all six are listed again", async () => (await orders(page).count()) === 6);
  assert.match(await badge(page).innerText(), /\b6\b/);
  // After the reload, only new orders have toasts.
  await world.publish();
  await until("the next order has a toast", async () => (await shown(page)).length > 0);
  const after = await shown(page);
  assert.ok(
    after.length === 1 && after[0].isOrder,
    `old orders have no toast: ${JSON.stringify(after)}`,
  );
});

test("forty orders at once show few toasts and are all listed", async (t) => {
  const world = await World.create(t);
  const profile = await world.profile(chromium);
  const page = await world.open(profile);
  await world.publish("--count", "40");
  await until("the badge shows forty", async () => /\b40\b/.test(await badge(page).innerText()));
  assert.ok((await toasts(page).count()) <= 5, "few toasts at once");
  await until("the newest is listed", async () => (await seqs(page))[0] === 40);
  const listed = await seqs(page);
  assert.deepEqual(
    listed,
    [...listed].sort((one, other) => other - one),
    "newest first",
  );
});

const acked = (world) =>
  world.sql(`select max(acked_seq) from cursors where feed = '${world.merchant}'`);
