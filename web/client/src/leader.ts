// The tab with the socket: passes frames to all tabs, chooses the tab that rings each notification,
// sends acks, and sends the marks of all tabs. Its state is lost with it; the next leader gets it
// from the server and the tabs.

import { backoff } from "./backoff.js";
import type { ShopbellError } from "./errors.js";
import { matches, type Notification } from "./events.js";
import type { Feeds, Verdict } from "./feeds.js";
import type { Platform } from "./platform.js";
import { fault, type ServerFrame, type State, type Welcome } from "./protocol.js";
import { Requests } from "./requests.js";
import { Connection } from "./socket.js";
import type { Status } from "./status.js";
import {
  MISSED_MAX,
  PING_MS,
  type LeaderMessage,
  type Presence,
  type TabMessage,
  type Unaddressed,
} from "./tabs.js";

/** A new leader waits this long for the presence of the other tabs before it rings anything. */
export const ROLL_CALL_MS = 100;
/** Delay of an ack, so that one ack covers several notifications. */
export const ACK_DELAY_MS = 20;
/**
 * An ack is sent at once when this part of the window is unacked, because the server waits for it.
 */
export const ACK_WINDOW_PART = 0.25;
/** Shortest interval between requests for counts: the server limits the frames per second. */
export const COUNTS_INTERVAL_MS = 1_000;

export interface LeaderHooks {
  /** Sends to all tabs or to one, including this tab. */
  send(message: Unaddressed<LeaderMessage>): void;
  /** Applies a frame to this tab; the other tabs apply it when they receive it. */
  apply(frame: ServerFrame): Verdict;
  error(error: ShopbellError): void;
  closed(error: ShopbellError): void;
}

interface Tab extends Presence {
  missed: number;
}

/** A notification that a tab rings now. */
interface InFlight {
  seq: number;
  to: string;
}

export class Leader {
  readonly #platform: Platform;
  readonly #tabId: string;
  readonly #feeds: Feeds;
  readonly #hooks: LeaderHooks;
  #connection: Connection;
  #requests: Requests;
  #tabs = new Map<string, Tab>();
  #welcome: Welcome | undefined;
  #status: Status = { state: "connecting" };
  /** For each feed, the notifications that are not completed, oldest first. */
  #queues = new Map<string, Notification[]>();
  #inFlight = new Map<string, InFlight>();
  #acked = new Map<string, number>();
  /** Notifications completed since the last acks. */
  #unacked = 0;
  /** Attempts since the last `welcome`. */
  #attempts = 0;
  /** The last attempt had no query, so the server replays no marks. */
  #withoutQuery = false;
  #markIds = new Set<string>();
  /** The version when counts were requested: a reply from before a mark is outdated after it. */
  #countsRequestedAt = new Map<string, number | undefined>();
  #timers = new Map<"roll" | "ack" | "counts" | "ping", () => void>();
  #stopped = false;

  constructor(
    platform: Platform,
    url: string,
    token: () => Promise<string>,
    tabId: string,
    feeds: Feeds,
    hooks: LeaderHooks,
  ) {
    this.#platform = platform;
    this.#tabId = tabId;
    this.#feeds = feeds;
    this.#hooks = hooks;
    this.#connection = new Connection(platform, url, token, {
      query: () => this.#query(),
      after: () => this.#feeds.query(true),
      connecting: () => this.#setStatus({ state: "connecting" }),
      waiting: (retryAt) => this.#setStatus({ state: "waiting", retryAt }),
      welcome: (frame) => this.#onWelcome(frame),
      frame: (frame) => this.#onFrame(frame),
      error: hooks.error,
      closed: hooks.closed,
    });
    this.#requests = new Requests(
      (frame) => this.#connection.send(frame),
      (attempt, fn) => void platform.after(backoff(attempt, platform.random()), fn),
    );
  }

  /** @param alone no other tab shares the socket. */
  start(token: string | undefined, alone: boolean): void {
    this.#hooks.send({ kind: "lead" });
    if (!alone) this.#once("roll", ROLL_CALL_MS, () => this.#dispatchAll());
    this.#connection.start(token);
  }

  stop(): void {
    this.#flushAcks();
    this.#stopped = true;
    for (const cancel of this.#timers.values()) cancel();
    this.#connection.stop();
  }

  hurry(): void {
    this.#connection.hurry();
  }

  onTab(message: TabMessage): void {
    const known = this.#tabs.get(message.from);
    if (known) known.missed = 0;
    switch (message.kind) {
      case "hello":
        this.#tabs.set(message.from, { ...message.presence, missed: 0 });
        if (message.joining) this.#introduce(message.from);
        return;
      case "bye":
        return this.#removeTab(message.from);
      case "rung":
        return this.#onRung(message.feed, message.seq);
      case "mark":
        return this.#onMark(message);
      case "ping":
        return this.#hooks.send({ kind: "pong" });
      case "pong":
    }
  }

  /**
   * Every third attempt in a row has no query, because a browser does not show whether the server
   * refused the query or the network failed.
   */
  #query(): URLSearchParams {
    this.#withoutQuery = ++this.#attempts % 3 === 0;
    return this.#withoutQuery ? new URLSearchParams() : this.#feeds.query();
  }

  #onWelcome(frame: Welcome): void {
    this.#attempts = 0;
    // With a position, each tab compares the versions and resyncs, like a tab that joins.
    if (this.#withoutQuery)
      frame = { ...frame, feeds: frame.feeds.map((feed) => ({ ...feed, position: feed.cursor })) };
    this.#welcome = frame;
    const renewed = this.#feeds.isRenewed(frame);
    if (renewed) this.#inFlight.clear();
    // The server sends again, or skips, everything without an ack. Tabs complete the notifications
    // that they ring.
    this.#queues = new Map(frame.feeds.map(({ feed }) => [feed, []]));
    this.#acked = new Map(frame.feeds.map(({ feed, cursor }) => [feed, cursor]));
    this.#countsRequestedAt.clear();
    this.#applyAll(frame);
    this.#requests.onWelcome(frame, renewed);
  }

  #onFrame(frame: ServerFrame): void {
    switch (frame.type) {
      case "notification":
        this.#onNotification(frame);
        break;
      case "skipped":
        if (this.#isNext(frame)) this.#ackSoon(0);
        break;
      case "state":
        this.#onState(frame);
        break;
      case "caught_up":
        this.#applyAll(frame);
        break;
      case "error":
        this.#requests.onError(frame.code, frame.message, frame.feed);
    }
    this.#requestCounts();
  }

  #onNotification(frame: Notification): void {
    if (!this.#isNext(frame)) return;
    if (frame.seq <= this.#feeds.completed(frame.feed)) return this.#ackSoon(1);
    this.#queues.get(frame.feed)?.push(frame);
    this.#dispatch(frame.feed);
  }

  /**
   * Passes a numbered frame to all tabs if it is the next one; returns whether it is. A gap is an
   * error, because it may be a lost order.
   */
  #isNext(frame: Extract<ServerFrame, { type: "notification" | "skipped" }>): boolean {
    const verdict = this.#hooks.apply(frame);
    const seq = frame.type === "skipped" ? frame.from : frame.seq;
    if (verdict === "gap")
      throw fault(`${frame.feed}/${seq} after ${this.#feeds.position(frame.feed)}`);
    if (verdict === "unknown") throw fault(`a ${frame.type} of an unknown feed`);
    if (verdict === "next") this.#hooks.send({ kind: "frame", frame });
    return verdict === "next";
  }

  #onState(frame: State): void {
    const counts = frame.version === undefined && frame.seqs?.length === 0;
    const outdated =
      counts && this.#countsRequestedAt.get(frame.feed) !== this.#feeds.version(frame.feed);
    if (!outdated) this.#applyAll(frame);
    this.#requests.onState(frame);
  }

  #applyAll(frame: ServerFrame): void {
    this.#hooks.apply(frame);
    this.#hooks.send({ kind: "frame", frame });
    if (frame.type === "state") return;
    const { transport } = this.#connection;
    this.#setStatus({ state: this.#feeds.caughtUp() ? "live" : "catching_up", transport });
  }

  #setStatus(status: Status): void {
    this.#status = status;
    this.#hooks.send({ kind: "status", status });
  }

  // Ringing: one notification of a feed at a time, in the best tab for it.

  #dispatchAll(): void {
    for (const feed of this.#queues.keys()) this.#dispatch(feed);
  }

  #dispatch(feed: string): void {
    const queue = this.#queues.get(feed) ?? [];
    let done = 0;
    while (queue[done] && (queue[done] as Notification).seq <= this.#feeds.completed(feed)) done++;
    queue.splice(0, done);
    this.#ackSoon(done);
    const notification = queue[0];
    if (!notification || this.#inFlight.has(feed) || this.#timers.has("roll") || this.#stopped)
      return;
    const key = this.#feeds.key(notification);
    const ringing = [...this.#tabs].find(([, tab]) => tab.ringing.includes(key))?.[0];
    const to = ringing ?? this.#best(notification);
    this.#inFlight.set(feed, { seq: notification.seq, to });
    if (to !== this.#tabId) this.#pingTabs();
    if (ringing === undefined) this.#hooks.send({ kind: "ring", to, notification, key });
  }

  /** Of the tabs with a handler: a focused tab, else a visible one, else the last active one. */
  #best({ event }: Notification): string {
    const rank = ([id, tab]: [string, Tab]) => [
      Number(tab.focused),
      Number(tab.visible),
      // Prefers this tab to other hidden tabs, which may be frozen.
      tab.visible ? tab.activeAt : Number(id === this.#tabId),
    ];
    let best: [string, Tab] | undefined;
    for (const one of this.#tabs) {
      if (!one[1].patterns.some((pattern) => matches(pattern, event))) continue;
      if (!best || isGreater(rank(one), rank(best))) best = one;
    }
    return best?.[0] ?? this.#tabId;
  }

  #onRung(feed: string, seq: number): void {
    const inFlight = this.#inFlight.get(feed);
    if (inFlight && inFlight.seq <= seq) this.#inFlight.delete(feed);
    this.#dispatch(feed);
  }

  #removeTab(tab: string): void {
    this.#tabs.delete(tab);
    for (const [feed, { to }] of [...this.#inFlight]) {
      if (to !== tab) continue;
      this.#inFlight.delete(feed);
      this.#dispatch(feed);
    }
  }

  /** Pings the tabs that ring something, because a tab that crashes sends no `bye`. */
  #pingTabs(): void {
    if (this.#timers.has("ping")) return;
    const busy = new Set(
      [...this.#inFlight.values()].map(({ to }) => to).filter((to) => to !== this.#tabId),
    );
    for (const to of busy) {
      const tab = this.#tabs.get(to);
      if (!tab || tab.missed >= MISSED_MAX) {
        this.#removeTab(to);
        busy.delete(to);
        continue;
      }
      tab.missed++;
      this.#hooks.send({ kind: "ping", to });
    }
    if (busy.size > 0) this.#once("ping", PING_MS, () => this.#pingTabs());
  }

  // Acks: cumulative, delayed, and only for completed notifications.

  #ackSoon(completed: number): void {
    this.#unacked += completed;
    if (this.#unacked >= (this.#welcome?.window ?? 0) * ACK_WINDOW_PART) this.#flushAcks();
    else this.#once("ack", ACK_DELAY_MS, () => this.#flushAcks());
  }

  #flushAcks(): void {
    this.#unacked = 0;
    for (const [feed, queue] of this.#queues) {
      const first = queue.find(({ seq }) => seq > this.#feeds.completed(feed));
      const seq = first ? first.seq - 1 : this.#feeds.position(feed);
      if (seq <= (this.#acked.get(feed) ?? 0)) continue;
      this.#acked.set(feed, seq);
      this.#connection.send({ type: "ack", feed, seq });
    }
  }

  // Marks and counts.

  #onMark({ from, id, mark }: Extract<TabMessage, { kind: "mark" }>): void {
    if (this.#markIds.has(id)) return;
    this.#markIds.add(id);
    this.#requests.add(mark, (outcome) => {
      this.#markIds.delete(id);
      this.#hooks.send({ kind: "settled", to: from, id, outcome });
    });
  }

  #requestCounts(): void {
    if (this.#timers.has("counts")) return;
    const stale = this.#feeds.stale().filter((feed) => !this.#countsRequestedAt.has(feed));
    if (stale.length === 0) return;
    for (const feed of stale) {
      this.#countsRequestedAt.set(feed, this.#feeds.version(feed));
      this.#requests.add({ type: "read", feed, seqs: [] }, () =>
        this.#countsRequestedAt.delete(feed),
      );
    }
    this.#once("counts", COUNTS_INTERVAL_MS, () => this.#requestCounts());
  }

  // Tabs that join.

  #introduce(to: string): void {
    const pending = [...this.#queues.values()].flat();
    const welcome = this.#welcome && { welcome: this.#feeds.snapshot(this.#welcome) };
    if (to !== this.#tabId)
      this.#hooks.send({ kind: "snapshot", to, ...welcome, pending, status: this.#status });
  }

  /** Starts a timer, unless one with this name runs. */
  #once(name: "roll" | "ack" | "counts" | "ping", ms: number, fn: () => void): void {
    if (this.#timers.has(name) || this.#stopped) return;
    const cancel = this.#platform.after(ms, () => {
      this.#timers.delete(name);
      fn();
    });
    this.#timers.set(name, cancel);
  }
}

function isGreater(left: number[], right: number[]): boolean {
  const at = left.findIndex((value, index) => value !== right[index]);
  return at >= 0 && (left[at] as number) > (right[at] as number);
}
