// Content of events is shown as text, and the page is accessible.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { after, before, test } from "node:test";
import { imports, order, orders, toasts } from "./page.mjs";
import { World, browser, until } from "./world.mjs";

const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

let chromium;
before(async () => (chromium = await browser()));
after(() => chromium.close());

const HOSTILE = [
  '<script>document.title = "taken"</script>',
  "<img src=x onerror=\"document.title = 'taken'\">",
  "\u202Egnp.exe\u202C \u2066hidden",
  "a".repeat(10_000),
  "\u0007\u001b[31mred\u0000",
];

test("markup, bidirectional controls and long names are shown as text", async (t) => {
  const world = await World.create(t);
  const page = await world.open(
    await world.profile(chromium, { viewport: { width: 900, height: 800 } }),
  );
  for (const text of HOSTILE) {
    const data = {
      order_id: text,
      total: "1.00",
      currency: "EUR",
      items: 1,
      customer: { name: text },
    };
    await world.publish("--data", JSON.stringify(data));
    await world.publish("--type", "custom.thing", "--data", JSON.stringify({ text }));
  }
  const failure = {
    import_id: HOSTILE[0].slice(0, 100),
    index: 1,
    sku: HOSTILE[1],
    status: "failed",
    error: HOSTILE[2],
  };
  await world.publish("--type", "import.item", "--data", JSON.stringify(failure));
  await until("all are listed", async () => (await orders(page).count()) === HOSTILE.length);
  await until("the failure is listed", async () => (await imports(page).count()) === 1);
  await toasts(page).first().waitFor();
  for (const row of await orders(page).all()) await row.getByTestId("order-open").click();

  assert.notEqual(await page.title(), "taken");
  assert.equal(
    await page
      .locator("main script, main img[src='x'], [data-testid='toast'] script, [onerror]")
      .count(),
    0,
  );
  assert.match(await order(page, 1).innerText(), /<script>/, "the text is shown");
  const [width, scroll] = await page.evaluate(() => [
    document.documentElement.clientWidth,
    document.documentElement.scrollWidth,
  ]);
  assert.ok(scroll <= width, `the page is ${scroll} px wide in ${width}`);
  // Each text of an event is isolated, so that an override does not change the text after it.
  const isolated = await page.evaluate(() => {
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const wrong = [];
    while (walker.nextNode()) {
      const { data, parentElement } = walker.currentNode;
      if (!/[\u202a-\u202e\u2066-\u2069]/.test(data)) continue;
      const isolating = (element) =>
        /isolate|plaintext/.test(getComputedStyle(element).unicodeBidi);
      if (!isolating(parentElement)) wrong.push(parentElement.outerHTML.slice(0, 200));
    }
    return wrong;
  });
  assert.deepEqual(isolated, []);
});

for (const colorScheme of ["light", "dark"]) {
  test(`axe finds no violations in ${colorScheme} colours`, async (t) => {
    const world = await World.create(t);
    // The page's policy blocks foreign scripts, including axe.
    const profile = await world.profile(chromium, {
      colorScheme,
      bypassCSP: true,
      reducedMotion: "reduce",
    });
    const page = await world.open(profile);
    const check = async (what) => {
      await page.evaluate(axe);
      const { violations } = await page.evaluate(() => globalThis.axe.run());
      const found = violations.map(
        ({ id, nodes }) =>
          `${id}: ${nodes.map(({ target, any }) => `${target} ${any[0]?.message ?? ""}`).join("; ")}`,
      );
      assert.deepEqual(found, [], what);
    };
    await check("an empty page");
    await world.publish("--count", "3");
    await world.publish("--import", "30", "--failed", "4");
    await world.publish("--type", "custom.thing", "--data", '{"text":"hello"}');
    await world.shopbell(
      "publish",
      "--recipient",
      "all",
      "--type",
      "notice",
      "--data",
      '{"text":"closed on Sunday"}',
    );
    await until(
      "all is there",
      async () => (await orders(page).count()) === 3 && (await imports(page).count()) === 1,
    );
    await toasts(page).first().waitFor();
    await order(page, 1).getByTestId("order-open").click();
    await check("a page with everything on it");
    await page.setViewportSize({ width: 360, height: 740 });
    await check("on a phone");
    await page.goto(`${world.proxy.url}/`);
    await page.getByTestId("token").waitFor();
    await check("the form that asks for a token");
  });
}

test("an order is accepted and a toast closed by keyboard", async (t) => {
  const world = await World.create(t);
  const page = await world.open(await world.profile(chromium));
  await world.publish();
  const toast = toasts(page).first();
  await toast.waitFor();
  assert.ok(["status", "alert"].includes(await toast.getAttribute("role")));
  await world.publish();
  const reach = async (testid) => {
    for (let presses = 0; presses < 60; presses += 1) {
      if ((await page.evaluate(() => document.activeElement?.dataset.testid)) === testid) return;
      await page.keyboard.press("Tab");
    }
    assert.fail(`${testid} is not reachable by keyboard`);
  };
  await until("both orders have a toast", async () => (await toasts(page).count()) === 2);
  await reach("toast-close");
  await page.keyboard.press("Enter");
  await until("one toast is left", async () => (await toasts(page).count()) === 1);
  await reach("accept");
  await page.keyboard.press("Enter");
  await page.getByTestId("accepted").waitFor();
});
