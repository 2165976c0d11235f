// One connection at a time: token, socket, welcome, liveness, close, wait. It passes frames on.
// Each timer belongs to a phase and is cancelled with it, so no timer acts on a later phase.

import { backoff } from "./backoff.js";
import { ShopbellError } from "./errors.js";
import type { Platform, SocketLike } from "./platform.js";
import {
  BEARER_SUBPROTOCOL_PREFIX,
  CLOSE_NOT_THE_PROTOCOL,
  CLOSE_TOKEN_EXPIRED,
  SUBPROTOCOL,
  closeMeaning,
  fault,
  parseFrame,
  type ClientFrame,
  type ServerFrame,
  type Welcome,
} from "./protocol.js";
import { claims } from "./token.js";

/** Limit on a call of the token callback. */
export const TOKEN_TIMEOUT_MS = 15_000;
/** Limit on the time from opening a socket to `welcome`. */
export const CONNECT_TIMEOUT_MS = 10_000;
/** A connection counts as dead after two heartbeat intervals plus this without a frame. */
export const SILENCE_SLACK_MS = 5_000;
/** Limit on the wait for a frame after a `ping`. */
export const PROBE_TIMEOUT_MS = 3_000;
/** A session that lasted this long resets the back-off. */
export const STABLE_MS = 5_000;
/** The failure after this number in a row is reported as `connect_failed`. */
export const FAILURES_MAX = 2;
/** After more failures in a row, an attempt over HTTP follows each failed one. */
export const WEBSOCKET_FAILURES = 1;
/** The same if a WebSocket worked before. */
export const WEBSOCKET_FAILURES_IF_KNOWN = 4;
/** A token is replaced after this part of its lifetime. */
export const REFRESH_AT = 0.8;
/** Earlier by up to this part of that time, at random, so that clients do not refresh together. */
export const REFRESH_JITTER = 0.1;
/** A token is replaced at least this long before its end, if its lifetime allows it. */
export const REFRESH_MARGIN_MS = 10_000;
/** Shortest time to a refresh, if the app returns tokens that are about to expire. */
export const REFRESH_MS_MIN = 1_000;

/** A subprotocol is a `token` (RFC 9110 §5.6.2). */
const SENDABLE = /^[\w!#$%&'*+.^`|~-]+$/;

/** How frames arrive: by a WebSocket, by Server-Sent Events, or by polls. */
export type Transport = "websocket" | "stream" | "poll";

/** Returns the app's token. */
export type TokenSource = () => string | Promise<string>;

/** Callbacks of a connection. */
export interface ConnectionHooks {
  /** Returns the query for the next attempt. */
  query(): URLSearchParams;
  /** Returns the query that continues after the frames so far. */
  after(): URLSearchParams;
  connecting(): void;
  /** The first frame of a session. */
  welcome(frame: Welcome): void;
  /** Any later frame. Throws if it violates the protocol; then the session ends. */
  frame(frame: ServerFrame): void;
  /** No session; the next attempt is at `retryAt` (milliseconds since 1970). */
  waiting(retryAt: number): void;
  /** The connection recovers from this error by itself. */
  error(error: ShopbellError): void;
  /** The connection ended and does not reconnect. */
  closed(error: ShopbellError): void;
}

interface Up {
  name: "up";
  socket: SocketLike;
  since: number;
  frameAt: number;
  heartbeatMs: number;
  /** How far the server's clock is ahead of ours; `undefined` if the token has no `exp`. */
  aheadMs: number | undefined;
  lifeMs: number;
  authFailures: number;
  stopRefresh?: () => unknown;
  /** From `goaway`. */
  retryAfterMs?: number;
  probing: boolean;
}

/** A socket with what its session needs. */
export interface Opened {
  socket: SocketLike;
  token: string;
  query: string;
}

type Phase =
  | { name: "idle" }
  | { name: "waiting"; notBefore: number }
  | { name: "token" }
  | ({ name: "opening" } & Opened)
  | Up;

export class Connection {
  readonly #platform: Platform;
  readonly #url: string;
  readonly #token: () => Promise<string>;
  readonly #hooks: ConnectionHooks;
  #phase: Phase = { name: "idle" };
  #timers = new Set<() => void>();
  /** Attempts in a row that brought no stable session. */
  #failures = 0;
  /** For networks that block WebSockets. Loaded when it is needed, because few need it. */
  #http: typeof import("./http-socket.js") | undefined;
  #overHttp = false;
  #websocketFailures = WEBSOCKET_FAILURES;

  /** @param token rejects with `token_failed` (retried) or `subscriber_changed` (final). */
  constructor(
    platform: Platform,
    url: string,
    token: () => Promise<string>,
    hooks: ConnectionHooks,
  ) {
    this.#platform = platform;
    this.#url = url;
    this.#token = token;
    this.#hooks = hooks;
  }

  /** Connects; the first attempt uses `token` if it is given. */
  start(token?: string): void {
    if (this.#phase.name !== "idle") return;
    if (token === undefined) return void this.#attempt();
    this.#hooks.connecting();
    this.#open(token);
  }

  /** Ends the session; the next one needs `start`. */
  stop(): void {
    this.#enter({ name: "idle" }, 1000);
  }

  /** Sends if there is a session; the caller repeats important frames after the next `welcome`. */
  send(frame: ClientFrame): void {
    if (this.#phase.name === "up") this.#phase.socket.send(JSON.stringify(frame));
  }

  get transport(): Transport {
    return (this.#phase.name === "up" && this.#phase.socket.transport) || "websocket";
  }

  /**
   * The network or the user is back: skips the back-off, but not a wait that the server requested.
   */
  hurry(): void {
    const phase = this.#phase;
    if (phase.name === "waiting" && this.#platform.now() >= phase.notBefore) void this.#attempt();
    if (phase.name !== "up") return;
    this.#probe(phase);
    phase.socket.hurry?.();
  }

  #enter(phase: Phase, closeCode?: number): void {
    for (const cancel of this.#timers) cancel();
    this.#timers.clear();
    const old = this.#phase;
    this.#phase = phase;
    if (
      (old.name === "opening" || old.name === "up") &&
      !("socket" in phase && phase.socket === old.socket)
    ) {
      // Without a network, the close event takes minutes.
      old.socket.onmessage = old.socket.onclose = null;
      if (closeCode !== undefined) old.socket.close(closeCode);
    }
  }

  /** @returns a function that cancels the timer. */
  #later(ms: number, fn: () => void): () => unknown {
    const cancel = this.#platform.after(ms, () => {
      this.#timers.delete(cancel);
      fn();
    });
    this.#timers.add(cancel);
    return () => this.#timers.delete(cancel) && cancel();
  }

  async #attempt(token?: string): Promise<void> {
    const phase: Phase = { name: "token" };
    this.#enter(phase);
    this.#hooks.connecting();
    token ??= await this.#freshToken(phase);
    if (token === undefined) return;
    if (this.#overHttp) this.#http ??= await import("./http-socket.js").catch(() => undefined);
    if (this.#phase === phase) this.#open(token);
  }

  /** Fetches a token for this phase; `undefined` if that failed and the next step is scheduled. */
  async #freshToken(phase: Phase): Promise<string | undefined> {
    try {
      const token = await this.#token();
      if (this.#phase === phase) return token;
    } catch (cause) {
      if (this.#phase !== phase) return undefined;
      const error = cause as ShopbellError;
      if (error.code === "subscriber_changed") return void this.#finish(error);
      this.#hooks.error(error);
      if (phase.name === "up") this.#retryRefresh(phase);
      else this.#wait();
    }
    return undefined;
  }

  #open(token: string): void {
    let opened: Opened;
    try {
      opened = this.#socket(token, this.#overHttp);
    } catch {
      // No `cause`: its message may contain the token.
      return this.#finish(new ShopbellError("bad_request", "cannot open a WebSocket to this url"));
    }
    this.#enter({ name: "opening", ...opened });
    this.#later(CONNECT_TIMEOUT_MS, () => this.#wait());
    this.#listen(opened.socket);
  }

  #socket(token: string, overHttp: boolean): Opened {
    const query = this.#hooks.query().toString();
    const url = this.#url + (query && `${this.#url.includes("?") ? "&" : "?"}${query}`);
    const socket =
      overHttp && this.#http
        ? new this.#http.HttpSocket(this.#platform, url, token, {
            after: () => this.#hooks.after(),
            open: async () => this.#socket(await this.#token(), false),
            adopt: (opened, data) => {
              this.#enter({ name: "opening", ...opened }, 1000);
              this.#listen(opened.socket);
              this.#onMessage(data);
            },
          })
        : this.#platform.socket(url, [SUBPROTOCOL, BEARER_SUBPROTOCOL_PREFIX + token]);
    return { socket, token, query };
  }

  #listen(socket: SocketLike): void {
    socket.onmessage = ({ data }) => this.#onMessage(data);
    socket.onclose = ({ code, reason }) => this.#onClose(code, reason);
  }

  #onMessage(data: unknown): void {
    if (this.#phase.name === "up") this.#phase.frameAt = this.#platform.now();
    try {
      const frame = parseFrame(data);
      if (frame) this.#onFrame(frame);
    } catch (error) {
      if (!(error instanceof ShopbellError)) throw error;
      this.#hooks.error(error);
      this.#wait({ closeCode: CLOSE_NOT_THE_PROTOCOL });
    }
  }

  #onFrame(frame: ServerFrame): void {
    const phase = this.#phase;
    if (phase.name === "opening") {
      if (frame.type !== "welcome") throw fault(`${frame.type} before welcome`);
      return this.#onWelcome(frame, phase.socket, phase.token);
    }
    if (phase.name !== "up") return;
    switch (frame.type) {
      case "welcome":
        throw fault("a second welcome");
      case "goaway":
        phase.retryAfterMs = frame.retry_after_ms;
        return;
      case "heartbeat":
      case "pong":
        return;
      case "error":
        // The reply to `auth`: the session goes on with the old token.
        if (frame.code === "token_refused") this.#retryRefresh(phase);
    }
    this.#hooks.frame(frame);
  }

  #onWelcome(frame: Welcome, socket: SocketLike, token: string): void {
    const now = this.#platform.now();
    const { exp } = claims(token);
    const lifeMs = frame.token_expires_in * 1000;
    const phase: Up = {
      name: "up",
      socket,
      since: now,
      frameAt: now,
      heartbeatMs: Math.max(1, frame.heartbeat_seconds) * 1000,
      aheadMs: exp === undefined ? undefined : exp * 1000 - lifeMs - now,
      lifeMs,
      authFailures: 0,
      probing: false,
    };
    this.#enter(phase);
    this.#overHttp = !!socket.transport;
    if (!this.#overHttp) this.#websocketFailures = WEBSOCKET_FAILURES_IF_KNOWN;
    this.#checkSilence(phase);
    this.#refreshLater(phase);
    this.#hooks.welcome(frame);
  }

  /** Checks once per heartbeat interval that the server sends frames. */
  #checkSilence(phase: Up): void {
    const dueAt = this.#platform.now() + phase.heartbeatMs;
    this.#later(phase.heartbeatMs, () => {
      const now = this.#platform.now();
      // If the clock was set back, the silence counts from now.
      phase.frameAt = Math.min(phase.frameAt, now);
      const silent = now - phase.frameAt > 2 * phase.heartbeatMs + SILENCE_SLACK_MS;
      // The timer is late: this page slept, and frames may wait behind this task. So probe first.
      if (silent && now - dueAt > SILENCE_SLACK_MS) this.#probe(phase);
      else if (silent) return this.#wait();
      this.#checkSilence(phase);
    });
  }

  #probe(phase: Up): void {
    if (phase.probing) return;
    phase.probing = true;
    phase.frameAt = Math.min(phase.frameAt, this.#platform.now() - 1);
    const frameAt = phase.frameAt;
    this.send({ type: "ping" });
    this.#later(PROBE_TIMEOUT_MS, () => {
      phase.probing = false;
      if (phase.frameAt === frameAt) this.#wait();
    });
  }

  #refreshLater(phase: Up): void {
    const early = phase.lifeMs * REFRESH_AT * (1 - REFRESH_JITTER * this.#platform.random());
    const latest = Math.max(phase.lifeMs - REFRESH_MARGIN_MS, phase.lifeMs / 2, REFRESH_MS_MIN);
    this.#refreshIn(phase, Math.min(Math.max(early, REFRESH_MS_MIN), latest));
  }

  #retryRefresh(phase: Up): void {
    this.#refreshIn(phase, backoff(phase.authFailures++, this.#platform.random()));
  }

  /** Replaces the timer of the last refresh, so that there is one at a time. */
  #refreshIn(phase: Up, ms: number): void {
    phase.stopRefresh?.();
    phase.stopRefresh = this.#later(ms, async () => {
      const token = await this.#freshToken(phase);
      if (token === undefined) return;
      this.send({ type: "auth", token });
      const { exp } = claims(token);
      // By the server's clock. A token without `exp` counts as long as the last one.
      if (exp !== undefined && phase.aheadMs !== undefined) {
        phase.lifeMs = exp * 1000 - this.#platform.now() - phase.aheadMs;
      }
      // An expired token: the server refuses it, and the refusal schedules the next refresh.
      if (phase.lifeMs > 0) this.#refreshLater(phase);
    });
  }

  #onClose(closeCode: number, reason: string): void {
    const { error, transient, retryAfterMs } = closeMeaning(closeCode, reason);
    const phase = this.#phase;
    const refused = phase.name === "opening";
    // The query may be the reason: the client tries without it first.
    if (error && !(refused && phase.query)) return this.#finish(error);
    const reported = refused && (error ?? transient);
    if (reported) this.#hooks.error(reported);
    this.#wait({ retryAfterMs, atOnce: closeCode === CLOSE_TOKEN_EXPIRED, reported: !!reported });
  }

  /** Ends the session and schedules the next attempt, after the server's delay and the back-off. */
  #wait({
    retryAfterMs,
    atOnce = false,
    closeCode = 1000,
    reported = false,
  }: WaitOptions = {}): void {
    const phase = this.#phase;
    if (phase.name === "opening" && !reported) {
      // The network may block this way, so the next attempt goes the other way.
      this.#overHttp = !this.#overHttp && this.#failures >= this.#websocketFailures;
      if (this.#overHttp) {
        this.#enter({ name: "idle" }, closeCode);
        return void this.#attempt(phase.token);
      }
    }
    if (phase.name === "opening" && this.#failures === FAILURES_MAX && !reported) {
      this.#hooks.error(new ShopbellError("connect_failed", "cannot connect"));
    }
    const now = this.#platform.now();
    if (phase.name === "up") {
      if (now - phase.since >= STABLE_MS) this.#failures = 0;
      retryAfterMs ??= phase.retryAfterMs;
    }
    // The server's delay has its own jitter, so the first attempt needs no back-off.
    const immediate = (atOnce || retryAfterMs !== undefined) && this.#failures === 0;
    const ms = Math.max(
      retryAfterMs ?? 0,
      immediate ? 0 : backoff(this.#failures, this.#platform.random()),
    );
    this.#failures++;
    this.#enter({ name: "waiting", notBefore: now + (retryAfterMs ?? 0) }, closeCode);
    this.#later(ms, () => void this.#attempt());
    this.#hooks.waiting(now + ms);
  }

  #finish(error: ShopbellError): void {
    this.#enter({ name: "idle" }, 1000);
    this.#hooks.closed(error);
  }
}

interface WaitOptions {
  retryAfterMs?: number | undefined;
  atOnce?: boolean;
  closeCode?: number;
  /** The app has got the reason already. */
  reported?: boolean;
}

/**
 * Calls the token callback, with a time limit.
 *
 * @throws {@link ShopbellError} `token_failed`.
 */
export async function fetchToken(platform: Platform, source: TokenSource): Promise<string> {
  let cancel = () => {};
  const timeout = new Promise<never>((_, reject) => {
    cancel = platform.after(TOKEN_TIMEOUT_MS, () =>
      reject(new Error(`no token within ${TOKEN_TIMEOUT_MS} ms`)),
    );
  });
  try {
    const token = await Promise.race([source(), timeout]);
    if (typeof token !== "string" || !SENDABLE.test(token)) throw new Error("not a token");
    return token;
  } catch (cause) {
    throw new ShopbellError("token_failed", "the token callback failed", { cause });
  } finally {
    cancel();
  }
}
