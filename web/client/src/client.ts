// The client of one tab: handlers, watchers, status, counts and marks. Every tab applies the same
// frames. The leading tab also has a `Leader`, and talks to it like the other tabs do.

import { addresses } from "./addresses.js";
import { backoff } from "./backoff.js";
import { CompletedSeqs } from "./completed.js";
import { ShopbellError } from "./errors.js";
import type { Events, Notification } from "./events.js";
import { Feeds, type Counts, type Verdict } from "./feeds.js";
import type { Handler } from "./handlers.js";
import type { HistoryPage, HistoryQuery } from "./history.js";
import { Leader } from "./leader.js";
import { PendingMarks, marksOf } from "./marks.js";
import type { PageChange, Platform, Store } from "./platform.js";
import type { ServerFrame, State, Welcome } from "./protocol.js";
import { EPOCH_CHANGED, type Mark } from "./requests.js";
import { Runner } from "./runner.js";
import { fetchToken, type TokenSource } from "./socket.js";
import type { Snapshot, Status } from "./status.js";
import {
  PING_MS,
  Tabs,
  type LeaderMessage,
  type TabMessage,
  type TabsMessage,
  type Unaddressed,
} from "./tabs.js";
import { identity } from "./token.js";
import { Watchers, type Watched } from "./watchers.js";

export interface ConnectOptions {
  /** The service: `wss://…`, `https://…` or relative to the page, with or without `/v1/ws`. */
  url: string;
  /** Returns a JWT. Called for each attempt and before expiry; repeated if it fails. */
  token: TokenSource;
  /** Gives this device of the subscriber a cursor of its own. */
  device?: string;
  /** `false`: this tab has a socket of its own. */
  share?: boolean;
  /** Tabs share a socket only if this is equal too. */
  shareKey?: string;
  /** Stores the completed numbers; default: `localStorage`. */
  store?: Store;
}

/** Messages that only count if they come from the leader that this tab follows. */
const FROM_LEADER_ONLY = new Set(["frame", "status", "snapshot"]);

const CLOSED = "this client is closed";

export class Client {
  readonly #options: ConnectOptions;
  readonly #platform: Platform;
  readonly #tabId: string;
  readonly #addresses: { ws: string; http: string };
  readonly #feeds: Feeds;
  readonly #runner: Runner;
  readonly #marks: PendingMarks;
  readonly #watchers = new Watchers();
  readonly #stopListening: () => void;
  #snapshot: Snapshot = {
    status: { state: "connecting" },
    counts: { total: { unread: 0, unhandled: 0 }, feeds: {} },
  };
  #welcome: Welcome | undefined;
  #tabs: Tabs | undefined;
  #leader: Leader | undefined;
  /** Id of the tab that this tab accepts as the leader. */
  #followed: string | undefined;
  /** Two tabs have sent messages as the leader. */
  #doubting = false;
  #suspended = false;
  #activeAt: number;
  /** Identity of the tokens. One client never mixes data of two subscribers. */
  #identity: string | undefined;
  /** The token that was fetched for the identity; used for the first attempt. */
  #firstToken: string | undefined;

  /** @internal Apps call `connect`. */
  constructor(options: ConnectOptions, platform: Platform) {
    this.#options = options;
    this.#platform = platform;
    const random = () => platform.random().toString(36).slice(2);
    this.#tabId = random() + random();
    this.#addresses = addresses(options.url, platform.base, options.device);
    const completed = new CompletedSeqs(options.store ?? platform.store, this.#addresses.ws);
    this.#feeds = new Feeds((owner, feed) => completed.read(owner, feed));
    this.#runner = new Runner(this.#feeds, completed, {
      failed: (error, notification) => this.#watchers.fail(error, notification),
      wait: (ms) => this.#wait(ms),
      random: () => platform.random(),
      resync: (feed) => this.#watchers.emit("resync", { feed }),
      rung: (content) => this.#isClosed() || this.#send({ kind: "rung", ...content }),
    });
    this.#marks = new PendingMarks(this.#tabId, (id, mark) => {
      const at = { feed: mark.feed, seq: 0 as const };
      this.#send({ kind: "mark", id, mark, ...at, key: this.#feeds.key(at) });
    });
    this.#activeAt = platform.now();
    this.#stopListening = platform.listen((change) => this.#onPage(change));
    void this.#start();
  }

  /** Status of the connection. */
  get status(): Status {
    return this.#snapshot.status;
  }

  /** Number of unread and unhandled notifications; exact as of the newest frame. */
  get counts(): Counts {
    return this.#snapshot.counts;
  }

  /** Status and counts; the same object until one of them changes. */
  get snapshot(): Snapshot {
    return this.#snapshot;
  }

  /**
   * Runs `handler` **in every tab**, in the feed's order, to keep the page up to date. Register
   * handlers right after `connect`: earlier notifications are not passed to later handlers.
   *
   * @param pattern an event type, `prefix.*`, or `*`.
   * @returns a function that removes the handler.
   */
  on<Type extends keyof Events>(pattern: Type, handler: Handler<Notification<Type>>): () => void;
  on(pattern: string, handler: Handler): () => void;
  on(pattern: string, handler: Handler<never>): () => void {
    return this.#runner.everyTab.add(pattern, handler as Handler);
  }

  /**
   * Runs `handler` **in exactly one tab**, preferably the focused one, for toasts and sounds. The
   * client acks the notification when the handlers of this tab, including those of {@link on}, have
   * resolved.
   *
   * @param pattern an event type, `prefix.*`, or `*`.
   * @returns a function that removes the handler.
   */
  ring<Type extends keyof Events>(pattern: Type, handler: Handler<Notification<Type>>): () => void;
  ring(pattern: string, handler: Handler): () => void;
  ring(pattern: string, handler: Handler<never>): () => void {
    const remove = this.#runner.oneTab.add(pattern, handler as Handler);
    this.#sendPresence();
    return () => {
      remove();
      this.#sendPresence();
    };
  }

  /**
   * Calls `watcher` when the value changes or the event happens: see {@link Watched}.
   *
   * @returns a function that removes the watcher.
   */
  watch<Name extends keyof Watched>(
    name: Name,
    watcher: (value: Watched[Name]) => void,
  ): () => void {
    return this.#watchers.add(name, watcher);
  }

  /**
   * Marks notifications as read. The client repeats the request after a reconnect until the server
   * confirms it.
   *
   * @returns the frames that confirm the mark: more than one if somebody else was first for some.
   * @throws {@link ShopbellError} `unknown_seq`, `read_only`, `unknown_feed`, `closed`.
   */
  read(feed: string, range: { seqs: readonly number[] } | { through: number }): Promise<State[]> {
    if ("through" in range) return this.#mark([{ type: "read", feed, through: range.through }]);
    return this.#mark(marksOf("read", feed, range.seqs));
  }

  /**
   * Marks notifications as handled, which stops the bell on every device; otherwise like {@link
   * read}. The first subscriber to handle a notification wins.
   */
  handle(feed: string, seqs: readonly number[]): Promise<State[]> {
    return this.#mark(marksOf("handle", feed, seqs));
  }

  /**
   * Fetches a page of stored notifications, newest first.
   *
   * @throws {@link ShopbellError} `http_failed` with `status` and `problem`; `token_failed`.
   */
  async history(feed: string, query: HistoryQuery = {}): Promise<HistoryPage> {
    const { http } = this.#addresses;
    const { fetchHistory } = await import("./history.js");
    return fetchHistory(this.#platform, http, () => this.#token(), feed, query, ShopbellError);
  }

  /**
   * Closes the client; another tab takes over. The next client receives unacked notifications
   * again.
   */
  close(): void {
    this.#finish();
  }

  async #start(): Promise<void> {
    const { share = true, shareKey = "" } = this.#options;
    let name: string | undefined;
    if (share && this.#platform.channel && this.#platform.locks) {
      this.#firstToken = await this.#identify();
      // Tabs share nothing if the token names no subject.
      if (this.#identity !== undefined) {
        name = `shopbell:${JSON.stringify([this.#addresses.ws, shareKey, this.#identity])}`;
      }
    }
    if (this.#isClosed()) return;
    this.#tabs = new Tabs(this.#platform, this.#tabId, name, {
      receive: (message) => this.#receive(message),
      lead: () => this.#lead(name === undefined),
      follow: () => {
        this.#stopLeading();
        // This tab ignored the new leader's frames until now, so it asks for a snapshot.
        this.#sendPresence(true);
      },
    });
    if (!this.#suspended) this.#join();
  }

  /** Fetches a first token; retries until it succeeds. */
  async #identify(): Promise<string | undefined> {
    for (let attempt = 0; !this.#isClosed(); attempt++) {
      try {
        return await this.#token();
      } catch (error) {
        if (this.#isClosed()) break;
        this.#watchers.fail(error as ShopbellError);
        const ms = backoff(attempt, this.#platform.random());
        this.#update("status", { state: "waiting", retryAt: this.#platform.now() + ms });
        await this.#wait(ms);
        this.#update("status", { state: "connecting" });
      }
    }
    return undefined;
  }

  async #token(): Promise<string> {
    const token = await fetchToken(this.#platform, this.#options.token);
    const of = identity(token);
    if (of !== (this.#identity ??= of)) {
      throw of === undefined
        ? new ShopbellError("token_failed", "the token names no subject")
        : new ShopbellError("subscriber_changed", "the token names another subject or feeds");
    }
    return token;
  }

  #join(): void {
    this.#tabs?.join();
    if (!this.#leader) this.#sendPresence(true);
  }

  #lead(alone: boolean): void {
    this.#followed = this.#tabId;
    const { ws } = this.#addresses;
    this.#leader = new Leader(this.#platform, ws, () => this.#token(), this.#tabId, this.#feeds, {
      send: (message) => this.#sendAsLeader(message),
      apply: (frame) => this.#apply(frame, true),
      error: (error) => this.#watchers.fail(error),
      closed: (error) => this.#finish(error),
    });
    const token = this.#firstToken;
    this.#firstToken = undefined;
    this.#leader.start(token, alone);
  }

  #stopLeading(): void {
    this.#leader?.stop();
    this.#leader = undefined;
    this.#followed = undefined;
  }

  /**
   * Returns whether a message of a leader counts. A leader that was frozen while its lock was
   * stolen may send old frames when it thaws. So only one leader counts: the last one that sent
   * `lead`, or else the first one that sent anything.
   */
  #isFollowed({ from, kind }: LeaderMessage): boolean {
    if (kind === "lead" && !this.#leader) this.#followed = from;
    if (from === (this.#followed ??= from) || !FROM_LEADER_ONLY.has(kind)) return true;
    if (!this.#doubting) {
      this.#doubting = true;
      // After this time the deposed leader has received the loss of its lock.
      this.#platform.after(PING_MS, () => {
        this.#doubting = false;
        if (this.#leader) return;
        this.#followed = undefined;
        this.#sendPresence(true);
      });
    }
    return false;
  }

  #onPage(change: PageChange): void {
    if (change === "suspend") {
      if (this.#suspended) return;
      this.#suspended = true;
      // The token may have expired when the page comes back.
      this.#firstToken = undefined;
      this.#stopLeading();
      this.#tabs?.leave();
    } else if (change === "resume" && this.#suspended) {
      this.#suspended = false;
      this.#join();
    } else if (change === "attention") {
      if (this.#platform.attention().visible) this.#activeAt = this.#platform.now();
      this.#sendPresence();
      this.#tabs?.attention();
    } else {
      this.#leader?.hurry();
    }
  }

  #sendPresence(joining = false): void {
    const presence = {
      ...this.#platform.attention(),
      activeAt: this.#activeAt,
      patterns: this.#runner.oneTab.patterns(),
      ringing: this.#runner.ringing(),
    };
    this.#send({ kind: "hello", presence, joining });
  }

  /** Sends to the leader, in this tab or another. */
  #send(content: Unaddressed<TabMessage>): void {
    const message = { ...content, from: this.#tabId } as TabMessage;
    this.#tabs?.post(message);
    this.#receive(message);
  }

  #sendAsLeader(content: Unaddressed<LeaderMessage>): void {
    const message = { ...content, from: this.#tabId, leader: true } as LeaderMessage;
    const to = "to" in message ? message.to : undefined;
    if (to !== this.#tabId) this.#tabs?.post(message);
    if (to === undefined || to === this.#tabId) this.#receive(message);
  }

  #receive(message: TabsMessage): void {
    // A key of another epoch: the sender or this tab slept while the epoch changed.
    if (
      "key" in message &&
      message.key !== this.#feeds.key("seq" in message ? message : message.notification)
    ) {
      return;
    }
    if (!message.leader) {
      if (message.kind === "rung") this.#feeds.onCompleted(message.feed, message.seq);
      return this.#leader?.onTab(message);
    }
    if (!this.#isFollowed(message)) return;
    switch (message.kind) {
      case "lead":
        this.#sendPresence();
        return this.#marks.sendAll();
      case "frame":
        // The leader's own tab has applied the frame already.
        if (!this.#leader) this.#apply(message.frame, false);
        return;
      case "status":
        return this.#update("status", message.status);
      case "snapshot":
        if (message.welcome) this.#apply(message.welcome, false);
        for (const notification of message.pending) this.#runner.run(notification);
        return this.#update("status", message.status);
      case "ring":
        return void this.#runner.ring(message.notification, this.#welcome);
      case "settled":
        return this.#marks.settle(message.id, message.outcome);
      case "ping":
        return this.#send({ kind: "pong" });
      case "pong":
    }
  }

  /** For a leader a gap is an error; a follower may have missed frames while it slept. */
  #apply(frame: ServerFrame, leading: boolean): Verdict {
    const feeds = this.#feeds;
    let verdict: Verdict = "next";
    switch (frame.type) {
      case "welcome":
        this.#onWelcome(frame);
        break;
      case "notification":
        verdict = feeds.onNotification(frame, leading);
        if (verdict !== "unknown" && !(leading && verdict === "gap")) this.#runner.run(frame);
        break;
      case "skipped":
        verdict = feeds.onSkipped(frame, leading);
        break;
      case "caught_up":
        feeds.onCaughtUp(frame.feed);
        break;
      case "state":
        if (feeds.onState(frame)) this.#watchers.emit("resync", { feed: frame.feed });
        if (frame.seqs?.length !== 0) this.#watchers.emit("state", frame);
    }
    if (verdict === "gap" && !leading && "feed" in frame) {
      this.#watchers.emit("resync", { feed: frame.feed as string });
    }
    this.#update("counts", feeds.counts());
    return verdict;
  }

  #onWelcome(welcome: Welcome): void {
    this.#welcome = welcome;
    if (this.#feeds.isRenewed(welcome)) this.#marks.settleAll(EPOCH_CHANGED);
    const missed = this.#feeds.onWelcome(welcome);
    for (const feed of missed) this.#watchers.emit("resync", { feed });
    // The leader ignored marks from before this tab got the epoch. It ignores repeated ones.
    this.#marks.sendAll();
  }

  #wait(ms: number): Promise<void> {
    return new Promise((resolve) => this.#platform.after(ms, () => this.#isClosed() || resolve()));
  }

  async #mark(marks: Mark[]): Promise<State[]> {
    if (this.#isClosed() && marks.length > 0) throw new ShopbellError("closed", CLOSED);
    return (await Promise.all(marks.map((mark) => this.#marks.add(mark)))).flat();
  }

  #update<Name extends keyof Snapshot>(name: Name, value: Snapshot[Name]): void {
    const old = this.#snapshot;
    if (this.#isClosed() || JSON.stringify(value) === JSON.stringify(old[name])) return;
    this.#snapshot = { ...old, [name]: value };
    this.#watchers.emit<keyof Snapshot>(name, value);
    if (name === "status" && this.status.state === "live") {
      this.#watchers.emit("caught_up", undefined);
    }
  }

  #isClosed(): boolean {
    return this.#snapshot.status.state === "closed";
  }

  #finish(error?: ShopbellError): void {
    if (this.#isClosed()) return;
    this.#stopListening();
    this.#stopLeading();
    this.#tabs?.leave();
    this.#marks.settleAll({ code: "closed", message: CLOSED, cause: error });
    this.#update("status", { state: "closed", ...(error && { error }) });
  }
}
