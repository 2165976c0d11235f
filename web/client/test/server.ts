// The server of a test world: it follows the rules of `shopbell.v1` and records violations by clients.

import type { Notification } from "../src/events.js";
import type { SocketLike } from "../src/platform.js";
import type { ClientFrame, State } from "../src/protocol.js";
import type { Tab, World } from "./world.js";

export function jwt(claims: object): string {
  const part = (json: object) => Buffer.from(JSON.stringify(json)).toString("base64url");
  return `${part({ alg: "none" })}.${part(claims)}.x`;
}

/** The client's end of a connection. The network delays frames by up to 20 ms and keeps their order. */
export class FakeSocket implements SocketLike {
  onmessage: ((event: MessageEvent) => void) | null = null;
  onclose: ((event: CloseEvent) => void) | null = null;
  state: "open" | "closing" | "closed" = "open";
  /** The network drops all frames in both directions. */
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
    // Promises of a crashed tab still settle.
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
    // Frames in flight arrive before the reply to the close.
    this.deliver("up", () => {
      this.#session?.end();
      this.fromServer(undefined, code);
    });
  }

  /** The client's end is gone; frames in flight still arrive. */
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
  refusesAuth = false;
  subscriber = "merchant-1";
  epoch = "e1";
  /** Violations of the protocol by clients. */
  violations: string[] = [];
  /** Closes for the next handshakes. */
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

  /** Restores the database: keeps the first `count` notifications of a feed, and ends all sessions. */
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

  /** Marks notifications. Returns the reply for numbers that were marked before. */
  mark(name: string, kind: "read" | "handle", seqs: number[], by: string): State | undefined {
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
    const marksOf = (seq: number | undefined) => {
      const one = seq === undefined ? undefined : feed.notifications[seq - 1];
      if (kind === "read") return { read_at: one?.read_at ?? at };
      return { handled_at: one?.handled_at ?? at, handled_by: one?.handled_by ?? by };
    };
    if (changed.length > 0) {
      const state: State = {
        type: "state",
        feed: name,
        seqs: changed,
        ...marksOf(changed[0]),
        ...this.counts(name),
        version: feed.states.length + 1,
      };
      feed.states.push(state);
      for (const session of this.sessions) session.socket.fromServer(state);
    }
    const already = seqs.filter((seq) => !changed.includes(seq));
    if (already.length === 0 && seqs.length > 0) return undefined;
    return {
      type: "state",
      feed: name,
      seqs: already,
      ...marksOf(already[0]),
      ...this.counts(name),
    };
  }

  /** Marks everything up to `limit` as read, in steps, with a frame for each step. */
  readThrough(name: string, limit: number, session: Session): void {
    const feed = this.feed(name);
    const end = Math.min(limit, feed.notifications.length);
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
        session.socket.fromServer(state);
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
    // The token does not name the feed: status 400, which a browser does not show.
    if (statesOf(socket).some(([feed]) => !this.feeds.has(feed))) {
      socket.close1006();
      return undefined;
    }
    return new Session(this, socket);
  }

  /** Ends every session, as a replica does when it stops. */
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

/** The server marks this many notifications per step of a `read` with `through`. */
const READ_STEP = 4;

/** The server's end of a connection. */
export class Session {
  #next = new Map<string, number>();
  #caughtUp = new Set<string>();
  #outstanding: { feed: string; seq: number }[] = [];
  /** The last number when the session began. */
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

  /** Sends the next notifications within the window; skips collapsed ones. */
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
    if (frame.type === "auth") {
      if (!this.server.refusesAuth) return;
      const message = "the token is not valid";
      return this.socket.fromServer({ type: "error", code: "token_refused", message });
    }
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
    const reply = server.mark(frame.feed, frame.type, seqs, server.subscriber);
    if (reply) this.socket.fromServer(reply);
  }

  end(): void {
    this.server.sessions.delete(this);
  }
}
