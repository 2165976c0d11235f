// The wire of `shopbell.v1`: frames, close codes, and the check of what comes. No I/O.

import type { Notification } from "./events.js";
import { ShopbellError, type ErrorCode } from "./errors.js";

/** The subprotocol, and the prefix of the second one that carries a browser's token. */
export const SUBPROTOCOL = "shopbell.v1";
export const BEARER_SUBPROTOCOL_PREFIX = "bearer.";

/** One feed in `welcome`. */
export interface WelcomeFeed {
  feed: string;
  /** This session gets everything after this number. */
  cursor: number;
  /** The newest number stored: the counts are as of it. */
  last: number;
  unread: number;
  unhandled: number;
  /** The newest state change; a server before states has none. */
  version?: number;
  /** Identity of the numbering, the same in all feeds; a server before epochs has none. */
  epoch?: string;
  /** The broadcast feed: its counts are nobody's. */
  shared?: boolean;
}

export interface Welcome {
  type: "welcome";
  session: string;
  subscriber: string;
  /** Empty where unnamed. */
  device: string;
  /** Most notifications outstanding. */
  window: number;
  heartbeat_seconds: number;
  token_expires_in: number;
  feeds: WelcomeFeed[];
}

export interface Skipped {
  type: "skipped";
  feed: string;
  from: number;
  through: number;
  reason: string;
}

export interface CaughtUp {
  type: "caught_up";
  feed: string;
  seq: number;
}

/** Somebody read or handled these; also the answer to the one who did. */
export interface State {
  type: "state";
  feed: string;
  /** These, or … */
  seqs?: number[];
  /** … all up to this. */
  through?: number;
  /** RFC 3339. */
  read_at?: string;
  /** RFC 3339. */
  handled_at?: string;
  handled_by?: string;
  unread: number;
  unhandled: number;
  /** The counts are as of this number. */
  last: number;
  /** 1, 2, 3 … in each feed; absent where the frame only answers the asker. */
  version?: number;
}

export type ServerFrame =
  | Welcome
  | Notification
  | Skipped
  | CaughtUp
  | State
  | { type: "heartbeat" }
  | { type: "goaway"; retry_after_ms: number }
  | { type: "pong" }
  | { type: "error"; code: string; message: string; feed?: string };

export type ClientFrame =
  | { type: "ack"; feed: string; seq: number }
  | { type: "read" | "handle"; feed: string; seqs: number[] }
  | { type: "read"; feed: string; through: number }
  | { type: "auth"; token: string }
  | { type: "ping" };

/**
 * Reads a frame. Unknown fields pass; a type that this client does not know is `undefined`, for newer servers.
 *
 * @throws {@link ShopbellError} `protocol_fault` where it is no frame, or a known one lacks what the client builds on.
 */
export function parseFrame(text: unknown): ServerFrame | undefined {
  let frame: unknown;
  try {
    frame = JSON.parse(text as string);
  } catch {
    throw fault("a frame without JSON");
  }
  if (!isObject(frame) || typeof frame.type !== "string") throw fault("a frame without a type");
  if (!Object.hasOwn(CHECKS, frame.type)) return undefined;
  if (!CHECKS[frame.type as keyof typeof CHECKS](frame))
    throw fault(`a broken ${frame.type} frame`);
  return frame as unknown as ServerFrame;
}

type Fields = Record<string, unknown>;

// What the client computes with is checked; what it only hands on is the server's word.
const CHECKS: Record<ServerFrame["type"], (frame: Fields) => boolean> = {
  welcome: (f) =>
    isText(f.subscriber) &&
    isText(f.device) &&
    isCount(f.window) &&
    isCount(f.heartbeat_seconds) &&
    typeof f.token_expires_in === "number" &&
    Array.isArray(f.feeds) &&
    f.feeds.every(
      (feed) =>
        isObject(feed) &&
        isText(feed.feed) &&
        isText(feed.epoch ?? "") &&
        [feed.cursor, feed.last, feed.unread, feed.unhandled, feed.version ?? 0].every(isCount),
    ),
  notification: (f) => isText(f.feed) && isSeq(f.seq) && isText(f.event),
  skipped: (f) => isText(f.feed) && isSeq(f.from) && isSeq(f.through) && f.through >= f.from,
  caught_up: (f) => isText(f.feed) && isCount(f.seq),
  state: (f) =>
    isText(f.feed) &&
    [f.unread, f.unhandled, f.last, f.version ?? 0, f.through ?? 0].every(isCount) &&
    (f.through !== undefined || (Array.isArray(f.seqs) && f.seqs.every(isSeq))),
  heartbeat: () => true,
  goaway: (f) => isCount(f.retry_after_ms),
  pong: () => true,
  error: (f) => isText(f.code) && isText(f.message),
};

function isObject(value: unknown): value is Fields {
  return typeof value === "object" && value !== null;
}
function isText(value: unknown): value is string {
  return typeof value === "string";
}
function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}
function isSeq(value: unknown): value is number {
  return isCount(value) && value > 0;
}

export function fault(message: string): ShopbellError {
  return new ShopbellError("protocol_fault", `the server sent ${message}`);
}

/** With which code the client closes a session in which the server broke the protocol. */
export const CLOSE_NOT_THE_PROTOCOL = 4500;
/** The token expired: a new one, then again. */
export const CLOSE_TOKEN_EXPIRED = 4401;

// The contract's table, where it says: do not come back. Every other code is a reason to come back.
const FINAL: Record<number, ErrorCode> = {
  1002: "broken_framing",
  1003: "not_text",
  1007: "not_utf8",
  1009: "too_big",
  4500: "not_the_protocol",
  4501: "token_refused",
  4503: "no_feed",
};

/** What a close means. */
export interface CloseMeaning {
  /** Set where the client must not come back. */
  error?: ShopbellError;
  /** The server's reason, where the client may come back. */
  passing?: ShopbellError | undefined;
  /** The server's wish, in milliseconds. */
  retryAfterMs?: number | undefined;
}

/** Reads a close: the code decides, the reason (small JSON, or anything where a proxy closed) adds to it. */
export function closeMeaning(closeCode: number, reason: string): CloseMeaning {
  let said: Fields = {};
  try {
    const json: unknown = JSON.parse(reason);
    if (isObject(json)) said = json;
  } catch {
    // Not the server's own words.
  }
  const { code = FINAL[closeCode], message = "", retry_after_ms: wait } = said;
  const error = new ShopbellError(
    isText(code) ? code : "closed_for_good",
    `the server closed with ${closeCode} ${code} ${message}`,
    { closeCode },
  );
  if (FINAL[closeCode] || (closeCode >= 4500 && closeCode <= 4999)) return { error };
  return {
    passing: isText(code) ? error : undefined,
    retryAfterMs: isCount(wait) ? wait : undefined,
  };
}
