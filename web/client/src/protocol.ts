// The protocol `shopbell.v1`: frames, close codes, and the check of received frames. No I/O.

import type { Notification } from "./events.js";
import { ShopbellError, type ErrorCode } from "./errors.js";

/** The subprotocol, and the prefix of the second one, which carries the token. */
export const SUBPROTOCOL = "shopbell.v1";
export const BEARER_SUBPROTOCOL_PREFIX = "bearer.";

/** One feed in `welcome`. */
export interface WelcomeFeed {
  feed: string;
  /** The session receives the notifications after this number. */
  cursor: number;
  /** The newest stored number; the counts are as of it. */
  last: number;
  unread: number;
  unhandled: number;
  /** The newest mark of the feed; absent from old servers. */
  version?: number;
  /** Identity of the numbering, the same in all feeds; absent from old servers. */
  epoch?: string;
  /** `true` for the broadcast feed if the token may not mark its notifications. */
  shared?: boolean;
}

export interface Welcome {
  type: "welcome";
  session: string;
  subscriber: string;
  /** Empty if the client named none. */
  device: string;
  /** Limit on unacked notifications. */
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

/** A mark: somebody read or handled these notifications. Also the reply to the own request. */
export interface State {
  type: "state";
  feed: string;
  /** The marked notifications. */
  seqs?: number[];
  /** Instead of `seqs`: everything up to this number is marked. */
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
  /**
   * Counts the marks of the feed from 1; absent if the frame is only a reply to your own request.
   */
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
 * Parses a frame. Keeps unknown fields. Returns `undefined` for a type that only newer servers
 * send.
 *
 * @throws {@link ShopbellError} `protocol_fault` if it is not a frame or lacks a needed field.
 */
export function parseFrame(text: unknown): ServerFrame | undefined {
  let frame: unknown;
  try {
    frame = JSON.parse(text as string);
  } catch {
    // Not an object, as checked below.
  }
  if (!isObject(frame) || !isText(frame.type)) throw fault("an invalid frame");
  if (!Object.hasOwn(CHECKS, frame.type)) return undefined;
  if (!CHECKS[frame.type as keyof typeof CHECKS](frame))
    throw fault(`an invalid ${frame.type} frame`);
  return frame as unknown as ServerFrame;
}

type Fields = Record<string, unknown>;

// Checks the fields that the client computes with, not those that it only passes to the app.
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

/** Sent by the client if the server violates the protocol. */
export const CLOSE_NOT_THE_PROTOCOL = 4500;
/** The token expired: the client reconnects with a new one. */
export const CLOSE_TOKEN_EXPIRED = 4401;

// Close codes after which the client must not reconnect; with 4500 to 4999, the only ones.
const FINAL: Record<number, ErrorCode> = {
  1002: "broken_framing",
  1003: "not_text",
  1007: "not_utf8",
  1009: "too_big",
  4500: "not_the_protocol",
  4501: "token_refused",
  4503: "no_feed",
};

/** How the client reacts to a close. */
export interface CloseMeaning {
  /** Set if the client must not reconnect. */
  error?: ShopbellError;
  /** The server's reason, if the client may reconnect. */
  transient?: ShopbellError | undefined;
  /** The delay that the server requests, in milliseconds. */
  retryAfterMs?: number | undefined;
}

/**
 * The code decides; the reason adds to it if it is the server's JSON. A proxy may send any text.
 */
export function closeMeaning(closeCode: number, reason: string): CloseMeaning {
  let fields: Fields = {};
  try {
    const json: unknown = JSON.parse(reason);
    if (isObject(json)) fields = json;
  } catch {
    // Not from the server.
  }
  const { code = FINAL[closeCode], message = "", retry_after_ms: wait } = fields;
  const error = new ShopbellError(
    isText(code) ? code : "closed_for_good",
    `the server closed with ${closeCode} ${code} ${message}`,
    { closeCode },
  );
  if (FINAL[closeCode] || (closeCode >= 4500 && closeCode <= 4999)) return { error };
  return {
    transient: isText(code) ? error : undefined,
    retryAfterMs: isCount(wait) ? wait : undefined,
  };
}
