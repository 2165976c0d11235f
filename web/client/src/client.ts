// The client as an app has it, one a tab: its handlers, its view of status and counts, its people's acts. Every tab runs this
// on the same frames; the one that leads has a `Leader` beside it, and speaks to it as every other tab does.

import { backoff } from "./backoff.js";
import { ShopbellError } from "./errors.js";
import type { Events, Notification } from "./events.js";
import { Feeds, type Counts, type Verdict } from "./feeds.js";
import { Handlers, Lanes, type Handler, type Retry } from "./handlers.js";
import { addresses, fetchHistory, type HistoryPage, type HistoryQuery } from "./history.js";
import { Leader, type Saying } from "./leader.js";
import type { PageChange, Platform, Store } from "./platform.js";
import type { ServerFrame, State, Welcome } from "./protocol.js";
import { SEQS_MAX, type Ask } from "./requests.js";
import { fetchToken, type TokenSource } from "./socket.js";
import type { Status } from "./status.js";
import { Marks } from "./store.js";
import { PING_MS, Tabs, type LeaderMessage, type TabMessage, type TabsMessage } from "./tabs.js";
import { identity } from "./token.js";

/** A tab whose handlers are so far behind in a feed is given no more of it, but a `resync` when it has caught up. */
export const BEHIND_MAX = 1_000;

export interface ConnectOptions {
  /** The service: `wss://…`, `https://…` or relative to the page, with or without `/v1/ws`. */
  url: string;
  /** Gives a JWT, asked for afresh for each attempt; may fail, then it is asked again after a while. */
  token: TokenSource;
  /** Gives this device of the subscriber a cursor of its own. */
  device?: string;
  /** `false`: a socket for this tab alone. */
  share?: boolean;
  /** Tabs share a socket only where this is equal too. */
  shareKey?: string;
  /** Where to remember what was handled; `localStorage` where absent. */
  store?: Store;
}

/** What {@link Client.watch} can watch. */
export interface Watched {
  /** The connection's status changed. */
  status: Status;
  /** A count changed. */
  counts: Counts;
  /** Somebody read or handled notifications. */
  state: State;
  /** Everything stored has come, and what follows is live; once a session. */
  caught_up: undefined;
  /** Something about this feed was missed while away: fetch its history again. */
  resync: { feed: string };
  /** It goes on by itself; `notification` where a handler failed on it. Goes to the console where nobody watches. */
  error: { error: ShopbellError; notification?: Notification };
}

/** What only the tab that leads knows. */
const OF_THE_LEADER = new Set(["frame", "status", "snapshot"]);

/** Status and counts at one moment; the same object until one of them changes. */
export interface Snapshot {
  readonly status: Status;
  readonly counts: Counts;
}

interface Pending {
  ask: Ask;
  resolve: (states: State[]) => void;
  reject: (error: ShopbellError) => void;
}

export class Client {
  readonly #options: ConnectOptions;
  readonly #platform: Platform;
  readonly #me: string;
  readonly #addresses: { ws: string; http: string };
  readonly #marks: Marks;
  readonly #feeds: Feeds;
  readonly #everyTab = new Handlers();
  readonly #oneTab = new Handlers();
  readonly #lanes = new Lanes();
  /** The every-tab handlers' work that is not done, by `Feeds.key`. */
  readonly #given = new Map<string, Promise<void>>();
  readonly #ringing = new Set<string>();
  readonly #overflowed = new Set<string>();
  readonly #pending = new Map<string, Pending>();
  readonly #watchers = new Map<keyof Watched, Set<(value: never) => void>>();
  readonly #stopListening: () => void;
  #snapshot: Snapshot = {
    status: { state: "connecting" },
    counts: { total: { unread: 0, unhandled: 0 }, feeds: {} },
  };
  #welcome: Welcome | undefined;
  #tabs: Tabs | undefined;
  #leader: Leader | undefined;
  /** The tab whose word as the leader counts here. */
  #followed: string | undefined;
  #doubting = false;
  #suspended = false;
  #activeAt: number;
  #asks = 0;
  /** Whose tokens these are: nothing of one subscriber may be mixed with another's. */
  #whose: string | undefined;
  /** The token that said whose; good for the first attempt. */
  #firstToken: string | undefined;

  /** @internal Apps call `connect`. */
  constructor(options: ConnectOptions, platform: Platform) {
    this.#options = options;
    this.#platform = platform;
    this.#me = platform.random().toString(36).slice(2) + platform.random().toString(36).slice(2);
    this.#addresses = addresses(options.url, platform.base, options.device);
    this.#marks = new Marks(options.store ?? platform.store, this.#addresses.ws);
    this.#feeds = new Feeds((owner, feed) => this.#marks.read(owner, feed));
    this.#activeAt = platform.now();
    this.#stopListening = platform.listen((change) => this.#onPage(change));
    void this.#start();
  }

  /** How the connection is. */
  get status(): Status {
    return this.#snapshot.status;
  }

  /** What nobody has read or handled; exact as of the newest frame. */
  get counts(): Counts {
    return this.#snapshot.counts;
  }

  /** Status and counts together; the same object until one of them changes. */
  get snapshot(): Snapshot {
    return this.#snapshot;
  }

  /**
   * Runs `handler` **in every tab**, to keep what the page shows up to date, in the feed's order. Register handlers right
   * after `connect`: what comes before has nobody to take it.
   *
   * @param pattern an event type, `prefix.*`, or `*`.
   * @returns what ends it.
   */
  on<Type extends keyof Events>(pattern: Type, handler: Handler<Notification<Type>>): () => void;
  on(pattern: string, handler: Handler): () => void;
  on(pattern: string, handler: Handler<never>): () => void {
    return this.#everyTab.add(pattern, handler as Handler);
  }

  /**
   * Runs `handler` **in exactly one tab**, the one that somebody looks at if there is one: to toast, to ring. The notification
   * is acknowledged when this tab's handlers, these and those of {@link on}, have resolved.
   *
   * @param pattern an event type, `prefix.*`, or `*`.
   * @returns what ends it.
   */
  ring<Type extends keyof Events>(pattern: Type, handler: Handler<Notification<Type>>): () => void;
  ring(pattern: string, handler: Handler): () => void;
  ring(pattern: string, handler: Handler<never>): () => void {
    const end = this.#oneTab.add(pattern, handler as Handler);
    this.#present();
    return () => {
      end();
      this.#present();
    };
  }

  /** Calls `watcher` when the client itself has something to say. Gives what ends it. */
  watch<Name extends keyof Watched>(
    name: Name,
    watcher: (value: Watched[Name]) => void,
  ): () => void {
    const watchers = this.#watchers.get(name) ?? new Set();
    this.#watchers.set(name, watchers);
    watchers.add(watcher);
    return () => void watchers.delete(watcher);
  }

  /**
   * A person saw these. Asked again across reconnects until answered.
   *
   * @returns the frames that confirm it: usually one, more where somebody else was first for some.
   * @throws {@link ShopbellError} `unknown_seq`, `read_only`, `unknown_feed`, `closed`.
   */
  read(feed: string, what: { seqs: readonly number[] } | { through: number }): Promise<State[]> {
    if ("through" in what) return this.#ask({ type: "read", feed, through: what.through });
    return this.#askAll("read", feed, what.seqs);
  }

  /** A person took these, and the bell stops on every device; otherwise like {@link read}. The first who handles wins. */
  handle(feed: string, seqs: readonly number[]): Promise<State[]> {
    return this.#askAll("handle", feed, seqs);
  }

  /**
   * A page of what is stored, newest first.
   *
   * @throws {@link ShopbellError} `http_failed` with `status` and `problem`; `token_failed`.
   */
  history(feed: string, query: HistoryQuery = {}): Promise<HistoryPage> {
    return fetchHistory(this.#platform, this.#addresses.http, () => this.#token(), feed, query);
  }

  /** Ends everything; another tab takes over. What is not acknowledged comes again to the next client. */
  close(): void {
    this.#finish();
  }

  async #start(): Promise<void> {
    const { share = true, shareKey = "" } = this.#options;
    let name: string | undefined;
    if (share && this.#platform.channel && this.#platform.locks) {
      this.#firstToken = await this.#identify();
      // A token that does not say whose it is: nobody to share with.
      if (this.#whose !== undefined)
        name = `shopbell:${JSON.stringify([this.#addresses.ws, shareKey, this.#whose])}`;
    }
    if (this.#isClosed()) return;
    this.#tabs = new Tabs(this.#platform, this.#me, name, {
      receive: (message) => this.#receive(message),
      lead: () => this.#lead(name === undefined),
      follow: () => {
        this.#follow();
        // What the new leader said meanwhile, this tab did not take for its own.
        this.#present(true);
      },
    });
    if (!this.#suspended) this.#join();
  }

  /** A first token, however long it takes. */
  async #identify(): Promise<string | undefined> {
    for (let attempt = 0; !this.#isClosed(); attempt++) {
      try {
        return await this.#token();
      } catch (error) {
        if (this.#isClosed()) break;
        this.#fail(error as ShopbellError);
        const ms = backoff(attempt, this.#platform.random());
        this.#update({ status: { state: "waiting", retryAt: this.#platform.now() + ms } });
        await this.#wait(ms);
        this.#update({ status: { state: "connecting" } });
      }
    }
    return undefined;
  }

  async #token(): Promise<string> {
    const token = await fetchToken(this.#platform, this.#options.token);
    const whose = identity(token);
    if (whose === undefined && this.#whose !== undefined) {
      throw new ShopbellError("token_failed", "the token is for no subject");
    }
    if (whose !== (this.#whose ??= whose)) {
      throw new ShopbellError("subscriber_changed", "the token is for another subject or feeds");
    }
    return token;
  }

  #join(): void {
    this.#tabs?.join();
    if (!this.#leader) this.#present(true);
  }

  #lead(alone: boolean): void {
    this.#followed = this.#me;
    this.#leader = new Leader(
      this.#platform,
      this.#addresses.ws,
      () => this.#token(),
      this.#me,
      this.#feeds,
      {
        say: (saying) => this.#sayAsLeader(saying),
        apply: (frame) => this.#apply(frame, true),
        error: (error) => this.#fail(error),
        closed: (error) => this.#finish(error),
      },
    );
    const token = this.#firstToken;
    this.#firstToken = undefined;
    this.#leader.start(token, alone);
  }

  #follow(): void {
    this.#leader?.stop();
    this.#leader = undefined;
    this.#followed = undefined;
  }

  /**
   * A leader that was frozen while its lock was stolen still speaks when it thaws, of a past that this tab has left behind. So
   * only one leader's frames count: that of the tab that came to lead last, or else that was heard first.
   */
  #heeds({ from, kind }: LeaderMessage): boolean {
    if (kind === "lead" && !this.#leader) this.#followed = from;
    if (from === (this.#followed ??= from) || !OF_THE_LEADER.has(kind)) return true;
    if (!this.#doubting) {
      this.#doubting = true;
      // By then the one of the two that does not lead has learned it.
      this.#platform.after(PING_MS, () => {
        this.#doubting = false;
        if (this.#leader) return;
        this.#followed = undefined;
        this.#present(true);
      });
    }
    return false;
  }

  #onPage(change: PageChange): void {
    if (change === "suspend") {
      if (this.#suspended) return;
      this.#suspended = true;
      // The token may be old when the page comes back.
      this.#firstToken = undefined;
      this.#follow();
      this.#tabs?.leave();
    } else if (change === "resume" && this.#suspended) {
      this.#suspended = false;
      this.#join();
    } else if (change === "attention") {
      if (this.#platform.attention().visible) this.#activeAt = this.#platform.now();
      this.#present();
      this.#tabs?.attention();
    } else {
      this.#leader?.hurry();
    }
  }

  /** Tells the leader what this tab is good for. */
  #present(joining = false): void {
    const presence = {
      ...this.#platform.attention(),
      activeAt: this.#activeAt,
      patterns: this.#oneTab.patterns(),
      ringing: [...this.#ringing],
    };
    this.#say({ kind: "hello", from: this.#me, presence, joining });
  }

  /** To the leader, whoever that is. */
  #say(message: TabMessage): void {
    this.#tabs?.post(message);
    this.#receive(message);
  }

  #sayAsLeader(saying: Saying): void {
    const message = { ...saying, from: this.#me, leader: true } as LeaderMessage;
    if (!("to" in message) || message.to !== this.#me) this.#tabs?.post(message);
    if (!("to" in message) || message.to === this.#me) this.#receive(message);
  }

  #receive(message: TabsMessage): void {
    // Of another epoch: the tab slept while it changed.
    if (
      "key" in message &&
      message.key !== this.#feeds.key("seq" in message ? message : message.notification)
    )
      return;
    if (!message.leader) {
      if (message.kind === "rung") this.#feeds.onHandled(message.feed, message.seq);
      return this.#leader?.onTab(message);
    }
    if (!this.#heeds(message)) return;
    switch (message.kind) {
      case "lead":
        this.#present();
        return this.#askPending();
      case "frame":
        // The leader's own tab has taken it in already.
        if (!this.#leader) this.#apply(message.frame, false);
        return;
      case "status":
        return this.#update({ status: message.status });
      case "snapshot":
        if (message.welcome) this.#apply(message.welcome, false);
        for (const notification of message.pending) this.#give(notification);
        return this.#update({ status: message.status });
      case "ring":
        return void this.#ring(message.notification);
      case "answered":
        this.#pending.get(message.id)?.resolve(message.states);
        return void this.#pending.delete(message.id);
      case "refused":
        this.#pending.get(message.id)?.reject(new ShopbellError(message.code, message.message));
        return void this.#pending.delete(message.id);
      case "ping":
        return this.#say({ kind: "here", from: this.#me });
      case "alive":
    }
  }

  /** Takes in a frame. A leader refuses what comes after a gap; a follower can only have missed it while it slept. */
  #apply(frame: ServerFrame, leading: boolean): Verdict {
    const feeds = this.#feeds;
    let verdict: Verdict = "next";
    switch (frame.type) {
      case "welcome":
        this.#onWelcome(frame);
        break;
      case "notification":
        verdict = feeds.onNotification(frame, leading);
        if (verdict !== "unknown" && !(leading && verdict === "gap")) this.#give(frame);
        break;
      case "skipped":
        verdict = feeds.onSkipped(frame, leading);
        break;
      case "caught_up":
        feeds.onCaughtUp(frame.feed);
        break;
      case "state":
        if (feeds.onState(frame)) this.#tell("resync", { feed: frame.feed });
        if (frame.seqs?.length !== 0) this.#tell("state", frame);
    }
    if (verdict === "gap" && !leading && "feed" in frame)
      this.#tell("resync", { feed: frame.feed as string });
    this.#update({ counts: feeds.counts() });
    return verdict;
  }

  #onWelcome(welcome: Welcome): void {
    this.#welcome = welcome;
    // Their numbers are about other notifications now.
    if (this.#feeds.isRenewed(welcome))
      this.#refusePending(new ShopbellError("unknown_seq", "the database was restored"));
    const missed = this.#feeds.onWelcome(welcome);
    for (const feed of missed) this.#tell("resync", { feed });
    // The leader did not take a request from before this tab knew the epoch, and ignores a request that it has already.
    this.#askPending();
  }

  /** Runs the every-tab handlers, once for each notification. */
  #give(notification: Notification): void {
    const { feed } = notification;
    if (!this.#feeds.take(notification)) return;
    if (this.#lanes.length(feed) >= BEHIND_MAX) {
      if (this.#overflowed.has(feed)) return;
      this.#overflowed.add(feed);
      return void this.#lanes.add(feed, async () => {
        this.#overflowed.delete(feed);
        this.#tell("resync", { feed });
      });
    }
    const key = this.#feeds.key(notification);
    const done = this.#lanes.add(feed, () => this.#everyTab.run(notification, this.#retry));
    this.#given.set(key, done);
    void done.then(() => this.#given.delete(key));
  }

  /** Runs the one-tab handlers: this tab was chosen. */
  async #ring(notification: Notification): Promise<void> {
    const { feed, seq } = notification;
    const key = this.#feeds.key(notification);
    // The mark is of the epoch of now, however long the handlers take.
    const owner = this.#welcome;
    if (this.#ringing.has(key) || !owner) return;
    this.#ringing.add(key);
    this.#give(notification);
    await this.#given.get(key);
    // Another tab may have done it while this one was frozen, or shares nothing with it but the store.
    if (this.#marks.read(owner, feed) < seq) {
      await this.#oneTab.run(notification, this.#retry);
      if (this.#marks.read(owner, feed) < seq) this.#marks.write(owner, feed, seq);
    }
    this.#ringing.delete(key);
    if (!this.#isClosed()) this.#say({ kind: "rung", from: this.#me, feed, seq, key });
  }

  #retry: Retry = {
    failed: (error, notification) => this.#fail(error, notification),
    wait: (ms) => this.#wait(ms),
    random: () => this.#platform.random(),
  };

  #wait(ms: number): Promise<void> {
    return new Promise((resolve) => this.#platform.after(ms, () => this.#isClosed() || resolve()));
  }

  async #askAll(type: Ask["type"], feed: string, seqs: readonly number[]): Promise<State[]> {
    const parts: Promise<State[]>[] = [];
    for (let at = 0; at < seqs.length; at += SEQS_MAX) {
      const ask: Ask = { type, feed, seqs: seqs.slice(at, at + SEQS_MAX) };
      parts.push(this.#ask(ask));
    }
    return (await Promise.all(parts)).flat();
  }

  #ask(ask: Ask): Promise<State[]> {
    if (this.#isClosed())
      return Promise.reject(new ShopbellError("closed", "this client is closed"));
    return new Promise((resolve, reject) => {
      const id = `${this.#me}:${this.#asks++}`;
      this.#pending.set(id, { ask, resolve, reject });
      this.#sayAsk(id, ask);
    });
  }

  #sayAsk(id: string, ask: Ask): void {
    const { feed } = ask;
    const key = this.#feeds.key({ feed, seq: 0 });
    this.#say({ kind: "ask", from: this.#me, id, ask, feed, seq: 0, key });
  }

  #askPending(): void {
    for (const [id, { ask }] of this.#pending) this.#sayAsk(id, ask);
  }

  #refusePending(error: ShopbellError): void {
    for (const { reject } of this.#pending.values()) reject(error);
    this.#pending.clear();
  }

  #update(change: Partial<Snapshot>): void {
    const old = this.#snapshot;
    if (this.#isClosed()) return;
    const next = { ...old, ...change };
    const isNew = (name: keyof Snapshot) =>
      JSON.stringify(old[name]) !== JSON.stringify(next[name]);
    const status = change.status !== undefined && isNew("status");
    const counts = change.counts !== undefined && isNew("counts");
    if (!status && !counts) return;
    this.#snapshot = {
      status: status ? next.status : old.status,
      counts: counts ? next.counts : old.counts,
    };
    if (counts) this.#tell("counts", next.counts);
    if (status) this.#tell("status", next.status);
    if (status && next.status.state === "live") this.#tell("caught_up", undefined);
  }

  #fail(error: ShopbellError, notification?: Notification): void {
    if (!this.#watchers.get("error")?.size) console.error(error);
    this.#tell("error", { error, ...(notification && { notification }) });
  }

  #tell<Name extends keyof Watched>(name: Name, value: Watched[Name]): void {
    for (const watcher of [...(this.#watchers.get(name) ?? [])]) {
      try {
        (watcher as (value: Watched[Name]) => void)(value);
      } catch (error) {
        // A watcher's fault must not stop a frame halfway; it reaches the page as an uncaught error does.
        queueMicrotask(() => {
          throw error;
        });
      }
    }
  }

  #isClosed(): boolean {
    return this.#snapshot.status.state === "closed";
  }

  #finish(error?: ShopbellError): void {
    if (this.#isClosed()) return;
    this.#stopListening();
    this.#follow();
    this.#tabs?.leave();
    this.#refusePending(new ShopbellError("closed", "this client is closed", { cause: error }));
    this.#update({ status: { state: "closed", ...(error && { error }) } });
  }
}
