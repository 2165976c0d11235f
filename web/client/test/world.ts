// A world for tests: one clock, one server that keeps the contract's rules and complains where a client breaks them, and one
// browser profile with tabs that sleep, crash and come back. Everything that is random comes from one seed.

import type { Client, ConnectOptions } from "../src/client.js";
import { Client as ClientClass } from "../src/client.js";
import type { Notification } from "../src/events.js";
import type { PageChange, Platform, SocketLike, Store } from "../src/platform.js";
import type { ClientFrame, State } from "../src/protocol.js";

/** Mulberry32: small, and the same everywhere. */
export function randomOf(seed: number): () => number {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

export function jwt(claims: object): string {
  const part = (json: object) => Buffer.from(JSON.stringify(json)).toString("base64url");
  return `${part({ alg: "none" })}.${part(claims)}.x`;
}

interface Timer {
  at: number;
  id: number;
  fn: () => void;
}

export class World {
  now = 1_700_000_000_000;
  random: () => number;
  server: Server;
  store = new Map<string, string>();
  tabs: Tab[] = [];
  locks: Lock[] = [];
  #timers: Timer[] = [];
  #ids = 0;

  constructor(seed = 1) {
    this.random = randomOf(seed);
    this.server = new Server(this);
  }

  after(ms: number, fn: () => void): () => void {
    const timer = { at: this.now + Math.max(0, ms), id: this.#ids++, fn };
    this.#timers.push(timer);
    return () => {
      this.#timers = this.#timers.filter((other) => other !== timer);
    };
  }

  /** Lets `ms` pass, and everything happen that is due. */
  async pass(ms: number): Promise<void> {
    const until = this.now + ms;
    for (;;) {
      await settle();
      const next = this.#timers.reduce<Timer | undefined>(
        (soonest, timer) =>
          !soonest || timer.at < soonest.at || (timer.at === soonest.at && timer.id < soonest.id)
            ? timer
            : soonest,
        undefined,
      );
      if (!next || next.at > until) break;
      this.#timers = this.#timers.filter((timer) => timer !== next);
      this.now = Math.max(this.now, next.at);
      next.fn();
    }
    this.now = until;
    await settle();
  }

  /** A tab with a connected client. */
  open(options: Partial<ConnectOptions> = {}, page: Partial<Tab> = {}): Tab {
    const tab = new Tab(this);
    Object.assign(tab, page);
    this.tabs.push(tab);
    tab.client = new ClientClass(
      { url: "https://shop.example/", token: () => this.server.token(), ...options },
      tab.platform(),
    );
    return tab;
  }

  grant(name: string): void {
    if (this.locks.some((lock) => lock.name === name && lock.held)) return;
    const next = this.locks.find((lock) => lock.name === name);
    if (!next) return;
    next.held = true;
    next.tab.run(() => {
      void next.take().then(() => {
        if (!this.locks.includes(next)) return;
        this.#drop(next);
        next.resolve();
      });
    });
  }

  #drop(lock: Lock): void {
    this.locks = this.locks.filter((other) => other !== lock);
    void Promise.resolve().then(() => this.grant(lock.name));
  }

  release(tab: Tab): void {
    for (const lock of this.locks.filter((lock) => lock.tab === tab)) this.#drop(lock);
  }

  request(
    tab: Tab,
    name: string,
    steal: boolean,
    signal: AbortSignal | undefined,
    take: () => Promise<void>,
  ) {
    return new Promise<void>((resolve, reject) => {
      const abort = () => Object.assign(new Error("aborted"), { name: "AbortError" });
      const lock: Lock = { name, tab, held: false, take, resolve, reject };
      if (steal) {
        for (const other of this.locks.filter((other) => other.name === name && other.held)) {
          this.locks = this.locks.filter((one) => one !== other);
          // Nothing says whether the tab learns it before or after what waits in its channel.
          this.after(this.random() * 100, () => other.tab.run(() => other.reject(abort())));
        }
        this.locks.unshift(lock);
      } else this.locks.push(lock);
      signal?.addEventListener("abort", () => {
        if (lock.held || !this.locks.includes(lock)) return;
        this.locks = this.locks.filter((other) => other !== lock);
        reject(abort());
      });
      void Promise.resolve().then(() => this.grant(name));
    });
  }
}

interface Lock {
  name: string;
  tab: Tab;
  held: boolean;
  take: () => Promise<void>;
  resolve: () => void;
  reject: (error: Error) => void;
}

/** All microtasks, and those that they cause. */
export async function settle(): Promise<void> {
  await new Promise<void>((resolve) => setImmediate(resolve));
}

export class Tab {
  client!: Client;
  visible = false;
  focused = false;
  alive = true;
  frozen = false;
  shares = true;
  /** Throws as the `WebSocket` constructor does. */
  refuse: ((protocols: string[]) => void) | undefined;
  errors: string[] = [];
  sockets: FakeSocket[] = [];
  #waiting: (() => void)[] = [];
  #channels: { name: string; onmessage: ((event: MessageEvent) => void) | null }[] = [];
  #changed: (change: PageChange) => void = () => {};

  constructor(readonly world: World) {}

  /** Runs a task of this tab: later where it is frozen, never where it is gone. */
  run(fn: () => void): void {
    if (!this.alive) return;
    if (this.frozen) this.#waiting.push(fn);
    else fn();
  }

  crash(): void {
    this.alive = false;
    for (const socket of this.sockets) socket.lost();
    this.#channels = [];
    this.world.release(this);
  }

  freeze(): void {
    this.frozen = true;
  }

  async thaw(): Promise<void> {
    this.frozen = false;
    // Each is a task of its own: promises settle in between.
    for (let task = this.#waiting.shift(); task; task = this.#waiting.shift()) {
      task();
      await settle();
    }
  }

  /** The page's own events. */
  page(change: PageChange): void {
    this.#changed(change);
  }

  look(visible: boolean, focused = visible): void {
    Object.assign(this, { visible, focused });
    this.#changed("attention");
    if (visible) this.#changed("hurry");
  }

  sleep(ms: number): Promise<void> {
    return new Promise((resolve) => this.world.after(ms, () => this.run(resolve)));
  }

  store(): Store {
    const { store } = this.world;
    return {
      getItem: (key) => store.get(key) ?? null,
      setItem: (key, value) => void (this.alive && store.set(key, value)),
    };
  }

  platform(): Platform {
    const { world } = this;
    return {
      now: () => world.now,
      random: () => world.random(),
      after: (ms, fn) => {
        let cancelled = false;
        const cancel = world.after(ms, () => this.run(() => cancelled || fn()));
        return () => {
          cancelled = true;
          cancel();
        };
      },
      socket: (url, protocols) => {
        this.refuse?.(protocols);
        const socket = new FakeSocket(this, url, protocols);
        this.sockets.push(socket);
        return socket;
      },
      ...(this.shares && {
        channel: (name: string) => {
          const channel = {
            name,
            onmessage: null as ((event: MessageEvent) => void) | null,
            postMessage: (message: unknown) => {
              if (!this.alive) return;
              const copy = structuredClone(message);
              for (const tab of world.tabs) if (tab !== this) tab.hear(name, copy);
            },
            close: () =>
              void (this.#channels = this.#channels.filter((other) => other !== channel)),
          };
          this.#channels.push(channel);
          return channel;
        },
        locks: {
          request: (name, { steal = false, signal }, held) =>
            world.request(this, name, steal, signal, held),
        },
      }),
      store: this.store(),
      fetch: () => Promise.reject(new Error("no HTTP here")),
      base: "https://shop.example/",
      attention: () => ({ visible: this.visible, focused: this.focused }),
      listen: (changed) => {
        this.#changed = (change) => this.run(() => changed(change));
        return () => (this.#changed = () => {});
      },
    };
  }

  hear(name: string, message: unknown): void {
    for (const channel of this.#channels) {
      if (channel.name !== name) continue;
      // A message is a task, in the order of posting.
      this.world.after(0, () =>
        this.run(() => {
          if (this.#channels.includes(channel))
            channel.onmessage?.({ data: message } as MessageEvent);
        }),
      );
    }
  }
}

/** A tab's end of a connection. The network delays by up to 20 ms and keeps the order. */
export class FakeSocket implements SocketLike {
  onmessage: ((event: MessageEvent) => void) | null = null;
  onclose: ((event: CloseEvent) => void) | null = null;
  state: "open" | "closing" | "closed" = "open";
  /** Nothing comes through any more, and nobody is told. */
  dead = false;
  closedWith: number | undefined;
  sent: ClientFrame[] = [];
  #session: Session | undefined;
  #arrivals = { up: 0, down: 0 };

  constructor(
    readonly tab: Tab,
    readonly url: string,
    readonly protocols: string[],
  ) {
    const { server } = tab.world;
    server.sockets.push(this);
    // Promises of a tab that crashed still settle here.
    if (!tab.alive) this.state = "closed";
    this.deliver("up", () => {
      if (this.state === "open" && server.up) this.#session = server.accept(this);
      else if (this.state === "open") this.close1006();
    });
  }

  send(text: string): void {
    if (this.state !== "open") return;
    const frame = JSON.parse(text) as ClientFrame;
    this.sent.push(frame);
    this.deliver("up", () => this.#session?.onFrame(frame));
  }

  close(code = 1005): void {
    if (this.state !== "open") return;
    this.closedWith = code;
    this.state = "closing";
    // What is on its way still arrives, and the answer to the close after it.
    this.deliver("up", () => {
      this.#session?.end();
      this.fromServer(undefined, code);
    });
  }

  /** The client's end is gone; what it sent before still arrives. */
  lost(): void {
    if (this.state === "closed") return;
    this.state = "closed";
    this.deliver("up", () => this.#session?.end());
  }

  close1006(): void {
    this.fromServer(undefined, 1006, "");
  }

  fromServer(frame: object | undefined, code?: number, reason = ""): void {
    this.deliver("down", () =>
      this.tab.run(() => {
        if (this.state === "closed") return;
        if (frame) return this.onmessage?.({ data: JSON.stringify(frame) } as MessageEvent);
        this.state = "closed";
        this.onclose?.({ code, reason } as CloseEvent);
      }),
    );
  }

  deliver(way: "up" | "down", fn: () => void): void {
    const { world } = this.tab;
    this.#arrivals[way] = Math.max(this.#arrivals[way], world.now + world.random() * 20);
    world.after(this.#arrivals[way] - world.now, () => this.dead || fn());
  }
}

interface Feed {
  shared: boolean;
  notifications: Notification[];
  states: State[];
  cursors: Map<string, number>;
}

export class Server {
  up = true;
  sockets: FakeSocket[] = [];
  sessions = new Set<Session>();
  feeds = new Map<string, Feed>();
  window = 256;
  heartbeatSeconds = 25;
  tokenSeconds = 3600;
  tokens = 0;
  subscriber = "merchant-1";
  epoch = "e1";
  /** What clients did that the contract forbids. */
  violations: string[] = [];
  /** What the next handshakes are closed with. */
  refusals: { code: number; reason?: string }[] = [];
  /** `error` codes for the next `read` or `handle`. */
  errors: string[] = [];

  constructor(readonly world: World) {
    this.feed("m");
  }

  feed(name: string, shared = false): Feed {
    const feed = this.feeds.get(name) ?? {
      shared,
      notifications: [],
      states: [],
      cursors: new Map(),
    };
    this.feeds.set(name, feed);
    return feed;
  }

  token(): string {
    this.tokens++;
    return jwt({ sub: this.subscriber, exp: this.world.now / 1000 + this.tokenSeconds });
  }

  publish(event = "order.created", feed = "m", more: Partial<Notification> = {}): Notification {
    const { notifications } = this.feed(feed);
    const seq = notifications.length + 1;
    const frame = {
      type: "notification",
      feed,
      seq,
      id: `e${seq}`,
      source: "/s",
      event,
      data: {},
      ...more,
    };
    notifications.push(frame as Notification);
    for (const session of this.sessions) session.pump();
    return frame as Notification;
  }

  counts(name: string): { unread: number; unhandled: number; last: number } {
    const { notifications } = this.feed(name);
    const unread = notifications.filter((one) => !one.read_at).length;
    return {
      unread,
      unhandled: notifications.filter((one) => !one.handled_at).length,
      last: notifications.length,
    };
  }

  /** The database goes back: only the first `count` notifications of a feed are left, and all sessions end. */
  restore(count: number, name = "m"): void {
    const feed = this.feed(name);
    feed.notifications.splice(count);
    feed.states = [];
    feed.cursors.forEach((seq, who) => feed.cursors.set(who, Math.min(seq, count)));
    this.epoch = `e${Number(this.epoch.slice(1)) + 1}`;
    this.dropAll(4410, '{"code":"epoch_changed","retry_after_ms":100}');
  }

  cursor(feed = "m"): number {
    return this.feed(feed).cursors.get(this.subscriber) ?? 0;
  }

  /** Somebody reads or handles. Gives the frame for the asker where nothing changed. */
  change(name: string, kind: "read" | "handle", seqs: number[], by: string): State | undefined {
    const feed = this.feed(name);
    const at = new Date(this.world.now).toISOString();
    const field = kind === "read" ? "read_at" : "handled_at";
    const changed = seqs.filter((seq) => !feed.notifications[seq - 1]?.[field]);
    for (const seq of changed) {
      const old = feed.notifications[seq - 1] as Notification;
      feed.notifications[seq - 1] = {
        ...old,
        [field]: at,
        ...(kind === "handle" && { handled_by: by }),
      };
    }
    const fact = (seq: number | undefined) => {
      const one = seq === undefined ? undefined : feed.notifications[seq - 1];
      if (kind === "read") return { read_at: one?.read_at ?? at };
      return { handled_at: one?.handled_at ?? at, handled_by: one?.handled_by ?? by };
    };
    if (changed.length > 0) {
      const state: State = {
        type: "state",
        feed: name,
        seqs: changed,
        ...fact(changed[0]),
        ...this.counts(name),
        version: feed.states.length + 1,
      };
      feed.states.push(state);
      for (const session of this.sessions) session.socket.fromServer(state);
    }
    const already = seqs.filter((seq) => !changed.includes(seq));
    if (already.length === 0 && seqs.length > 0) return undefined;
    return { type: "state", feed: name, seqs: already, ...fact(already[0]), ...this.counts(name) };
  }

  /** Reads everything up to what is asked for or stored, in steps; each is stated, to all where it changed anything. */
  readThrough(name: string, asked: number, asker: Session): void {
    const feed = this.feed(name);
    const end = Math.min(asked, feed.notifications.length);
    let through = 0;
    do {
      const from = through;
      through = Math.min(through + READ_STEP, end);
      const read_at = new Date(this.world.now).toISOString();
      let changed = false;
      for (let index = from; index < through; index++) {
        const one = feed.notifications[index] as Notification;
        if (one.read_at) continue;
        feed.notifications[index] = { ...one, read_at };
        changed = true;
      }
      const state: State = { type: "state", feed: name, through, read_at, ...this.counts(name) };
      if (!changed) {
        asker.socket.fromServer(state);
        continue;
      }
      feed.states.push({ ...state, version: feed.states.length + 1 });
      for (const { socket } of this.sessions) socket.fromServer(feed.states.at(-1));
    } while (through < end);
  }

  accept(socket: FakeSocket): Session | undefined {
    const refusal = this.refusals.shift();
    if (refusal) {
      socket.fromServer(undefined, refusal.code, refusal.reason);
      return undefined;
    }
    // A feed that the token does not name: 400, which a browser does not show.
    if (statesOf(socket).some(([feed]) => !this.feeds.has(feed))) {
      socket.close1006();
      return undefined;
    }
    return new Session(this, socket);
  }

  /** Ends every session, as a replica does that goes. */
  dropAll(code = 1006, reason = ""): void {
    for (const session of [...this.sessions]) {
      session.end();
      session.socket.fromServer(undefined, code, reason);
    }
  }
}

function statesOf({ url }: FakeSocket): [string, number, string | undefined][] {
  return new URL(url).searchParams.getAll("state").map((one) => {
    const [feed = "", version, epoch] = one.split(":");
    return [feed, Number(version), epoch];
  });
}

/** Of a `read` with `through` the server takes so many at a time. */
const READ_STEP = 4;

/** The server's end: the rules of `shopbell.v1`. */
export class Session {
  #next = new Map<string, number>();
  #caughtUp = new Set<string>();
  #outstanding: { feed: string; seq: number }[] = [];
  /** What was last when the session began. */
  #begun = new Map<string, number>();

  constructor(
    readonly server: Server,
    readonly socket: FakeSocket,
  ) {
    server.sessions.add(this);
    const feeds = [...server.feeds].map(([name, feed]) => {
      const cursor = Math.min(feed.cursors.get(server.subscriber) ?? 0, feed.notifications.length);
      this.#next.set(name, cursor + 1);
      this.#begun.set(name, feed.notifications.length);
      const counts = server.counts(name);
      const { epoch } = server;
      return {
        feed: name,
        cursor,
        ...counts,
        version: feed.states.length,
        epoch,
        ...(feed.shared && { shared: true }),
      };
    });
    socket.fromServer({
      type: "welcome",
      session: "s",
      subscriber: server.subscriber,
      device: "",
      window: server.window,
      heartbeat_seconds: server.heartbeatSeconds,
      token_expires_in: server.tokenSeconds,
      feeds,
    });
    for (const [feed, version, epoch] of statesOf(socket)) {
      if (epoch !== server.epoch) continue;
      for (const state of server.feed(feed).states.slice(version)) socket.fromServer(state);
    }
    this.pump();
    this.#beat();
  }

  #beat(): void {
    this.server.world.after(this.server.heartbeatSeconds * 1000, () => {
      if (!this.server.sessions.has(this)) return;
      this.socket.fromServer({ type: "heartbeat", sent: {} });
      this.#beat();
    });
  }

  /** Sends what is due; of a collapse key only the newest, where this session is behind. */
  pump(): void {
    for (const [feed, { notifications }] of this.server.feeds) {
      for (;;) {
        const next = this.#next.get(feed) ?? 1;
        if (!this.#caughtUp.has(feed) && next > (this.#begun.get(feed) ?? 0)) {
          this.#caughtUp.add(feed);
          this.socket.fromServer({ type: "caught_up", feed, seq: next - 1 });
        }
        const frame = notifications[next - 1];
        if (!frame || this.#outstanding.length >= this.server.window) break;
        this.#next.set(feed, next + 1);
        const newer = notifications
          .slice(next)
          .some((one) => one.collapse_key === frame.collapse_key);
        if (frame.collapse_key !== undefined && newer) {
          this.socket.fromServer({
            type: "skipped",
            feed,
            from: next,
            through: next,
            reason: "collapsed",
          });
        } else {
          this.#outstanding.push({ feed, seq: next });
          this.socket.fromServer(frame);
        }
      }
    }
  }

  onFrame(frame: ClientFrame): void {
    if (!this.server.sessions.has(this)) return;
    const { server } = this;
    if (frame.type === "ping") return this.socket.fromServer({ type: "pong" });
    if (frame.type === "auth") return;
    const feed = server.feed(frame.feed);
    if (frame.type === "ack") {
      if (frame.seq >= (this.#next.get(frame.feed) ?? 0))
        server.violations.push(`ack of ${frame.seq}, not sent`);
      const cursor = feed.cursors.get(server.subscriber) ?? 0;
      feed.cursors.set(server.subscriber, Math.max(cursor, frame.seq));
      this.#outstanding = this.#outstanding.filter(
        (one) => one.feed !== frame.feed || one.seq > frame.seq,
      );
      return this.pump();
    }
    const error = server.errors.shift() ?? (feed.shared ? "read_only" : undefined);
    if (error)
      return this.socket.fromServer({
        type: "error",
        code: error,
        message: error,
        feed: frame.feed,
      });
    if ("through" in frame) return server.readThrough(frame.feed, frame.through, this);
    const { seqs } = frame;
    if (seqs.some((seq) => !feed.notifications[seq - 1])) {
      return this.socket.fromServer({
        type: "error",
        code: "unknown_seq",
        message: "no such",
        feed: frame.feed,
      });
    }
    const answer = server.change(frame.feed, frame.type, seqs, server.subscriber);
    if (answer) this.socket.fromServer(answer);
  }

  end(): void {
    this.server.sessions.delete(this);
  }
}
