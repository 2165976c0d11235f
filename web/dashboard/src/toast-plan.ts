// Which toasts a batch of new notifications deserves: a storm is one line, not a wall. Pure.

import { isFailure, type Item } from "./model.js";

/** So many that came while away are still shown one by one. */
export const REPLAYED_MAX = 3;

export interface Arrival {
  item: Item;
  /** It lay waiting when the connection was made. */
  replayed: boolean;
}

export type Toast =
  | { kind: "order"; item: Item }
  | { kind: "failed"; feed: string; id: string; items: Item[] }
  | { kind: "finished"; item: Item }
  | { kind: "other"; item: Item }
  | {
      kind: "away";
      orders: number;
      failed: number;
      imports: number;
      others: number;
      items: Item[];
    };

/** Plans toasts, in the order in which things came. */
export function plan(batch: Arrival[]): Toast[] {
  const news = batch.filter(({ item }) => isNews(item));
  const replayed = news.filter((arrival) => arrival.replayed);
  const summed = replayed.length > REPLAYED_MAX;
  const toasts: Toast[] = summed ? [summary(replayed.map(({ item }) => item))] : [];
  const failed = new Map<string, Extract<Toast, { kind: "failed" }>>();
  for (const { item, replayed } of news) {
    if (summed && replayed) continue;
    if (isFailure(item.notification)) {
      const id = (item.notification.data as { import_id: string }).import_id;
      const key = `${item.feed}/${id}`;
      const toast = failed.get(key);
      if (toast) toast.items.push(item);
      else {
        const first = { kind: "failed", feed: item.feed, id, items: [item] } as const;
        failed.set(key, first as never);
        toasts.push(first as never);
      }
    } else if (item.kind === "order") toasts.push({ kind: "order", item });
    else if (item.kind === "import") toasts.push({ kind: "finished", item });
    else toasts.push({ kind: "other", item });
  }
  return toasts;
}

/** An import's start is seen on its card, a notice in its banner; what somebody has handled is no news. */
function isNews({ kind, notification, facts }: Item): boolean {
  if (facts.handled_at !== undefined || facts.read_at !== undefined) return false;
  return kind !== "notice" && notification.event !== "import.started";
}

function summary(items: Item[]): Toast {
  const number = (is: (item: Item) => boolean) => items.filter(is).length;
  return {
    kind: "away",
    orders: number(({ kind }) => kind === "order"),
    failed: number(({ notification }) => isFailure(notification)),
    imports: number(({ kind, notification }) => kind === "import" && !isFailure(notification)),
    others: number(({ kind }) => kind === "other"),
    items,
  };
}
