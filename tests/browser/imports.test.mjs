// An import of ten thousand items: exact progress, every failure, and a responsive page.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { imports, seqs, shown, watchToasts } from "./page.mjs";
import { World, browser, live, until } from "./world.mjs";

const ITEMS = 10_000;
const FAILED = 37;
/** Limit on a task of the page, in milliseconds. People notice 100; the test machine is loaded. */
const LONGEST_TASK_MS = 200;
const ORDER_DELAY_MS = 1_000;

let chromium;
before(async () => (chromium = await browser()));
after(() => chromium.close());

test("an import of ten thousand items delays no order's toast", async (t) => {
  const world = await World.create(t);
  const profile = await world.profile(chromium);
  await watchToasts(profile);
  await profile.addInitScript(() => {
    window.longTasks = [];
    new PerformanceObserver((list) => {
      window.longTasks.push(...list.getEntries().map(({ duration }) => duration));
    }).observe({ type: "longtask" });
  });
  const page = await world.open(profile);
  await page.evaluate(() => (window.longTasks.length = 0));

  // The rate of a shop's importer, so that the order arrives during the import.
  const importing = world.publishing(
    "--import",
    String(ITEMS),
    "--failed",
    String(FAILED),
    "--rate",
    "1500",
  );
  await until(
    "a third of the import is done",
    async () => Number(await imports(page).first().getAttribute("data-done")) > ITEMS / 3,
  );
  const toastsBefore = (await shown(page)).filter(({ isOrder }) => isOrder).length;
  await world.publish();
  const confirmed = Date.now();
  await until(
    "the order has a toast",
    async () => (await shown(page)).filter(({ isOrder }) => isOrder).length > toastsBefore,
  );
  const shownAt = (await shown(page)).filter(({ isOrder }) => isOrder).at(-1).at;
  assert.ok(
    Number(await imports(page).first().getAttribute("data-done")) < ITEMS,
    "the import was still going on",
  );
  assert.ok(
    shownAt - confirmed < ORDER_DELAY_MS,
    `the order had a toast after ${shownAt - confirmed} ms`,
  );

  await importing;
  await finished(page);
  const longest = Math.max(0, ...(await page.evaluate(() => window.longTasks)));
  console.log(
    `longest task ${longest.toFixed(0)} ms, the order's toast after ${(shownAt - confirmed).toFixed(0)} ms`,
  );
  assert.ok(longest < LONGEST_TASK_MS, `a task of ${longest} ms`);
  const busyMs = 2 * LONGEST_TASK_MS;
  await page.evaluate((ms) => {
    setTimeout(() => {
      for (const end = performance.now() + ms; performance.now() < end;);
    });
  }, busyMs);
  await until(
    "the observer reports a long task",
    async () => (await page.evaluate(() => Math.max(...window.longTasks))) >= busyMs,
  );
  assert.equal(await failures(page), FAILED, "each failure is listed");
  assert.equal((await seqs(page)).length, 1);

  await page.reload();
  await live(page);
  await finished(page);
  assert.equal(await failures(page), FAILED, "each failure is listed after a reload");

  await expectShortReplay(world);
});

/** A new browser receives only the final state and the failures. */
async function expectShortReplay(world) {
  const late = await world.profile(chromium);
  const frames = [];
  late.on("page", (opened) => {
    opened.on("websocket", (socket) => {
      socket.on("framereceived", ({ payload }) => frames.push(JSON.parse(payload)));
    });
  });
  await world.sql(`delete from cursors; update feeds set acked_seq = 0`);
  const elsewhere = await world.open(late);
  await finished(elsewhere);
  assert.equal(await failures(elsewhere), FAILED);
  const items = frames.filter(({ event }) => event === "import.item");
  assert.equal(items.filter(({ data }) => data.status === "failed").length, FAILED);
  assert.equal(
    items.filter(({ data }) => data.status === "imported").length,
    1,
    "the newest imported item, which contains the totals",
  );
}

async function finished(page) {
  const card = imports(page).first();
  await until("the bar is exact", async () => {
    const seen = await card.evaluate(({ dataset: { done, failed, total, status } }) =>
      [done, failed, total, status].join(),
    );
    return seen === `${ITEMS},${FAILED},${ITEMS},finished` || seen;
  });
}

/** Number of listed failures, with all rows opened. */
async function failures(page) {
  const card = imports(page).first();
  if (!(await card.getByTestId("failure").first().isVisible()))
    await card.locator("summary").click();
  for (;;) {
    const more = card.getByTestId("more-failures");
    if ((await more.count()) === 0 || !(await more.isVisible())) break;
    await more.click();
  }
  const listed = await card
    .getByTestId("failure")
    .evaluateAll((rows) => rows.map((row) => row.dataset.seq));
  assert.equal(new Set(listed).size, listed.length, "each failure is listed once");
  return listed.length;
}
