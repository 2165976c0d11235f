// Loads history into the model: the first page and everything unhandled for a new feed or a resync,
// and older pages on request.

import type { Client, HistoryPage, Notification } from "../../client/src/index.js";
import type { Model } from "./model.js";
import type { Older } from "./orders.js";

const PAGE = 50;
const UNHANDLED_PAGE = 200;
/** Unhandled pages that are loaded without a pause; later pages are loaded with pauses. */
const UNHANDLED_PAGES_AT_ONCE = 10;
const UNHANDLED_PAUSE_MS = 500;
const OLDER_PAGE = 100;
/** A page may contain few orders, so one request for older ones loads up to this many pages. */
const OLDER_PAGES_MAX = 5;
const OLDER_ORDERS_MIN = 20;
const NOTICES_PAGE = 20;

interface Place {
  /** `before` of the next page; `null` at the end, `undefined` before the first. */
  next: number | null | undefined;
  /** Everything unhandled is loaded. */
  complete: boolean;
  /** The refresh that is running. */
  running: Promise<void> | undefined;
  /** A resync came during the refresh. */
  again: boolean;
  failed: boolean;
}

export class Loader {
  #places = new Map<string, Place>();
  #older: "loading" | "failed" | undefined;
  /** Number of callers that wait for everything unhandled. */
  #hurried = 0;

  constructor(
    private readonly client: Client,
    private readonly model: Model,
    private readonly changed: () => void,
    private readonly pause = (ms: number) =>
      new Promise<void>((resolve) => setTimeout(resolve, ms)),
  ) {}

  /** Whether a first page is missing. */
  get loading(): boolean {
    return (
      this.#places.size === 0 ||
      [...this.#places.values()].some((place) => place.next === undefined && !place.failed)
    );
  }

  /** Whether everything unhandled is loaded. */
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

  /** Loads the first page and everything unhandled again. Known items stay until then. */
  refresh(feed: string, shared: boolean): Promise<void> {
    const place = this.#places.get(feed) ?? {
      next: shared ? null : undefined,
      complete: shared,
      running: undefined,
      again: false,
      failed: false,
    };
    this.#places.set(feed, place);
    if (place.running) place.again = true;
    else place.running = this.#run(feed, shared, place);
    return place.running;
  }

  async #run(feed: string, shared: boolean, place: Place): Promise<void> {
    do {
      place.again = false;
      place.complete = shared;
      this.model.beginRefresh(feed);
      try {
        await this.#fetch(feed, shared, place);
        place.failed = false;
      } catch {
        // The list shows the failure; `retry` is called later and on request.
        place.failed = true;
        this.model.abortRefresh(feed);
      }
    } while (place.again);
    place.running = undefined;
    this.changed();
  }

  async #fetch(feed: string, shared: boolean, place: Place): Promise<void> {
    const before = this.model.last(feed);
    const first = await this.client.history(feed, { limit: shared ? NOTICES_PAGE : PAGE });
    this.model.onHistory(feed, first.last, before);
    this.#take(first);
    if (!shared) {
      place.next = first.next;
      this.changed();
      if (!(await this.#unhandled(feed, place))) return;
    }
    this.model.endRefresh(feed, first.last);
    place.complete = true;
  }

  /** Repeats failed refreshes. */
  retry(): void {
    for (const [feed, place] of this.#places)
      if (place.failed && !place.running)
        void this.refresh(feed, this.model.sharedFeeds().includes(feed));
  }

  /** Resolves when everything unhandled is loaded. */
  async findAllUnhandled(): Promise<void> {
    this.#hurried++;
    try {
      for (const [feed, place] of this.#places) {
        if (place.complete) continue;
        await (place.running ?? this.refresh(feed, false));
        if (!place.complete)
          throw new Error(`the unhandled notifications of ${feed} could not be loaded`);
      }
    } finally {
      this.#hurried--;
    }
  }

  /** Yields the numbers of all unhandled notifications of an import, page by page. */
  async *unhandledOf(feed: string, id: string): AsyncGenerator<number[]> {
    for (let before: number | null | undefined; before !== null;) {
      const page: HistoryPage = await this.client.history(feed, {
        unhandled: true,
        limit: UNHANDLED_PAGE,
        ...(before !== undefined && { before }),
      });
      const isOfIt = ({ event, data }: Notification) =>
        event.startsWith("import.") && (data as { import_id?: unknown } | null)?.import_id === id;
      yield page.notifications.filter(isOfIt).map(({ seq }) => seq);
      before = page.next;
    }
  }

  async loadOlder(): Promise<void> {
    if (this.#older === "loading") return;
    if ([...this.#places.values()].some((place) => place.failed)) return this.retry();
    this.#older = "loading";
    this.changed();
    try {
      const had = this.model.orders().length;
      for (let pages = 0; pages < OLDER_PAGES_MAX; pages++) {
        for (const [feed, place] of this.#places) {
          if (typeof place.next !== "number") continue;
          const before = place.next;
          const page = await this.client.history(feed, { before, limit: OLDER_PAGE });
          this.model.keepMore(OLDER_PAGE);
          this.#take(page);
          // A refresh in the meantime starts at the newest number again.
          if (place.next === before) place.next = page.next;
        }
        if (this.model.orders().length - had >= OLDER_ORDERS_MIN || this.older === "end") break;
      }
      this.#older = undefined;
    } catch {
      this.#older = "failed";
    }
    this.changed();
  }

  /** The model dropped items below these numbers. */
  forgotten(gone: Map<string, number>): void {
    for (const [feed, seq] of gone) {
      const place = this.#places.get(feed);
      if (place && !this.model.sharedFeeds().includes(feed))
        place.next = Math.max(place.next ?? 0, seq);
    }
  }

  /** Returns whether it reached the end; a resync in the meantime starts again. */
  async #unhandled(feed: string, place: Place): Promise<boolean> {
    let before: number | null = null;
    for (let pages = 1; !place.again; pages++) {
      const page: HistoryPage = await this.client.history(feed, {
        unhandled: true,
        limit: UNHANDLED_PAGE,
        ...(before !== null && { before }),
      });
      this.#take(page);
      if (page.next === null) return true;
      before = page.next;
      if (pages >= UNHANDLED_PAGES_AT_ONCE && this.#hurried === 0)
        await this.pause(UNHANDLED_PAUSE_MS);
    }
    return false;
  }

  #take(page: HistoryPage): void {
    const now = Date.now();
    for (const notification of page.notifications) this.model.add(notification, now);
    this.changed();
  }
}
