// One connection's life, over and over: token, socket, welcome, liveness, close, wait. Frames go in and out as they are;
// what they mean is for others. Every timer belongs to a phase and dies with it, so nothing late can reach a new one.

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

/** A token callback may take so long. */
export const TOKEN_TIMEOUT_MS = 15_000;
/** A connection may take so long from its first byte to `welcome`. */
export const CONNECT_TIMEOUT_MS = 10_000;
/** A connection is dead after two heartbeats' silence and this, for a network that hiccups. */
export const SILENCE_SLACK_MS = 5_000;
/** The answer to a `ping` may take so long. */
export const PROBE_TIMEOUT_MS = 3_000;
/** A connection that lived so long was a good one: the next failure is the first again. */
export const STABLE_MS = 5_000;
/** An app hears of a connection that cannot be made after so many failures in a row: the network may only hiccup. */
export const UNSEEN_MAX = 2;
/** A token is replaced after this part of its life … */
export const REFRESH_AT = 0.8;
/** … or up to so much of that earlier, so that a shop's tabs do not all ask at once … */
export const REFRESH_JITTER = 0.1;
/** … and so long before its end at the latest, if it lives that long. */
export const REFRESH_MARGIN_MS = 10_000;
/** An app that hands out a token about to expire is not asked more often than this. */
export const REFRESH_MS_MIN = 1_000;

/** What a subprotocol may be made of: a token in the sense of RFC 7230. */
const SENDABLE = /^[\w!#$%&'*+.^`|~-]+$/;

/** Where the app's token comes from. */
export type TokenSource = () => string | Promise<string>;

/** What a connection tells its owner. */
export interface ConnectionHooks {
  /** The query of the next attempt's address. */
  query(): URLSearchParams;
  connecting(): void;
  /** The first frame of a session. */
  welcome(frame: Welcome): void;
  /** Any later one. Throws where it breaks the protocol: then the session ends. */
  frame(frame: ServerFrame): void;
  /** No session; the next attempt is due at `retryAt` (milliseconds since 1970). */
  waiting(retryAt: number): void;
  /** It goes on by itself, but the app should know. */
  error(error: ShopbellError): void;
  /** It will not come back. */
  closed(error: ShopbellError): void;
}

interface Up {
  name: "up";
  socket: SocketLike;
  since: number;
  heardAt: number;
  heartbeatMs: number;
  /** How far the server's clock is ahead of ours, as the token shows; unknown where the token does not say. */
  aheadMs: number | undefined;
  lifeMs: number;
  authFailures: number;
  /** From `goaway`. */
  retryAfterMs?: number;
  probing: boolean;
}

type Phase =
  | { name: "idle" }
  | { name: "waiting"; notBefore: number }
  | { name: "token" }
  | { name: "opening"; socket: SocketLike; token: string; query: string }
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

  /** @param token a fresh one. Rejects with `token_failed`: then again; or with `subscriber_changed`: then never. */
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

  /** Connects; `token` serves the first attempt where the caller has just got it. */
  start(token?: string): void {
    if (this.#phase.name !== "idle") return;
    if (token === undefined) return void this.#attempt();
    this.#hooks.connecting();
    this.#open(token);
  }

  /** Ends the session, and makes no other until `start`. */
  stop(): void {
    this.#enter({ name: "idle" }, 1000);
  }

  /** Sends where there is a session; what must arrive is sent again by its owner after the next `welcome`. */
  send(frame: ClientFrame): void {
    if (this.#phase.name === "up") this.#phase.socket.send(JSON.stringify(frame));
  }

  /** A good moment: the network came back, or somebody looks. Skips our own wait, never one that the server wished for. */
  hurry(): void {
    const phase = this.#phase;
    if (phase.name === "waiting" && this.#platform.now() >= phase.notBefore) void this.#attempt();
    if (phase.name === "up") this.#probe(phase);
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
      // Where the network is gone the close event takes minutes: the session ends here and now.
      old.socket.onmessage = old.socket.onclose = null;
      if (closeCode !== undefined) old.socket.close(closeCode);
    }
  }

  #later(ms: number, fn: () => void): void {
    const cancel = this.#platform.after(ms, () => {
      this.#timers.delete(cancel);
      fn();
    });
    this.#timers.add(cancel);
  }

  async #attempt(): Promise<void> {
    const phase: Phase = { name: "token" };
    this.#enter(phase);
    this.#hooks.connecting();
    const token = await this.#freshToken(phase);
    if (token !== undefined) this.#open(token);
  }

  /** A token for this phase, or `undefined`: then the next step is already decided. */
  async #freshToken(phase: Phase): Promise<string | undefined> {
    try {
      const token = await this.#token();
      if (this.#phase === phase) return token;
    } catch (cause) {
      if (this.#phase !== phase) return undefined;
      const error = cause as ShopbellError;
      if (error.code === "subscriber_changed") return void this.#finish(error);
      this.#hooks.error(error);
      if (phase.name === "up")
        this.#refreshIn(phase, backoff(phase.authFailures++, this.#platform.random()));
      else this.#wait();
    }
    return undefined;
  }

  #open(token: string): void {
    const query = this.#hooks.query().toString();
    let socket: SocketLike;
    try {
      const url = query && `${this.#url.includes("?") ? "&" : "?"}${query}`;
      socket = this.#platform.socket(this.#url + url, [
        SUBPROTOCOL,
        BEARER_SUBPROTOCOL_PREFIX + token,
      ]);
    } catch {
      // Without the cause, whose message may quote the token.
      return this.#finish(
        new ShopbellError("bad_request", "this address cannot be connected with"),
      );
    }
    this.#enter({ name: "opening", socket, token, query });
    this.#later(CONNECT_TIMEOUT_MS, () => this.#wait());
    socket.onmessage = ({ data }) => this.#onMessage(data);
    socket.onclose = ({ code, reason }) => this.#onClose(code, reason);
  }

  #onMessage(data: unknown): void {
    if (this.#phase.name === "up") this.#phase.heardAt = this.#platform.now();
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
        // Refused by `auth`: the old token still counts, so there is time to get a better one.
        if (frame.code === "token_refused")
          this.#refreshIn(phase, backoff(phase.authFailures++, this.#platform.random()));
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
      heardAt: now,
      heartbeatMs: Math.max(1, frame.heartbeat_seconds) * 1000,
      aheadMs: exp === undefined ? undefined : exp * 1000 - lifeMs - now,
      lifeMs,
      authFailures: 0,
      probing: false,
    };
    this.#enter(phase);
    this.#watch(phase);
    this.#refreshLater(phase);
    this.#hooks.welcome(frame);
  }

  /** Looks once a heartbeat whether the server was heard. */
  #watch(phase: Up): void {
    const dueAt = this.#platform.now() + phase.heartbeatMs;
    this.#later(phase.heartbeatMs, () => {
      const now = this.#platform.now();
      // A clock that was set back must not hide a silence for as long as it was set back.
      phase.heardAt = Math.min(phase.heardAt, now);
      const silent = now - phase.heardAt > 2 * phase.heartbeatMs + SILENCE_SLACK_MS;
      // A late timer says that this page slept, not that the server did: frames may wait behind this very task. Ask.
      if (silent && now - dueAt > SILENCE_SLACK_MS) this.#probe(phase);
      else if (silent) return this.#wait();
      this.#watch(phase);
    });
  }

  #probe(phase: Up): void {
    if (phase.probing) return;
    phase.probing = true;
    phase.heardAt = Math.min(phase.heardAt, this.#platform.now() - 1);
    const heardAt = phase.heardAt;
    this.send({ type: "ping" });
    this.#later(PROBE_TIMEOUT_MS, () => {
      phase.probing = false;
      if (phase.heardAt === heardAt) this.#wait();
    });
  }

  #refreshLater(phase: Up): void {
    const early = phase.lifeMs * REFRESH_AT * (1 - REFRESH_JITTER * this.#platform.random());
    const latest = Math.max(phase.lifeMs - REFRESH_MARGIN_MS, phase.lifeMs / 2, REFRESH_MS_MIN);
    this.#refreshIn(phase, Math.min(Math.max(early, REFRESH_MS_MIN), latest));
  }

  #refreshIn(phase: Up, ms: number): void {
    this.#later(ms, async () => {
      const token = await this.#freshToken(phase);
      if (token === undefined) return;
      this.send({ type: "auth", token });
      const { exp } = claims(token);
      // The server's clock decides, so its lead is added; a token that does not say lives as long as the last one.
      if (exp !== undefined && phase.aheadMs !== undefined) {
        phase.lifeMs = exp * 1000 - this.#platform.now() - phase.aheadMs;
      }
      // An expired one out of the app's cache: the server refuses it, and that answer sets the next try.
      if (phase.lifeMs > 0) this.#refreshLater(phase);
    });
  }

  #onClose(closeCode: number, reason: string): void {
    const { error, passing, retryAfterMs } = closeMeaning(closeCode, reason);
    const phase = this.#phase;
    const refused = phase.name === "opening";
    // What was refused for its query is tried without it before that is final.
    if (error && !(refused && phase.query)) return this.#finish(error);
    const reported = refused && (error ?? passing);
    if (reported) this.#hooks.error(reported);
    this.#wait({ retryAfterMs, atOnce: closeCode === CLOSE_TOKEN_EXPIRED, reported: !!reported });
  }

  /** No session: the next attempt comes after the server's wish and, if this is not the first failure, a jittered wait. */
  #wait({ retryAfterMs, atOnce = false, closeCode = 1000, reported = false }: Wish = {}): void {
    const phase = this.#phase;
    if (phase.name === "opening" && this.#failures === UNSEEN_MAX && !reported) {
      this.#hooks.error(new ShopbellError("connect_failed", "the connection failed"));
    }
    const now = this.#platform.now();
    if (phase.name === "up") {
      if (now - phase.since >= STABLE_MS) this.#failures = 0;
      retryAfterMs ??= phase.retryAfterMs;
    }
    // A server's wish is spread at random already. But what happens at once must not happen at once for ever.
    const told = (atOnce || retryAfterMs !== undefined) && this.#failures === 0;
    const ms = Math.max(
      retryAfterMs ?? 0,
      told ? 0 : backoff(this.#failures, this.#platform.random()),
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

interface Wish {
  retryAfterMs?: number | undefined;
  atOnce?: boolean;
  closeCode?: number;
  /** The app knows why. */
  reported?: boolean;
}

/**
 * Asks the app for a token, under a limit.
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
    if (typeof token !== "string" || !SENDABLE.test(token))
      throw new Error("the token callback gave no token");
    return token;
  } catch (cause) {
    throw new ShopbellError("token_failed", "the token callback failed", { cause });
  } finally {
    cancel();
  }
}
