// The page while a client runs: what comes goes into the model, and what changed is drawn in the next frame.

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
import { Untold } from "./untold.js";

/** Relative times are written anew so often. */
const TICK_MS = 15_000;
/** What comes within this is looked at together before it is told of. */
const LIVE_MS = 120;
const REPLAY_MS = 400;
/** News is never held back longer, however much comes. */
const HOLD_MS_MAX = 1_000;
/** The title, also of a hidden page, which draws no frames. */
const TITLE_MS = 300;
/** Where another tab tells people, what is remembered of a replay here is worth nothing. */
const REPLAYED_MAX = 10_000;
const TOLD_MAX = 1_000;

export interface Ending {
  /** The client has ended for good. */
  ended(status: Extract<Status, { state: "closed" }>): void;
  signOut(): void;
}

export class Dashboard {
  readonly #model = new Model();
  readonly #frames = new Frames(() => this.#render());
  readonly #sound = new Sound();
  readonly #untold = new Untold(() => sessionStorage);
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
  /** What the page before left to tell may be replayed, too. */
  readonly #told = new Set<string>();
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
    const read = (items: Item[]) => void this.#say(items, "read");
    const accept = (items: Item[]) => void this.#accept(items);
    this.#loader = new Loader(client, model, () => {
      this.#draw();
      this.toasts.settle();
      const isAll = this.#loader.complete && !this.#loader.loading;
      for (const item of this.#untold.take((feed, seq) => model.item(feed, seq), isAll))
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
      drawOn: () => this.#frames.ask(),
    });
    this.#imports = new Imports(byId("imports"), {
      read,
      dismiss: (one) => void this.#dismiss(one),
    });
    // Nothing rings for these: who opens one has taken it, too.
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
      model.change(change);
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
    addEventListener("pagehide", () => this.#untold.keep(this.#arrivals.map(({ item }) => item)));
    // Back as it was left: it tells them itself.
    addEventListener("pageshow", ({ persisted }) => persisted && this.#untold.keep([]));
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

  /** This tab was chosen to tell people. */
  #onRing(notification: Notification): void {
    const item = this.#model.add(notification, Date.now());
    if (item) this.#arrived({ item, replayed: this.#replayed.delete(item.key) });
  }

  /** Told of with what else comes about now. */
  #arrived(arrival: Arrival): void {
    const { key, notification } = arrival.item;
    const once = `${key}/${notification.id}`;
    if (this.#told.has(once)) return;
    this.#told.add(once);
    for (const old of this.#told) {
      if (this.#told.size <= TOLD_MAX) break;
      this.#told.delete(old);
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
    this.#flush = setTimeout(() => this.#tellNews(), replayed ? REPLAY_MS : LIVE_MS);
  }

  #tellNews(): void {
    this.#flush = undefined;
    // A storm is summed up when it is over.
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
      this.#announcer.say(
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
      looking: this.#isLooking(),
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
        looking: this.#isLooking(),
        oldestAt,
        any,
        accepting: this.#accepting,
      },
      Date.now(),
    );
  }

  /** Something is unhandled, and may be an order that has not been found yet. */
  #isLooking(): boolean {
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
    // Only an installed page has a badge to set; elsewhere it is refused.
    if ("setAppBadge" in navigator) void navigator.setAppBadge(unread).catch(() => {});
  }

  #tick(): void {
    const now = Date.now();
    // A hidden page draws nothing, and must not grow for it.
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

  /** A person took these, which includes having seen them. */
  async #accept(items: Item[]): Promise<void> {
    for (const { key } of items) this.#pending.add(key);
    this.#draw();
    await Promise.all([this.#say(items, "handle"), this.#say(items, "read")]);
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
      this.toasts.say(texts.failedAct);
    }
    this.#accepting = false;
    this.#draw();
  }

  /** A person has seen to an import: to all of it, also to failures that are not kept here. */
  async #dismiss(one: Import): Promise<void> {
    await this.#accept([...one.items.values()]);
    if (!one.overflowed) return;
    try {
      for await (const seqs of this.#loader.unhandledOf(one.feed, one.id)) {
        if (seqs.length > 0)
          await this.#try([
            this.client.handle(one.feed, seqs),
            this.client.read(one.feed, { seqs }),
          ]);
      }
    } catch {
      this.toasts.say(texts.failedAct);
    }
  }

  async #readAll(): Promise<void> {
    const feeds = this.#model.feeds().map((feed) => ({ feed, through: this.#model.last(feed) }));
    // An empty feed has no number that could be read.
    await this.#try(
      feeds
        .filter(({ through }) => through > 0)
        .map(({ feed, through }) => this.client.read(feed, { through })),
    );
  }

  async #say(items: Item[], what: "read" | "handle"): Promise<void> {
    const seqs = new Map<string, number[]>();
    const isKnown = ({ facts }: Item) =>
      (what === "read" ? facts.read_at : facts.handled_at) !== undefined;
    for (const item of items)
      if (!isKnown(item)) seqs.set(item.feed, [...(seqs.get(item.feed) ?? []), item.seq]);
    await this.#try(
      [...seqs].map(([feed, some]) =>
        what === "read" ? this.client.read(feed, { seqs: some }) : this.client.handle(feed, some),
      ),
    );
  }

  /** Waits for answers, which come as state changes; across reconnects, if need be. */
  async #try(asked: Promise<unknown>[]): Promise<void> {
    const outcomes = await Promise.allSettled(asked);
    const refused = outcomes.filter(
      (outcome) => outcome.status === "rejected" && outcome.reason?.code !== "closed",
    );
    if (refused.length > 0) this.toasts.say(texts.failedAct);
  }
}
