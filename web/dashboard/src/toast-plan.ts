// Plans the toasts for a batch of new notifications: many replayed ones share one toast. Pure.

import { isFailure, type Item } from "./model.js";

/** Up to this many replayed notifications have a toast each. */
export const REPLAYED_MAX = 3;

export interface Arrival {
  item: Item;
  /** It was stored before the session began. */
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

/** Plans toasts in the order of arrival. */
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

/**
 * No toast: an import's start has a card, a notice has a banner, and marked notifications are
 * known.
 */
function isNews({ kind, notification, marks }: Item): boolean {
  if (marks.handled_at !== undefined || marks.read_at !== undefined) return false;
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
