// What this tab was chosen to tell and had not told when its page was left: it has been acknowledged, so nobody else will.
// Remembered by the tab until the next page is there. Pure but for the storage it is given.

import type { Item } from "./model.js";

const KEY = "shopbell.dashboard.untold";
const UNTOLD_MAX = 500;

interface Told {
  feed: string;
  seq: number;
  /** Of the event: a number may be another's by then. */
  id: string;
}

export class Untold {
  #waiting: Told[] = [];

  /** @param storage absent or throwing where a browser forbids it */
  constructor(private readonly storage: () => Pick<Storage, "getItem" | "setItem" | "removeItem">) {
    try {
      const stored = JSON.parse(this.storage().getItem(KEY) ?? "[]") as unknown;
      if (Array.isArray(stored)) this.#waiting = stored.slice(-UNTOLD_MAX);
    } catch {
      // Nothing is remembered.
    }
    this.keep([]);
  }

  /** The page is left, or is back (with nothing). What was not found yet stays with it. */
  keep(items: Item[]): void {
    const all = [
      ...this.#waiting,
      ...items.map(({ feed, seq, notification: { id } }): Told => ({ feed, seq, id })),
    ];
    try {
      if (all.length > 0) this.storage().setItem(KEY, JSON.stringify(all.slice(-UNTOLD_MAX)));
      else this.storage().removeItem(KEY);
    } catch {
      // Forbidden or full: then these are seen in the list only.
    }
  }

  /** Gives those that have come by now, once; what has not come when all has is let go. */
  take(find: (feed: string, seq: number) => Item | undefined, isAll: boolean): Item[] {
    if (this.#waiting.length === 0) return [];
    const found: Item[] = [];
    this.#waiting = this.#waiting.filter(({ feed, seq, id }) => {
      const item = find(feed, seq);
      if (item?.notification.id === id) found.push(item);
      return item === undefined && !isAll;
    });
    if (found.length > 0 || isAll) this.keep([]);
    return found;
  }
}
