import assert from "node:assert/strict";
import { test } from "node:test";
import type { Notification } from "../../client/src/index.js";
import { Model } from "../src/model.js";
import { Unshown } from "../src/unshown.js";

test("the next page shows a notification that was not shown, once", () => {
  const storage = new Map<string, string>();
  const open = () =>
    new Unshown(() => ({
      getItem: (key) => storage.get(key) ?? null,
      setItem: (key, value) => void storage.set(key, value),
      removeItem: (key) => void storage.delete(key),
    }));
  const before = new Model();
  const items = [order(1), order(2), order(3)]
    .map((one) => before.add(one, 0))
    .filter((item) => item !== undefined);
  open().keep(items);

  const model = new Model();
  const unshown = open();
  const find = (feed: string, seq: number) => model.item(feed, seq);
  assert.deepEqual(unshown.take(find, false), [], "history is not here yet");
  model.add(order(1), 0);
  model.add({ ...order(2), id: "another" }, 0);
  assert.deepEqual(
    unshown.take(find, false).map(({ seq }) => seq),
    [1],
  );
  assert.deepEqual(unshown.take(find, false), []);
  model.add(order(3), 0);
  const next = open();
  assert.deepEqual(
    next.take(find, false).map(({ seq }) => seq),
    [3],
    "entries that are not loaded stay for the next page",
  );
  assert.equal(storage.size, 0);
  next.keep(items);
  const last = open();
  assert.deepEqual(
    last.take(() => undefined, true),
    [],
  );
  assert.equal(storage.size, 0, "entries that are never loaded are dropped");
});

test("without storage nothing is kept and nothing throws", () => {
  const unshown = new Unshown(() => {
    throw new Error("forbidden");
  });
  unshown.keep([]);
  assert.deepEqual(
    unshown.take(() => undefined, false),
    [],
  );
});

function order(seq: number): Notification {
  const data = { order_id: `o${seq}`, total: "1.00", currency: "EUR", items: 1 };
  return {
    type: "notification",
    feed: "merchant-42",
    seq,
    id: `e${seq}`,
    source: "/t",
    event: "order.created",
    data,
  };
}
