import assert from "node:assert/strict";
import { test } from "node:test";
import type { Client, HistoryQuery, Notification } from "../../client/src/index.js";
import { Loader } from "../src/loader.js";
import { Model } from "../src/model.js";

const FEED = "merchant-42";

test("unhandled orders are found on every page of history", async () => {
  const shop = new Shop(1_000, [3, 700, 999]);
  const { model, loader } = shop.page();
  await loader.refresh(FEED, false);
  assert.deepEqual(
    model.waiting().map(({ seq }) => seq),
    [999, 700, 3],
  );
  assert.ok(loader.complete && !loader.loading);
  assert.equal(model.orders().length, 50 + 2);
});

test("a refresh shows the current state", async () => {
  const shop = new Shop(200, [10, 150, 199]);
  const { model, loader } = shop.page();
  await loader.refresh(FEED, false);
  shop.waiting.delete(10);
  shop.waiting.delete(199);
  await loader.refresh(FEED, false);
  assert.deepEqual(
    model.waiting().map(({ seq }) => seq),
    [150],
  );
});

test("older pages follow without a gap, to the end", async () => {
  const shop = new Shop(400, [1]);
  const { model, loader } = shop.page();
  await loader.refresh(FEED, false);
  for (let pages = 0; pages < 10 && loader.older === "more"; pages++) await loader.loadOlder();
  assert.equal(loader.older, "end");
  assert.deepEqual(
    model.orders().map(({ seq }) => seq),
    Array.from({ length: 400 }, (_, at) => 400 - at),
  );
});

test("a failed history is shown and requested again", async () => {
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

test("a refresh keeps objects and marks that arrive in the meantime", async () => {
  const shop = new Shop(200, [10, 150, 199]);
  const { model, loader } = shop.page();
  await loader.refresh(FEED, false);
  const [held] = model.waiting();
  const old = model.orders().find(({ seq }) => seq === 10);
  assert.equal(held?.seq, 199);
  shop.waiting.delete(10);
  shop.onHistory = () => {
    assert.equal(model.waiting().length, 3, "known items stay until history is loaded");
    // Accepted after the server read the page of history.
    model.mark({ feed: FEED, seqs: [199], handled_at: "h", handled_by: "Ada" });
    shop.onHistory = () => {};
  };
  await loader.refresh(FEED, false);
  assert.deepEqual(
    model.waiting().map(({ seq }) => seq),
    [150],
  );
  assert.equal(
    model.orders().find(({ seq }) => seq === 199),
    held,
  );
  assert.equal(held?.marks.handled_by, "Ada");
  assert.ok(old?.gone, "the dropped item is marked as gone");
});

test("a failed refresh keeps all items", async () => {
  const shop = new Shop(200, [10]);
  const { model, loader } = shop.page();
  await loader.refresh(FEED, false);
  shop.away = true;
  await loader.refresh(FEED, false);
  assert.deepEqual(
    [model.orders().length, model.waiting().length, loader.older],
    [51, 1, "failed"],
  );
});

test("no item from before a restore stays", async () => {
  const { model, loader } = new Shop(200, [10, 199]).page();
  await loader.refresh(FEED, false);
  const restored = new Shop(20, [15], "other");
  const again = restored.page(model);
  restored.onHistory = () => {
    // Received live, before the page of history.
    model.add(restored.order(FEED, 21), 0);
  };
  await again.loader.refresh(FEED, false);
  assert.deepEqual(
    model.waiting().map(({ seq }) => seq),
    [15],
  );
  assert.deepEqual(
    model.orders().map(({ seq }) => seq),
    Array.from({ length: 21 }, (_, at) => 21 - at),
  );
  assert.equal(model.last(FEED), 21);
});

test("unhandled orders are loaded to the end, with pauses", async () => {
  const waiting = Array.from({ length: 5_000 }, (_, at) => at + 1);
  const shop = new Shop(6_000, waiting);
  let pauses = 0;
  const { model, loader } = shop.page(undefined, async () => {
    pauses++;
    assert.ok(!loader.complete);
  });
  await loader.refresh(FEED, false);
  assert.ok(loader.complete && pauses > 5);
  assert.equal(model.waiting().length, 5_000);
});

test("accept all waits for all unhandled orders, without pauses", async () => {
  const shop = new Shop(
    6_000,
    Array.from({ length: 5_000 }, (_, at) => at + 1),
  );
  let pauses = 0;
  const { model, loader } = shop.page(undefined, async () => void pauses++);
  void loader.refresh(FEED, false);
  await loader.findAllUnhandled();
  assert.deepEqual([model.waiting().length, pauses], [5_000, 0]);
  shop.away = true;
  await loader.refresh(FEED, false);
  await assert.rejects(loader.findAllUnhandled());
});

/** A service with `last` orders. */
class Shop {
  away = false;
  readonly waiting: Set<number>;

  constructor(
    private readonly last: number,
    waiting: number[],
    private readonly ids = "e",
  ) {
    this.waiting = new Set(waiting);
  }

  /** Called between the server's read and its response. */
  onHistory = () => {};

  page(model = new Model(), pause?: () => Promise<void>) {
    model.addFeed(FEED, false);
    return { model, loader: new Loader(this as unknown as Client, model, () => {}, pause) };
  }

  async history(
    feed: string,
    { before = this.last + 1, limit = 50, unhandled = false }: HistoryQuery,
  ) {
    if (this.away) throw new Error("away");
    const seqs: number[] = [];
    for (let seq = before - 1; seq > 0 && seqs.length < limit; seq--)
      if (!unhandled || this.waiting.has(seq)) seqs.push(seq);
    const lowest = seqs.at(-1) ?? 1;
    const next = seqs.length === limit && lowest > 1 ? lowest : null;
    const page = {
      feed,
      last: this.last,
      version: 0,
      unread: 0,
      unhandled: this.waiting.size,
      notifications: seqs.map((seq) => this.order(feed, seq)),
      next,
    };
    this.onHistory();
    return page;
  }

  order(feed: string, seq: number): Notification {
    const data = { order_id: `o${seq}`, total: "1.00", currency: "EUR", items: 1 };
    const marks = this.waiting.has(seq) ? {} : { read_at: "r", handled_at: "h" };
    return {
      type: "notification",
      feed,
      seq,
      id: `${this.ids}${seq}`,
      source: "/t",
      event: "order.created",
      data,
      ...marks,
    };
  }
}
