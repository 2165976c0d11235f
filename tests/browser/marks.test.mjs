// The bell rings until an order is accepted, then it stops on every device.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { accept, badge, bell, order, orders } from "./page.mjs";
import { World, browser, live, until } from "./world.mjs";

let chromium;
before(async () => (chromium = await browser()));
after(() => chromium.close());

const rings = (page, ringing) =>
  until(`the bell ${ringing ? "rings" : "is silent"}`, async () => {
    const seen = await bell(page).getAttribute("data-ringing");
    return seen === String(ringing) || seen;
  });

test("an accepted order stops the bell on every device within a second", async (t) => {
  const world = await World.create(t);
  const [laptop, phone] = [await world.profile(chromium), await world.profile(chromium)];
  const [here, there] = [await world.open(laptop), await world.open(phone)];
  await world.publish("--count", "2");
  for (const page of [here, there]) {
    await until("both orders are listed", async () => (await orders(page).count()) === 2);
    await rings(page, true);
  }

  await accept(here, 1).click();
  await order(there, 1).getByTestId("accepted").waitFor();
  assert.equal(await accept(there, 1).count(), 0);
  await rings(there, true);

  const silentAt = there.evaluate(
    () =>
      new Promise((resolve) => {
        const bell = document.querySelector('[data-testid="bell"]');
        new MutationObserver(() => {
          if (bell.dataset.ringing === "false") resolve(performance.timeOrigin + performance.now());
        }).observe(bell, { attributes: true });
      }),
  );
  const clicked = Date.now();
  await accept(here, 2).click();
  const took = (await silentAt) - clicked;
  assert.ok(took < 1_000, `${took} ms`);
  await rings(here, false);
  assert.equal(await unhandled(world), "0");

  // The phone is offline, with the page open.
  await world.publish();
  for (const page of [here, there]) await rings(page, true);
  await phone.setOffline(true);
  world.proxy.cut();
  await there
    .locator('[data-testid="connection"]:not([data-state="live"])')
    .waitFor({ state: "attached" });
  world.proxy.mend();
  await live(here);
  await accept(here, 3).click();
  await rings(here, false);
  assert.equal(
    await bell(there).getAttribute("data-ringing"),
    "true",
    "the offline page has not received the mark",
  );
  await phone.setOffline(false);
  await rings(there, false);
  await order(there, 3).getByTestId("accepted").waitFor();

  // The phone's page is closed.
  await there.close();
  await world.publish();
  await rings(here, true);
  await accept(here, 4).click();
  await rings(here, false);
  const again = await world.open(phone);
  await until("all orders are listed", async () => (await orders(again).count()) === 4);
  await rings(again, false);
});

test("the badge counts unread notifications on every device", async (t) => {
  const world = await World.create(t);
  const [here, there] = [
    await world.open(await world.profile(chromium)),
    await world.open(await world.profile(chromium)),
  ];
  await world.publish("--count", "7");
  const says = (page, count) =>
    until(`the badge shows ${count}`, async () =>
      new RegExp(`(^|\\D)${count}(\\D|$)`).test(await badge(page).innerText()),
    );
  for (const page of [here, there]) await says(page, 7);
  await order(here, 5).getByTestId("order-open").click();
  for (const page of [here, there]) await says(page, 6);
  assert.equal(await world.sql(`select count(*) from notifications where read_at is null`), "6");
  await there.getByTestId("read-all").click();
  await until(
    "all notifications are read",
    async () => (await world.sql("select unread from feeds")) === "0",
  );
  for (const page of [here, there]) {
    await until(
      "no unread is left",
      async () =>
        !/[1-9]/.test((await badge(page).isVisible()) ? await badge(page).innerText() : ""),
    );
  }
});

const unhandled = (world) =>
  world.sql(`select unhandled from feeds where feed = '${world.merchant}'`);
