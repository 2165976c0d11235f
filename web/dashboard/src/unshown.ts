// Notifications that this tab had to show when its page was closed. They are acked, so no other tab
// shows them. The tab stores them for its next page. Pure except for the storage.

import type { Item } from "./model.js";

const KEY = "shopbell.dashboard.unshown";
const UNSHOWN_MAX = 500;

interface Entry {
  feed: string;
  seq: number;
  /** Id of the event, because the number may belong to another one after a restore. */
  id: string;
}

export class Unshown {
  #waiting: Entry[] = [];

  /** @param storage may throw if the browser forbids it */
  constructor(private readonly storage: () => Pick<Storage, "getItem" | "setItem" | "removeItem">) {
    try {
      const stored = JSON.parse(this.storage().getItem(KEY) ?? "[]") as unknown;
      if (Array.isArray(stored)) this.#waiting = stored.slice(-UNSHOWN_MAX);
    } catch {
      // Storage is forbidden.
    }
    this.keep([]);
  }

  /** Stores these and the entries that are not loaded yet. */
  keep(items: Item[]): void {
    const all = [
      ...this.#waiting,
      ...items.map(({ feed, seq, notification: { id } }): Entry => ({ feed, seq, id })),
    ];
    try {
      if (all.length > 0) this.storage().setItem(KEY, JSON.stringify(all.slice(-UNSHOWN_MAX)));
      else this.storage().removeItem(KEY);
    } catch {
      // Forbidden or full: only the list shows these.
    }
  }

  /** Returns entries that are loaded, once. If `isAll`, drops the others. */
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
