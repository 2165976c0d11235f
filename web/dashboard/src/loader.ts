// Brings history into the model: the first page and everything unhandled when a feed is first heard of or something was missed,
// older pages when a person asks.

import type { Client, HistoryPage } from "../../client/src/index.js";
import type { Model } from "./model.js";
import type { Older } from "./orders.js";

const PAGE = 50;
const UNHANDLED_PAGE = 200;
/** So much of what waits is looked for: an order that is not found here still stands in the history. */
const UNHANDLED_PAGES_MAX = 10;
const OLDER_PAGE = 100;
/** A page may hold few orders: so many are asked for at once, until there are enough. */
const OLDER_PAGES_MAX = 5;
const OLDER_ORDERS_MIN = 20;
const NOTICES_PAGE = 20;

interface Place {
  /** `before` of the next page; `null` at the end, `undefined` before the first. */
  next: number | null | undefined;
  /** Everything unhandled has been seen. */
  complete: boolean;
  loading: boolean;
  /** Something was missed while it was loading. */
  again: boolean;
  failed: boolean;
}

export class Loader {
  #places = new Map<string, Place>();
  #older: "loading" | "failed" | undefined;

  constructor(
    private readonly client: Client,
    private readonly model: Model,
    private readonly changed: () => void,
  ) {}

  /** Something is not here yet that ought to be shown first. */
  get loading(): boolean {
    return this.#places.size === 0 || [...this.#places.values()].some((place) => place.next === undefined && !place.failed);
  }

  /** Whether all that waits has been seen. */
  get complete(): boolean {
    return [...this.#places.values()].every((place) => place.complete);
  }

  get older(): Older {
    if (this.#older) return this.#older;
    const places = [...this.#places.values()];
    if (places.some((place) => place.failed)) return "failed";
    return places.every((place) => place.next === null) ? "end" : "more";
  }

  knows(feed: string): boolean {
    return this.#places.has(feed);
  }

  /** Fetches what a page shows first, anew. */
  async refresh(feed: string, shared: boolean): Promise<void> {
    const place = this.#places.get(feed) ?? { next: shared ? null : undefined, complete: shared, loading: false, again: false, failed: false };
    this.#places.set(feed, place);
    if (place.loading) {
      place.again = true;
      return;
    }
    place.loading = true;
    try {
      const anew = place.next !== undefined;
      const first = await this.client.history(feed, { limit: shared ? NOTICES_PAGE : PAGE });
      if (anew) this.model.forget(feed, first.last);
      this.#take(first);
      if (!shared) {
        place.next = first.next;
        this.changed();
        place.complete = await this.#unhandled(feed, UNHANDLED_PAGES_MAX);
      }
      place.failed = false;
    } catch {
      // Said beside the list; tried again when the connection is back, or when a person asks.
      place.failed = true;
    }
    place.loading = false;
    this.changed();
    if (place.again) {
      place.again = false;
      await this.refresh(feed, shared);
    }
  }

  /** What failed, once more. */
  retry(): void {
    for (const [feed, place] of this.#places) if (place.failed) void this.refresh(feed, this.model.sharedFeeds().includes(feed));
  }

  /** Everything that waits, however much. */
  async findAllUnhandled(): Promise<void> {
    for (const [feed, place] of this.#places) {
      if (!place.complete) place.complete = await this.#unhandled(feed, 1_000);
    }
    this.changed();
  }

  async loadOlder(): Promise<void> {
    if (this.#older === "loading") return;
    if ([...this.#places.values()].some((place) => place.failed)) return this.retry();
    this.#older = "loading";
    this.changed();
    try {
      const before = this.model.orders().length;
      for (let pages = 0; pages < OLDER_PAGES_MAX; pages++) {
        for (const [feed, place] of this.#places) {
          if (typeof place.next !== "number") continue;
          const page = await this.client.history(feed, { before: place.next, limit: OLDER_PAGE });
          this.model.keepMore(OLDER_PAGE);
          this.#take(page);
          place.next = page.next;
        }
        if (this.model.orders().length - before >= OLDER_ORDERS_MIN || this.older === "end") break;
      }
      this.#older = undefined;
    } catch {
      this.#older = "failed";
    }
    this.changed();
  }

  /** The model let go of what is below these numbers. */
  forgotten(gone: Map<string, number>): void {
    for (const [feed, seq] of gone) {
      const place = this.#places.get(feed);
      if (place && !this.model.sharedFeeds().includes(feed)) place.next = Math.max(place.next ?? 0, seq);
    }
  }

  async #unhandled(feed: string, pagesMax: number): Promise<boolean> {
    let before: number | null = null;
    for (let pages = 0; pages < pagesMax; pages++) {
      const page: HistoryPage = await this.client.history(feed, { unhandled: true, limit: UNHANDLED_PAGE, ...(before !== null && { before }) });
      this.#take(page);
      if (page.next === null) return true;
      before = page.next;
    }
    return false;
  }

  #take(page: HistoryPage): void {
    const now = Date.now();
    for (const notification of page.notifications) this.model.add(notification, now);
    this.changed();
  }
}
