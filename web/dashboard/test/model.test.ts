import assert from "node:assert/strict";
import { test } from "node:test";
import type { Notification } from "../../client/src/index.js";
import { failures, FAILURES_MAX, Model, ORDERS_MAX, type Mark, type Item } from "../src/model.js";
import { plan, REPLAYED_MAX, type Arrival } from "../src/toast-plan.js";

const FEED = "merchant-42";
const NOW = Date.parse("2026-11-21T12:00:00Z");

test("the order and number of updates do not change the model", () => {
  const updates: ((model: Model) => void)[] = [];
  for (let seq = 1; seq <= 6; seq++) updates.push((model) => model.add(order(seq), NOW));
  const accepted = order(2, { read_at: "r", handled_at: "h", handled_by: "Ada" });
  const finished = {
    event: "import.finished",
    data: { import_id: "i", status: "finished" },
    progress: { done: 4, failed: 1, total: 4 },
  };
  for (const one of [
    accepted,
    item(7, 1, "imported", 1, 0),
    item(8, 2, "failed", 2, 1),
    order(9, finished),
  ]) {
    updates.push((model) => model.add(one, NOW));
  }
  const marks: Mark[] = [
    { feed: FEED, seqs: [1, 3], handled_at: "h", handled_by: "Bo" },
    { feed: FEED, through: 4, read_at: "r" },
    { feed: FEED, seqs: [8], read_at: "r", handled_at: "h", handled_by: "Bo" },
  ];
  for (const mark of marks) updates.push((model) => model.mark(mark));

  const expected = known(updates);
  assert.deepEqual(
    expected.orders.map(({ seq }) => seq),
    [6, 5, 4, 3, 2, 1],
  );
  const failure = { seq: 8, read_at: "r", handled_at: "h", handled_by: "Bo" };
  assert.deepEqual(expected.imports, [
    { done: 4, failed: 1, total: 4, status: "finished", failures: [failure] },
  ]);
  for (let seed = 1; seed <= 300; seed++) {
    assert.deepEqual(
      known(shuffled([...updates, ...updates], randomOf(seed))),
      expected,
      `seed ${seed}`,
    );
  }
});

test("the first person who accepts an order stays the one", () => {
  const model = new Model();
  model.add(order(1), NOW);
  model.mark({ feed: FEED, seqs: [1], handled_at: "1", handled_by: "Ada" });
  model.mark({ feed: FEED, seqs: [1], handled_at: "2", handled_by: "Bo" });
  assert.equal(model.orders()[0]?.marks.handled_by, "Ada");
  assert.equal(model.waiting().length, 0);
});

test("accepted orders are bounded, unhandled ones are kept", () => {
  const model = new Model();
  model.addFeed(FEED, false);
  model.add(order(1), NOW);
  for (let seq = 2; seq <= ORDERS_MAX + 500; seq++) model.add(order(seq, { handled_at: "h" }), NOW);
  const gone = model.trim();
  assert.equal(model.orders().length, ORDERS_MAX);
  assert.equal(model.waiting()[0]?.seq, 1);
  assert.equal(gone.get(FEED), 502, "history goes on below the oldest that is kept");
});

test("ten thousand imported items are one import", () => {
  const model = new Model();
  for (let seq = 1; seq <= 10_000; seq++)
    assert.equal(model.add(item(seq, seq, "imported", seq, 0), NOW), undefined);
  assert.equal(model.imports().length, 1);
  assert.equal(model.imports()[0]?.done, 10_000);
});

test("the newest failures of an import are kept, and the count of all", () => {
  const model = new Model();
  model.addFeed(FEED, false);
  const number = FAILURES_MAX + 500;
  for (let seq = 1; seq <= number; seq++) model.add(item(seq, seq, "failed", seq, seq), NOW);
  const [one] = model.imports();
  assert.ok(one?.overflowed && one.failed === number);
  assert.deepEqual([failures(one).length, failures(one)[0]?.seq], [FAILURES_MAX, 501]);
  const held = model.add(item(number, number, "failed", number, number), NOW);
  assert.equal(held, failures(one).at(-1));
  model.endRefresh(FEED, number);
  assert.equal(one.items.size, 0, "dropped failures are not kept elsewhere");
});

test("a reused number has no marks of the old notification", () => {
  const model = new Model();
  const before = model.add(order(1), NOW);
  model.add(order(2), NOW);
  model.mark({ feed: FEED, through: 2, read_at: "r" });
  model.mark({ feed: FEED, seqs: [1], handled_at: "h" });
  const after = model.add(order(1, { id: "another" }), NOW);
  assert.ok(before?.gone && after !== before);
  assert.deepEqual(after?.marks, {});
  assert.equal(model.waiting().length, 2);
  assert.notEqual(model.add(order(2, { source: "/elsewhere" }), NOW)?.marks.read_at, "r");
});

test("a known type with unknown data is a plain row", () => {
  const model = new Model();
  model.add(order(1, { data: null }), NOW);
  model.add(order(2, { event: "import.item", data: "what" }), NOW);
  assert.deepEqual([model.orders().length, model.others().length], [0, 2]);
});

test("notifications of the shared feed are notices", () => {
  const model = new Model();
  model.addFeed("all", true);
  model.add(order(1, { feed: "all", event: "notice", data: { message: "Hello" } }), NOW);
  assert.deepEqual([model.notices().length, model.others().length, model.feeds()], [1, 0, []]);
});

test("many replayed orders share a toast, a few have one each", () => {
  assert.deepEqual(
    plan(arrivals(REPLAYED_MAX, true)).map(({ kind }) => kind),
    ["order", "order", "order"],
  );
  const [toast, ...more] = plan(arrivals(12, true));
  assert.deepEqual(
    [toast?.kind, toast?.kind === "away" && toast.orders, more.length],
    ["away", 12, 0],
  );
  assert.equal(plan([...arrivals(12, true), ...arrivals(2, false)]).length, 3);
});

test("failures of an import share a toast, handled orders have none", () => {
  const news = [
    item(1, 1, "failed", 1, 1),
    item(2, 2, "failed", 2, 2),
    order(3, { handled_at: "h" }),
  ];
  const [toast, ...more] = plan(news.map((one) => ({ item: kept(one), replayed: false })));
  assert.ok(toast?.kind === "failed" && toast.items.length === 2 && more.length === 0);
});

function known(updates: ((model: Model) => void)[]) {
  const model = new Model();
  model.addFeed(FEED, false);
  for (const update of updates) update(model);
  const plain = (items: Item[]) => items.map(({ seq, marks }) => ({ seq, ...marks }));
  const imports = model.imports().map((one) => {
    const { done, failed, total, status } = one;
    return { done, failed, total, status, failures: plain(failures(one)) };
  });
  return { orders: plain(model.orders()), imports };
}

function order(seq: number, more: Partial<Notification> = {}): Notification {
  const data = { order_id: `o${seq}`, total: "1.00", currency: "EUR", items: 1 };
  return {
    type: "notification",
    feed: FEED,
    seq,
    id: `e${seq}`,
    source: "/t",
    event: "order.created",
    data,
    ...more,
  };
}

function item(
  seq: number,
  index: number,
  status: string,
  done: number,
  failed: number,
): Notification {
  const data = { import_id: "i", index, sku: `s${index}`, status };
  return order(seq, { event: "import.item", data, progress: { done, failed, total: 4 } });
}

function kept(notification: Notification): Item {
  const one = new Model().add(notification, NOW);
  assert.ok(one);
  return one;
}

function arrivals(number: number, replayed: boolean): Arrival[] {
  return Array.from({ length: number }, (_, at) => ({ item: kept(order(at + 1)), replayed }));
}

function shuffled<T>(list: T[], random: () => number): T[] {
  return list
    .map((one) => [random(), one] as const)
    .sort(([a], [b]) => a - b)
    .map(([, one]) => one);
}

/** Deterministic, so that a failure can be reproduced. */
function randomOf(seed: number): () => number {
  return () => {
    seed = (seed * 1_664_525 + 1_013_904_223) % 4_294_967_296;
    return seed / 4_294_967_296;
  };
}
