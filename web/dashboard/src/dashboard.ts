// The page of a running client: notifications and marks go into the model, and the page is drawn in
// the next frame.

import type { Client, Notification, Status } from "../../client/src/index.js";
import { Announcer } from "./announcer.js";
import { byId, Frames } from "./dom.js";
import { count } from "./format.js";
import { connectionState, ConnectionNews, Header } from "./header.js";
import { Imports } from "./imports.js";
import { Loader } from "./loader.js";
import { Model, type Import, type Item } from "./model.js";
import { Orders } from "./orders.js";
import { Notices, Others } from "./others.js";
import { Sound } from "./sound.js";
import { texts } from "./texts.js";
import { plan, type Arrival } from "./toast-plan.js";
import { Toasts } from "./toasts.js";
import { Unshown } from "./unshown.js";

/** Interval of the update of relative times. */
const TICK_MS = 15_000;
/** Notifications within this time share toasts. */
const LIVE_MS = 120;
const REPLAY_MS = 400;
/** Upper bound of the delay of a toast. */
const HOLD_MS_MAX = 1_000;
/** Delay of the title, which is also updated while the page is hidden and draws no frames. */
const TITLE_MS = 300;
/** Bound on replayed notifications that wait for a toast; another tab may show theirs. */
const REPLAYED_MAX = 10_000;
const SHOWN_MAX = 1_000;

export interface Ending {
  /** The client does not reconnect. */
  ended(status: Extract<Status, { state: "closed" }>): void;
  signOut(): void;
}

export class Dashboard {
  readonly #model = new Model();
  readonly #frames = new Frames(() => this.#render());
  readonly #sound = new Sound();
  readonly #unshown = new Unshown(() => sessionStorage);
  readonly #pending = new Set<string>();
  readonly #replayed = new Set<string>();
  readonly #loader: Loader;
  readonly #header: Header;
  readonly #orders: Orders;
  readonly #imports: Imports;
  readonly #others: Others;
  readonly #notices: Notices;
  readonly #announcer = new Announcer(byId("app"));
  readonly #connectionNews = new ConnectionNews();
  readonly toasts: Toasts;
  /** Notifications with a toast; those of `Unshown` may be replayed too. */
  readonly #shown = new Set<string>();
  #arrivals: Arrival[] = [];
  #firstArrivalAt = 0;
  #flush: ReturnType<typeof setTimeout> | undefined;
  #title: ReturnType<typeof setTimeout> | undefined;
  #accepting = false;
  #merchant = "";

  constructor(
    private readonly client: Client,
    private readonly ending: Ending,
  ) {
    const model = this.#model;
    const read = (items: Item[]) => void this.#mark(items, "read");
    const accept = (items: Item[]) => void this.#accept(items);
    this.#loader = new Loader(client, model, () => {
      this.#draw();
      this.toasts.settle();
      const isAll = this.#loader.complete && !this.#loader.loading;
      for (const item of this.#unshown.take((feed, seq) => model.item(feed, seq), isAll))
        this.#arrived({ item, replayed: true });
    });
    this.#header = new Header(byId("header"), this.#sound.on, {
      showWaiting: () => this.#showWaiting(),
      acceptAll: () => void this.#acceptAll(),
      setSound: (on) => this.#sound.set(on),
      signOut: ending.signOut,
    });
    this.#orders = new Orders(byId("orders"), {
      accept,
      read,
      readAll: () => void this.#readAll(),
      loadOlder: () => void this.#loader.loadOlder(),
      isPending: (key) => this.#pending.has(key),
      drawMore: () => this.#frames.ask(),
    });
    this.#imports = new Imports(byId("imports"), {
      read,
      dismiss: (one) => void this.#dismiss(one),
    });
    // The bell does not ring for these, so opening one also handles it.
    this.#others = new Others(byId("others"), accept);
    this.#notices = new Notices(byId("notices"));
    this.toasts = new Toasts(
      byId("toasts"),
      this.#announcer,
      accept,
      (feed, id) => model.import(feed, id)?.failed ?? 0,
    );

    client.on("*", (notification) => this.#onNotification(notification));
    client.ring("*", (notification) => this.#onRing(notification));
    client.watch("state", (change) => {
      model.mark(change);
      this.#draw();
      this.toasts.settle();
    });
    client.watch("counts", () => this.#onCounts());
    client.watch(
      "resync",
      ({ feed }) => void this.#loader.refresh(feed, model.sharedFeeds().includes(feed)),
    );
    client.watch("caught_up", () => this.#loader.retry());
    client.watch("status", (status) => this.#onStatus(status));
    client.watch("error", ({ error }) =>
      console.warn(`shopbell: ${error.code}: ${error.message}`, error.cause ?? ""),
    );
    for (const event of ["online", "offline"])
      addEventListener(event, () => this.#drawConnection());
    addEventListener("pagehide", () => this.#unshown.keep(this.#arrivals.map(({ item }) => item)));
    // The page is back from the cache, and shows them itself.
    addEventListener("pageshow", ({ persisted }) => persisted && this.#unshown.keep([]));
    document.addEventListener("visibilitychange", () => this.#draw());

    setInterval(() => this.#tick(), TICK_MS);
    setInterval(() => {
      if (client.status.state === "waiting") this.#drawConnection();
      if (model.waiting().length > 0) void this.#sound.chime(Date.now(), true);
    }, 1_000);
    this.#onStatus(client.status);
    this.#draw();
  }

  showMerchant(name: string): void {
    this.#merchant = name;
    this.#header.showMerchant(name);
    this.#drawTitle();
  }

  #onNotification(notification: Notification): void {
    const item = this.#model.add(notification, Date.now());
    if (item && this.client.status.state !== "live") {
      if (this.#replayed.size >= REPLAYED_MAX) this.#replayed.clear();
      this.#replayed.add(item.key);
    }
    this.#draw();
  }

  /** The client chose this tab to show a toast. */
  #onRing(notification: Notification): void {
    const item = this.#model.add(notification, Date.now());
    if (item) this.#arrived({ item, replayed: this.#replayed.delete(item.key) });
  }

  /** Queues a toast, together with other notifications of this moment. */
  #arrived(arrival: Arrival): void {
    const { key, notification } = arrival.item;
    const once = `${key}/${notification.id}`;
    if (this.#shown.has(once)) return;
    this.#shown.add(once);
    for (const old of this.#shown) {
      if (this.#shown.size <= SHOWN_MAX) break;
      this.#shown.delete(old);
    }
    if (this.#arrivals.length === 0) this.#firstArrivalAt = performance.now();
    this.#arrivals.push(arrival);
    this.#flushSoon();
  }

  #flushSoon(): void {
    const replayed = this.#arrivals.some((arrival) => arrival.replayed);
    const held = performance.now() - this.#firstArrivalAt;
    if (this.#flush !== undefined && held > HOLD_MS_MAX) return;
    clearTimeout(this.#flush);
    this.#flush = setTimeout(() => this.#showNews(), replayed ? REPLAY_MS : LIVE_MS);
  }

  #showNews(): void {
    this.#flush = undefined;
    // A replay is summed up when it is complete.
    if (
      this.client.status.state === "catching_up" &&
      this.#arrivals.some(({ replayed }) => replayed)
    )
      return this.#flushSoon();
    const toasts = plan(this.#arrivals);
    this.#arrivals = [];
    if (
      toasts.some((toast) => toast.kind === "order" || (toast.kind === "away" && toast.orders > 0))
    )
      void this.#sound.chime(Date.now());
    this.toasts.show(toasts);
  }

  #onCounts(): void {
    for (const [feed, { shared }] of Object.entries(this.client.counts.feeds)) {
      if (this.#loader.knows(feed)) continue;
      this.#model.addFeed(feed, shared);
      void this.#loader.refresh(feed, shared);
    }
    this.#draw();
  }

  #onStatus(status: Status): void {
    this.#drawConnection();
    if (status.state === "closed" && status.error) this.ending.ended(status);
  }

  #drawConnection(): void {
    const { status } = this.client;
    const state = connectionState(status, navigator.onLine);
    this.#header.showConnection(state, status, Date.now());
    const news = this.#connectionNews.next(state);
    if (news)
      this.#announcer.announce(
        "status",
        news === "lost" ? texts.connectionLost : texts.connectionRegained,
        "connection",
      );
  }

  #draw(): void {
    this.#frames.ask();
    this.#title ??= setTimeout(() => {
      this.#title = undefined;
      this.#drawTitle();
    }, TITLE_MS);
  }

  #render(): void {
    const model = this.#model;
    this.#trim();
    const orders = model.orders();
    this.#drawBell();
    this.#orders.render({
      orders,
      unread: this.client.counts.total.unread,
      older: this.#loader.older,
      loading: this.#loader.loading,
      searching: this.#isSearching(),
    });
    this.#imports.render(model.imports());
    this.#others.render(model.others());
    this.#notices.render(model.notices());
  }

  #drawBell(): void {
    const waiting = this.#model.waiting();
    const oldestAt = waiting.at(-1)?.at;
    const any = this.#model.orders().length > 0;
    const isAtLeast = !this.#loader.complete;
    this.#header.showBell(
      {
        waiting: waiting.length,
        isAtLeast,
        searching: this.#isSearching(),
        oldestAt,
        any,
        accepting: this.#accepting,
      },
      Date.now(),
    );
  }

  /** Something is unhandled and may be an order that is not loaded yet. */
  #isSearching(): boolean {
    return !this.#loader.complete && this.client.counts.total.unhandled > 0;
  }

  #trim(): void {
    this.#loader.forgotten(this.#model.trim());
  }

  #drawTitle(): void {
    const { unread } = this.client.counts.total;
    const rings = this.#model.waiting().length > 0;
    const title = `${unread > 0 ? `(${count(unread)}) ` : ""}${rings ? "🔔 " : ""}${texts.product}${this.#merchant ? ` · ${this.#merchant}` : ""}`;
    if (document.title !== title) document.title = title;
    // Only an installed page has a badge; for others the call fails.
    if ("setAppBadge" in navigator) void navigator.setAppBadge(unread).catch(() => {});
  }

  #tick(): void {
    const now = Date.now();
    // A hidden page draws no frames, but must stay within its bounds.
    this.#trim();
    if (this.client.status.state === "live") this.#loader.retry();
    this.#drawBell();
    this.#orders.tick(now);
    this.#imports.tick(now);
    this.#others.tick(now);
  }

  #showWaiting(): void {
    this.#orders.show(this.#model.waiting().length > 0 ? "waiting" : "all");
    const section = byId("orders");
    section.scrollIntoView({ block: "start" });
    section.focus({ preventScroll: true });
  }

  /** Marks as handled and read. */
  async #accept(items: Item[]): Promise<void> {
    for (const { key } of items) this.#pending.add(key);
    this.#draw();
    await Promise.all([this.#mark(items, "handle"), this.#mark(items, "read")]);
    for (const { key } of items) this.#pending.delete(key);
    this.#draw();
  }

  async #acceptAll(): Promise<void> {
    if (this.#accepting) return;
    this.#accepting = true;
    this.#draw();
    try {
      await this.#loader.findAllUnhandled();
      await this.#accept(this.#model.waiting());
    } catch {
      this.toasts.showText(texts.failedAct);
    }
    this.#accepting = false;
    this.#draw();
  }

  /** Marks a whole import as handled and read, also failures that the page does not keep. */
  async #dismiss(one: Import): Promise<void> {
    await this.#accept([...one.items.values()]);
    if (!one.overflowed) return;
    try {
      for await (const seqs of this.#loader.unhandledOf(one.feed, one.id)) {
        if (seqs.length > 0)
          await this.#settle([
            this.client.handle(one.feed, seqs),
            this.client.read(one.feed, { seqs }),
          ]);
      }
    } catch {
      this.toasts.showText(texts.failedAct);
    }
  }

  async #readAll(): Promise<void> {
    const feeds = this.#model.feeds().map((feed) => ({ feed, through: this.#model.last(feed) }));
    // An empty feed has no number to mark.
    await this.#settle(
      feeds
        .filter(({ through }) => through > 0)
        .map(({ feed, through }) => this.client.read(feed, { through })),
    );
  }

  async #mark(items: Item[], type: "read" | "handle"): Promise<void> {
    const seqs = new Map<string, number[]>();
    const isKnown = ({ marks }: Item) =>
      (type === "read" ? marks.read_at : marks.handled_at) !== undefined;
    for (const item of items)
      if (!isKnown(item)) seqs.set(item.feed, [...(seqs.get(item.feed) ?? []), item.seq]);
    await this.#settle(
      [...seqs].map(([feed, some]) =>
        type === "read" ? this.client.read(feed, { seqs: some }) : this.client.handle(feed, some),
      ),
    );
  }

  /** Waits until the server confirms the marks, across reconnects. */
  async #settle(marks: Promise<unknown>[]): Promise<void> {
    const outcomes = await Promise.allSettled(marks);
    const refused = outcomes.filter(
      (outcome) => outcome.status === "rejected" && outcome.reason?.code !== "closed",
    );
    if (refused.length > 0) this.toasts.showText(texts.failedAct);
  }
}
