// The buttons of the demo place orders, run an import, and cut the connection to show the replay.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { imports, orders, seqs } from "./page.mjs";
import { World, browser, live, until } from "./world.mjs";

let chromium;
before(async () => (chromium = await browser()));
after(() => chromium.close());

test("the demo's address opens the dashboard and its buttons work", async (t) => {
  const world = await World.create(t, { demo: true });
  const page = await world.open(await chromium.newContext(), world.demoUrl);
  assert.ok(!page.url().includes("token"), "the token is not left in the address bar");

  await page.getByTestId("demo-order").click();
  await until("an order is listed", async () => (await orders(page).count()) === 1);

  await page.getByTestId("demo-import").click();
  const card = imports(page).first();
  await until("the import runs", async () => Number(await card.getAttribute("data-done")) > 10);

  await page.getByTestId("demo-cut").click();
  await page
    .locator('[data-testid="connection"]:not([data-state="live"])')
    .waitFor({ state: "attached" });
  assert.equal(await orders(page).count(), 1, "no order arrives while disconnected");
  await live(page);
  await until(
    "the orders placed in the meantime are listed",
    async () => (await orders(page).count()) === 6,
  );
  const listed = await seqs(page);
  assert.equal(new Set(listed).size, 6, listed.join());
  await until(
    "the import is finished",
    async () => (await card.getAttribute("data-status")) === "finished",
  );
  const progress = await card.evaluate(({ dataset: { done, failed, total } }) =>
    [done, failed, total].join(),
  );
  assert.equal(progress, "500,7,500");

  for (const headers of [{}, { Authorization: "Bearer x" }]) {
    const refused = await fetch(new URL("/demo/orders", world.demoUrl), {
      method: "POST",
      headers: { ...headers, "Content-Type": "application/json" },
      body: '{"count":1}',
    });
    assert.equal(refused.status, 401, "the demo requires the merchant's token");
  }
});
