import assert from "node:assert/strict";
import { test } from "node:test";
import type { Client, HistoryQuery, Notification } from "../../client/src/index.js";
import { Loader } from "../src/loader.js";
import { Model } from "../src/model.js";

const FEED = "merchant-42";

test("what waits is found however far back it is", async () => {
  const shop = new Shop(1_000, [3, 700, 999]);
  const { model, loader } = shop.page();
  await loader.refresh(FEED, false);
  assert.deepEqual(model.waiting().map(({ seq }) => seq), [999, 700, 3]);
  assert.ok(loader.complete && !loader.loading);
  assert.equal(model.orders().length, 50 + 2);
});

test("after something was missed the page shows what is so now", async () => {
  const shop = new Shop(200, [10, 150, 199]);
  const { model, loader } = shop.page();
  await loader.refresh(FEED, false);
  shop.waiting.delete(10);
  shop.waiting.delete(199);
  await loader.refresh(FEED, false);
  assert.deepEqual(model.waiting().map(({ seq }) => seq), [150]);
});

test("older pages follow without a gap, to the end", async () => {
  const shop = new Shop(400, [1]);
  const { model, loader } = shop.page();
  await loader.refresh(FEED, false);
  for (let pages = 0; pages < 10 && loader.older === "more"; pages++) await loader.loadOlder();
  assert.equal(loader.older, "end");
  assert.deepEqual(model.orders().map(({ seq }) => seq), Array.from({ length: 400 }, (_, at) => 400 - at));
});

test("a history that fails is said, and asked for again", async () => {
  const shop = new Shop(10, []);
  const { model, loader } = shop.page();
  shop.away = true;
  await loader.refresh(FEED, false);
  assert.equal(loader.older, "failed");
  shop.away = false;
  await loader.loadOlder();
  await new Promise((done) => setImmediate(done));
  assert.equal(model.orders().length, 10);
  assert.equal(loader.older, "end");
});

/** A service with so many orders. */
class Shop {
  away = false;
  readonly waiting: Set<number>;

  constructor(
    private readonly last: number,
    waiting: number[],
  ) {
    this.waiting = new Set(waiting);
  }

  page() {
    const model = new Model();
    model.addFeed(FEED, false);
    return { model, loader: new Loader(this as unknown as Client, model, () => {}) };
  }

  async history(feed: string, { before = this.last + 1, limit = 50, unhandled = false }: HistoryQuery) {
    if (this.away) throw new Error("away");
    const seqs: number[] = [];
    for (let seq = before - 1; seq > 0 && seqs.length < limit; seq--) if (!unhandled || this.waiting.has(seq)) seqs.push(seq);
    const lowest = seqs.at(-1) ?? 1;
    const next = seqs.length === limit && lowest > 1 ? lowest : null;
    return { feed, last: this.last, version: 0, unread: 0, unhandled: this.waiting.size, notifications: seqs.map((seq) => this.#order(feed, seq)), next };
  }

  #order(feed: string, seq: number): Notification {
    const data = { order_id: `o${seq}`, total: "1.00", currency: "EUR", items: 1 };
    const facts = this.waiting.has(seq) ? {} : { read_at: "r", handled_at: "h" };
    return { type: "notification", feed, seq, id: `e${seq}`, source: "/t", event: "order.created", data, ...facts };
  }
}
