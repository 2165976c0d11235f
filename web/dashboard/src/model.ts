// The data of the page: notifications by feed and number, from the socket and from history, in any
// order. Marks are only added, never removed, so duplicate and late input changes nothing. Pure.

import type { Notification, Progress } from "../../client/src/index.js";

/** Bound on orders. The oldest accepted ones are dropped first; history still has them. */
export const ORDERS_MAX = 2_000;
/** Bound on other notifications. */
export const OTHERS_MAX = 300;
/** Bound on failed items of an import. */
export const FAILURES_MAX = 2_000;
/** Bound on imports. */
export const IMPORTS_MAX = 100;
/** Bound on marks of notifications that are not loaded. */
const EARLY_MAX = 10_000;

export interface ItemMarks {
  read_at?: string;
  handled_at?: string;
  handled_by?: string;
}

/** The fields of a `state` frame that the page uses. */
export interface Mark extends ItemMarks {
  feed: string;
  seqs?: readonly number[];
  through?: number;
  /** The newest stored number. */
  last?: number;
}

/** A notification as the page keeps it. */
export interface Item {
  readonly key: string;
  readonly feed: string;
  readonly seq: number;
  readonly kind: Kind;
  readonly notification: Notification;
  /** Milliseconds since 1970: the time of the event, or else of its arrival. */
  readonly at: number;
  marks: ItemMarks;
  /** The model dropped this item: its toast must close. */
  gone?: true;
}

export type Kind = "order" | "import" | "other" | "notice";

export interface Order {
  order_id: string;
  total: string;
  currency: string;
  items: number;
  customer?: unknown;
  placed_at?: string;
}

export interface Import {
  readonly key: string;
  readonly feed: string;
  readonly id: string;
  status: "running" | "finished" | "aborted";
  done: number;
  failed: number;
  total: number | undefined;
  /** Of its newest notification. */
  seq: number;
  at: number;
  /** Started, finished and failed: the notifications that people mark. */
  items: Map<number, Item>;
  /** Grows with each change of `items`. */
  changes: number;
  /** Failures were dropped because of the bound. */
  overflowed: boolean;
}

interface Feed {
  shared: boolean;
  items: Map<number, Item>;
  /** Marks of numbers that are not loaded. */
  early: Map<number, ItemMarks>;
  readThrough: { through: number; read_at: string } | undefined;
  last: number;
  /** Numbers received since a refresh began; `undefined` without a refresh. */
  seen: Set<number> | undefined;
}

export class Model {
  #feeds = new Map<string, Feed>();
  #imports = new Map<string, Import>();
  #lists: { orders: Item[]; others: Item[]; notices: Item[] } | undefined;
  #ordersMax = ORDERS_MAX;

  /** Adds a feed; the notifications of a shared one are notices. */
  addFeed(name: string, shared: boolean): void {
    const feed = this.#feed(name);
    feed.shared = shared;
  }

  feeds(): string[] {
    return [...this.#feeds].filter(([, feed]) => !feed.shared).map(([name]) => name);
  }

  sharedFeeds(): string[] {
    return [...this.#feeds].filter(([, feed]) => feed.shared).map(([name]) => name);
  }

  /** The newest number known in a feed. */
  last(name: string): number {
    return this.#feeds.get(name)?.last ?? 0;
  }

  /** Adds a notification. Returns its item, or `undefined` if only its progress was used. */
  add(notification: Notification, now: number): Item | undefined {
    const { feed: name, seq } = notification;
    const feed = this.#feed(name);
    feed.last = Math.max(feed.last, seq);
    feed.seen?.add(seq);
    const known = feed.items.get(seq);
    const isOther =
      known &&
      (known.notification.id !== notification.id ||
        known.notification.source !== notification.source);
    if (isOther) {
      // After a restore the number belongs to another notification: the old marks are invalid.
      feed.early.clear();
      feed.readThrough = undefined;
      this.#detach(feed, known);
    }
    const kind = kindOf(notification, feed.shared);
    if (kind === "import") this.#onImport(notification, now);
    // Only progress: an import may have hundreds of thousands of items.
    if (kind === "import" && isImported(notification)) return undefined;
    if (known && !isOther) {
      merge(known.marks, notification);
      return known;
    }
    const item: Item = {
      key: `${name}/${seq}`,
      feed: name,
      seq,
      kind,
      notification,
      at: timeOf(notification, now),
      marks: {},
    };
    merge(item.marks, notification);
    merge(item.marks, feed.early.get(seq) ?? {});
    feed.early.delete(seq);
    if (feed.readThrough && seq <= feed.readThrough.through)
      merge(item.marks, { read_at: feed.readThrough.read_at });
    feed.items.set(seq, item);
    if (kind === "import") this.#attach(item);
    this.#lists = undefined;
    return item;
  }

  /** Applies a mark. */
  mark(mark: Mark): void {
    const feed = this.#feed(mark.feed);
    feed.last = Math.max(feed.last, mark.last ?? 0);
    if (mark.through !== undefined && mark.read_at !== undefined) {
      if (mark.through > (feed.readThrough?.through ?? 0))
        feed.readThrough = { through: mark.through, read_at: mark.read_at };
      for (const item of feed.items.values())
        if (item.seq <= mark.through) merge(item.marks, { read_at: mark.read_at });
    }
    for (const seq of mark.seqs ?? []) {
      const item = feed.items.get(seq);
      if (item) merge(item.marks, mark);
      else {
        const early = feed.early.get(seq) ?? {};
        merge(early, mark);
        feed.early.set(seq, early);
      }
    }
    boundEarly(feed);
  }

  /** A refresh of the feed begins. */
  beginRefresh(name: string): void {
    this.#feed(name).seen = new Set();
  }

  /**
   * The refresh is complete as of this number: items that it did not contain are dropped. The
   * others stay the same objects.
   */
  endRefresh(name: string, through: number): void {
    const feed = this.#feed(name);
    for (const [seq, item] of feed.items) {
      if (seq > through || feed.seen?.has(seq)) continue;
      this.#detach(feed, item);
      // An older page that is still loading may lack these marks.
      if (item.marks.read_at ?? item.marks.handled_at) feed.early.set(seq, item.marks);
    }
    boundEarly(feed);
    feed.seen = undefined;
  }

  /** The refresh failed: all items stay. */
  abortRefresh(name: string): void {
    this.#feed(name).seen = undefined;
  }

  /**
   * @param last the newest number of the feed in history
   * @param before the newest number in the model when history was requested
   */
  onHistory(name: string, last: number, before: number): void {
    const feed = this.#feed(name);
    if (last < before) {
      // After a restore, everything from before is invalid.
      feed.early.clear();
      feed.readThrough = undefined;
      feed.last = 0;
      for (const [seq, item] of feed.items) {
        if (feed.seen?.has(seq)) feed.last = Math.max(feed.last, seq);
        else this.#detach(feed, item);
      }
      for (const one of this.#imports.values())
        if (one.feed === name && one.items.size === 0) this.#imports.delete(one.key);
    }
    feed.last = Math.max(feed.last, last);
  }

  /** Newest first. */
  orders(): Item[] {
    return this.#sorted().orders;
  }

  others(): Item[] {
    return this.#sorted().others;
  }

  notices(): Item[] {
    return this.#sorted().notices;
  }

  waiting(): Item[] {
    return this.orders().filter((order) => order.marks.handled_at === undefined);
  }

  item(feed: string, seq: number): Item | undefined {
    return this.#feeds.get(feed)?.items.get(seq);
  }

  import(feed: string, id: string): Import | undefined {
    return this.#imports.get(`${feed}/${id}`);
  }

  /** Running imports, then unhandled ones, then the others; newest first. */
  imports(): Import[] {
    const isOpen = (one: Import) =>
      [...one.items.values()].some(({ marks }) => marks.handled_at === undefined);
    const ranks = new Map(
      [...this.#imports.values()].map((one) => [
        one,
        one.status === "running" ? 2 : isOpen(one) ? 1 : 0,
      ]),
    );
    const rank = (one: Import) => ranks.get(one) ?? 0;
    return [...this.#imports.values()].sort(
      (a, b) => rank(b) - rank(a) || b.seq - a.seq || compare(a.key, b.key),
    );
  }

  /** Raises the bound on orders. */
  keepMore(orders: number): void {
    this.#ordersMax += orders;
  }

  /**
   * Drops items above the bounds. Returns, by feed, the number below which history must be loaded
   * again.
   */
  trim(): Map<string, number> {
    const gone = new Map<string, number>();
    const drop = (items: Item[], max: number, mayGo: (item: Item) => boolean) => {
      for (let at = items.length - 1, over = items.length - max; at >= 0 && over > 0; at--) {
        const item = items[at] as Item;
        if (!mayGo(item)) continue;
        this.#feeds.get(item.feed)?.items.delete(item.seq);
        gone.set(item.feed, Math.max(gone.get(item.feed) ?? 0, item.seq + 1));
        this.#lists = undefined;
        over--;
      }
    };
    const { orders, others, notices } = this.#sorted();
    drop(orders, this.#ordersMax, ({ marks }) => marks.handled_at !== undefined);
    drop(others, OTHERS_MAX, () => true);
    drop(notices, OTHERS_MAX, () => true);
    const imports = this.#imports.size > IMPORTS_MAX ? this.imports().slice(IMPORTS_MAX) : [];
    for (const one of imports) {
      this.#imports.delete(one.key);
      for (const seq of one.items.keys()) this.#feeds.get(one.feed)?.items.delete(seq);
    }
    return gone;
  }

  #feed(name: string): Feed {
    let feed = this.#feeds.get(name);
    if (!feed) {
      feed = {
        shared: false,
        items: new Map(),
        early: new Map(),
        readThrough: undefined,
        last: 0,
        seen: undefined,
      };
      this.#feeds.set(name, feed);
    }
    return feed;
  }

  #onImport(notification: Notification, now: number): void {
    const { feed, seq, event } = notification;
    const data = notification.data as { import_id: string; total?: number; status?: string };
    const key = `${feed}/${data.import_id}`;
    let one = this.#imports.get(key);
    if (!one) {
      one = {
        key,
        feed,
        id: data.import_id,
        status: "running",
        done: 0,
        failed: 0,
        total: undefined,
        seq: 0,
        at: 0,
        items: new Map(),
        changes: 0,
        overflowed: false,
      };
      this.#imports.set(key, one);
    }
    const progress: Partial<Progress> = notification.progress ?? {};
    one.done = Math.max(one.done, progress.done ?? 0);
    one.failed = Math.max(one.failed, progress.failed ?? 0);
    const total = progress.total ?? (event === "import.started" ? data.total : undefined);
    if (total !== undefined) one.total = total;
    if (event === "import.finished")
      one.status = data.status === "aborted" ? "aborted" : "finished";
    if (seq > one.seq) {
      one.seq = seq;
      one.at = timeOf(notification, now);
    }
  }

  #attach(item: Item): void {
    const { import_id } = item.notification.data as { import_id: string };
    const one = this.#imports.get(`${item.feed}/${import_id}`);
    if (!one) return;
    one.items.set(item.seq, item);
    one.changes++;
    if (one.items.size <= FAILURES_MAX) return;
    // Drops the oldest failure; its count stays.
    let oldest: Item | undefined;
    for (const other of one.items.values())
      if (isFailure(other.notification) && other.seq < (oldest?.seq ?? Infinity)) oldest = other;
    if (!oldest) return;
    one.items.delete(oldest.seq);
    one.overflowed = true;
    this.#feeds.get(item.feed)?.items.delete(oldest.seq);
  }

  #detach(feed: Feed, item: Item): void {
    feed.items.delete(item.seq);
    item.gone = true;
    this.#lists = undefined;
    if (item.kind !== "import") return;
    const one = this.import(item.feed, (item.notification.data as { import_id: string }).import_id);
    if (one?.items.get(item.seq) === item && one.items.delete(item.seq)) one.changes++;
  }

  #sorted() {
    if (this.#lists) return this.#lists;
    const lists = { orders: [] as Item[], others: [] as Item[], notices: [] as Item[] };
    for (const feed of this.#feeds.values()) {
      for (const item of feed.items.values()) {
        if (item.kind === "order") lists.orders.push(item);
        else if (item.kind === "other") lists.others.push(item);
        else if (item.kind === "notice") lists.notices.push(item);
      }
    }
    // Numbers order one feed; times order several feeds.
    const single = this.feeds().length === 1;
    const order = (a: Item, b: Item) =>
      (single ? 0 : b.at - a.at) || b.seq - a.seq || compare(a.feed, b.feed);
    lists.orders.sort(order);
    lists.others.sort(order);
    lists.notices.sort((a, b) => b.at - a.at || b.seq - a.seq);
    this.#lists = lists;
    return lists;
  }
}

/** The kind of row for an event. */
export function kindOf({ event, data }: Notification, shared: boolean): Kind {
  const fields = typeof data === "object" && data !== null ? (data as Record<string, unknown>) : {};
  if (
    event === "order.created" &&
    typeof fields["order_id"] === "string" &&
    typeof fields["total"] === "string"
  )
    return "order";
  if (/^import\.(started|item|finished)$/.test(event) && typeof fields["import_id"] === "string")
    return "import";
  return shared ? "notice" : "other";
}

export function isImported({ event, data }: Notification): boolean {
  return event === "import.item" && (data as { status?: string }).status === "imported";
}

export function isFailure({ event, data }: Notification): boolean {
  return event === "import.item" && (data as { status?: string }).status === "failed";
}

/** Failed items of an import, by index. */
export function failures(one: Import): Item[] {
  const index = (item: Item) => (item.notification.data as { index?: number }).index ?? 0;
  return [...one.items.values()]
    .filter((item) => isFailure(item.notification))
    .sort((a, b) => index(a) - index(b) || a.seq - b.seq);
}

/** The text of a notice or of an event of an unknown type. */
export function headline({ event, data }: Notification): string {
  if (typeof data === "string") return data;
  const fields = typeof data === "object" && data !== null ? (data as Record<string, unknown>) : {};
  for (const name of ["message", "title", "text", "summary"]) {
    const text = fields[name];
    if (typeof text === "string" && text !== "") return text;
  }
  return event;
}

function boundEarly({ early }: Feed): void {
  for (const seq of early.keys()) {
    if (early.size <= EARLY_MAX) break;
    early.delete(seq);
  }
}

/** Adds marks; existing ones stay. */
function merge(marks: ItemMarks, more: ItemMarks): void {
  if (marks.read_at === undefined && more.read_at) marks.read_at = more.read_at;
  if (marks.handled_at === undefined && more.handled_at) {
    marks.handled_at = more.handled_at;
    if (more.handled_by) marks.handled_by = more.handled_by;
  }
}

function timeOf({ time, data }: Notification, now: number): number {
  const placed = (data as { placed_at?: unknown } | null)?.placed_at;
  for (const text of [time, placed]) {
    const at = typeof text === "string" ? Date.parse(text) : Number.NaN;
    if (!Number.isNaN(at)) return at;
  }
  return now;
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
