// What only the tab with the socket does: hands frames on, has each notification handled by one tab, acknowledges, and
// carries everybody's `read` and `handle`. What it knows dies with it; the next leader learns it from server and tabs.

import { backoff } from "./backoff.js";
import type { ShopbellError } from "./errors.js";
import { matches, type Notification } from "./events.js";
import type { Feeds, Verdict } from "./feeds.js";
import type { Platform } from "./platform.js";
import { fault, type ServerFrame, type State, type Welcome } from "./protocol.js";
import { Requests } from "./requests.js";
import { Connection } from "./socket.js";
import type { Status } from "./status.js";
import { MISSED_MAX, PING_MS, type LeaderMessage, type Presence, type TabMessage } from "./tabs.js";

/** A new leader waits so long for the other tabs to say what they are at, before it has anything handled. */
export const ROLL_CALL_MS = 100;
/** Acks wait so long for others that the same ack can cover … */
export const ACK_DELAY_MS = 20;
/** … but not longer than until this part of the window is used up, because the server waits for them. */
export const ACK_WINDOW_PART = 0.25;
/** Counts are asked for at most so often: a client may send a bounded number of frames a second. */
export const COUNTS_INTERVAL_MS = 1_000;

type Unaddressed<M> = M extends unknown ? Omit<M, "from" | "leader"> : never;
/** What a leader says, before its name is put on it. */
export type Saying = Unaddressed<LeaderMessage>;

export interface LeaderHooks {
  /** To all tabs or to one, this one included. */
  say(saying: Saying): void;
  /** Takes a frame into this tab's own places; the other tabs do the same when they hear of it. */
  apply(frame: ServerFrame): Verdict;
  error(error: ShopbellError): void;
  closed(error: ShopbellError): void;
}

interface Tab extends Presence {
  missed: number;
}

/** A notification that a tab was asked to handle. */
interface InFlight {
  seq: number;
  to: string;
}

export class Leader {
  readonly #platform: Platform;
  readonly #me: string;
  readonly #feeds: Feeds;
  readonly #hooks: LeaderHooks;
  #connection: Connection;
  #requests: Requests;
  #tabs = new Map<string, Tab>();
  #welcome: Welcome | undefined;
  #status: Status = { state: "connecting" };
  /** What came and is not handled, oldest first, for each feed. */
  #queues = new Map<string, Notification[]>();
  #inFlight = new Map<string, InFlight>();
  #acked = new Map<string, number>();
  /** Handled since the last acks. */
  #unacked = 0;
  /** Attempts since the last `welcome`. */
  #attempts = 0;
  #bare = false;
  #asked = new Set<string>();
  /** The version when counts were asked for: an answer from before a change is worth nothing after it. */
  #countsAskedAt = new Map<string, number | undefined>();
  #timers = new Map<"roll" | "ack" | "counts" | "ping", () => void>();
  #stopped = false;

  constructor(
    platform: Platform,
    url: string,
    token: () => Promise<string>,
    me: string,
    feeds: Feeds,
    hooks: LeaderHooks,
  ) {
    this.#platform = platform;
    this.#me = me;
    this.#feeds = feeds;
    this.#hooks = hooks;
    this.#connection = new Connection(platform, url, token, {
      query: () => this.#query(),
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

  /** @param alone no other tab can have anything in its hands. */
  start(token: string | undefined, alone: boolean): void {
    this.#hooks.say({ kind: "lead" });
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
        return this.#lose(message.from);
      case "rung":
        return this.#onRung(message.feed, message.seq);
      case "ask":
        return this.#onAsk(message);
      case "anyone":
        return this.#hooks.say({ kind: "alive" });
      case "here":
    }
  }

  /** A browser does not tell a refused query from a dead network: every third attempt in a row goes without it. */
  #query(): URLSearchParams {
    this.#bare = ++this.#attempts % 3 === 0;
    return this.#bare ? new URLSearchParams() : this.#feeds.query();
  }

  #onWelcome(frame: Welcome): void {
    this.#attempts = 0;
    // What people said meanwhile does not come: each tab learns it from the versions, as one that joins does.
    if (this.#bare)
      frame = { ...frame, feeds: frame.feeds.map((feed) => ({ ...feed, position: feed.cursor })) };
    this.#welcome = frame;
    const renewed = this.#feeds.isRenewed(frame);
    if (renewed) this.#inFlight.clear();
    // What was not handled comes again, or is skipped. What a tab has in its hands stays there.
    this.#queues = new Map(frame.feeds.map(({ feed }) => [feed, []]));
    this.#acked = new Map(frame.feeds.map(({ feed, cursor }) => [feed, cursor]));
    this.#countsAskedAt.clear();
    this.#applied(frame);
    this.#requests.onWelcome(frame, renewed);
  }

  #onFrame(frame: ServerFrame): void {
    switch (frame.type) {
      case "notification":
        this.#onNotification(frame);
        break;
      case "skipped":
        if (this.#numbered(frame)) this.#acksDue(0);
        break;
      case "state":
        this.#onState(frame);
        break;
      case "caught_up":
        this.#applied(frame);
        break;
      case "error":
        this.#requests.onError(frame.code, frame.message, frame.feed);
    }
    this.#askCounts();
  }

  #onNotification(frame: Notification): void {
    if (!this.#numbered(frame)) return;
    if (frame.seq <= this.#feeds.mark(frame.feed)) return this.#acksDue(1);
    this.#queues.get(frame.feed)?.push(frame);
    this.#dispatch(frame.feed);
  }

  /** Hands a numbered frame on, if it is new. A gap is a fault: a number that was never sent is a lost order. */
  #numbered(frame: Extract<ServerFrame, { type: "notification" | "skipped" }>): boolean {
    const verdict = this.#hooks.apply(frame);
    const seq = frame.type === "skipped" ? frame.from : frame.seq;
    if (verdict === "gap")
      throw fault(`${frame.feed}/${seq} after ${this.#feeds.position(frame.feed)}`);
    if (verdict === "unknown") throw fault(`a ${frame.type} of an unknown feed`);
    if (verdict === "next") this.#hooks.say({ kind: "frame", frame });
    return verdict === "next";
  }

  #onState(frame: State): void {
    const counts = frame.version === undefined && frame.seqs?.length === 0;
    const outdated =
      counts && this.#countsAskedAt.get(frame.feed) !== this.#feeds.version(frame.feed);
    if (!outdated) this.#applied(frame);
    this.#requests.onState(frame);
  }

  #applied(frame: ServerFrame): void {
    this.#hooks.apply(frame);
    this.#hooks.say({ kind: "frame", frame });
    if (frame.type !== "state")
      this.#setStatus({ state: this.#feeds.caughtUp() ? "live" : "catching_up" });
  }

  #setStatus(status: Status): void {
    this.#status = status;
    this.#hooks.say({ kind: "status", status });
  }

  // Handling: one notification of a feed at a time, in the tab that is best for it.

  #dispatchAll(): void {
    for (const feed of this.#queues.keys()) this.#dispatch(feed);
  }

  #dispatch(feed: string): void {
    const queue = this.#queues.get(feed) ?? [];
    let done = 0;
    while (queue[done] && (queue[done] as Notification).seq <= this.#feeds.mark(feed)) done++;
    queue.splice(0, done);
    this.#acksDue(done);
    const notification = queue[0];
    if (!notification || this.#inFlight.has(feed) || this.#timers.has("roll") || this.#stopped)
      return;
    const key = this.#feeds.key(notification);
    const atIt = [...this.#tabs].find(([, tab]) => tab.ringing.includes(key))?.[0];
    const to = atIt ?? this.#best(notification);
    this.#inFlight.set(feed, { seq: notification.seq, to });
    if (to !== this.#me) this.#watchTabs();
    if (atIt === undefined) this.#hooks.say({ kind: "ring", to, notification, key });
  }

  /** Of the tabs with a handler for it the one that somebody looks at; among equals the one last turned to. */
  #best({ event }: Notification): string {
    const rank = ([id, tab]: [string, Tab]) => [
      Number(tab.focused),
      Number(tab.visible),
      // A hidden tab other than this one may be frozen.
      tab.visible ? tab.activeAt : Number(id === this.#me),
    ];
    let best: [string, Tab] | undefined;
    for (const one of this.#tabs) {
      if (!one[1].patterns.some((pattern) => matches(pattern, event))) continue;
      if (!best || isGreater(rank(one), rank(best))) best = one;
    }
    return best?.[0] ?? this.#me;
  }

  #onRung(feed: string, seq: number): void {
    const inFlight = this.#inFlight.get(feed);
    if (inFlight && inFlight.seq <= seq) this.#inFlight.delete(feed);
    this.#dispatch(feed);
  }

  #lose(tab: string): void {
    this.#tabs.delete(tab);
    for (const [feed, { to }] of [...this.#inFlight]) {
      if (to !== tab) continue;
      this.#inFlight.delete(feed);
      this.#dispatch(feed);
    }
  }

  /** Asks tabs that were given something for a sign of life: a tab that crashed says no farewell. */
  #watchTabs(): void {
    if (this.#timers.has("ping")) return;
    const busy = new Set(
      [...this.#inFlight.values()].map(({ to }) => to).filter((to) => to !== this.#me),
    );
    for (const to of busy) {
      const tab = this.#tabs.get(to);
      if (!tab || tab.missed >= MISSED_MAX) {
        this.#lose(to);
        busy.delete(to);
        continue;
      }
      tab.missed++;
      this.#hooks.say({ kind: "ping", to });
    }
    if (busy.size > 0) this.#once("ping", PING_MS, () => this.#watchTabs());
  }

  // Acks: cumulative, in bursts, and never beyond what was handled.

  #acksDue(handled: number): void {
    this.#unacked += handled;
    if (this.#unacked >= (this.#welcome?.window ?? 0) * ACK_WINDOW_PART) this.#flushAcks();
    else this.#once("ack", ACK_DELAY_MS, () => this.#flushAcks());
  }

  #flushAcks(): void {
    this.#unacked = 0;
    for (const [feed, queue] of this.#queues) {
      const first = queue.find(({ seq }) => seq > this.#feeds.mark(feed));
      const seq = first ? first.seq - 1 : this.#feeds.position(feed);
      if (seq <= (this.#acked.get(feed) ?? 0)) continue;
      this.#acked.set(feed, seq);
      this.#connection.send({ type: "ack", feed, seq });
    }
  }

  // What people do.

  #onAsk({ from, id, ask }: Extract<TabMessage, { kind: "ask" }>): void {
    if (this.#asked.has(id)) return;
    this.#asked.add(id);
    this.#requests.add(ask, (outcome) => {
      this.#asked.delete(id);
      if (Array.isArray(outcome))
        this.#hooks.say({ kind: "answered", to: from, id, states: outcome });
      else this.#hooks.say({ kind: "refused", to: from, id, ...outcome });
    });
  }

  #askCounts(): void {
    if (this.#timers.has("counts")) return;
    const stale = this.#feeds.stale().filter((feed) => !this.#countsAskedAt.has(feed));
    if (stale.length === 0) return;
    for (const feed of stale) {
      this.#countsAskedAt.set(feed, this.#feeds.version(feed));
      this.#requests.add({ type: "read", feed, seqs: [] }, () => this.#countsAskedAt.delete(feed));
    }
    this.#once("counts", COUNTS_INTERVAL_MS, () => this.#askCounts());
  }

  // Tabs that come.

  #introduce(to: string): void {
    const pending = [...this.#queues.values()].flat();
    const welcome = this.#welcome && { welcome: this.#feeds.snapshot(this.#welcome) };
    if (to !== this.#me)
      this.#hooks.say({ kind: "snapshot", to, ...welcome, pending, status: this.#status });
  }

  /** One timer of a name at a time. */
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
