// The errors of this package: one class, distinguished by `code`.

/** The reason, for programs. Other codes of the server are passed on unchanged. */
export type ErrorCode =
  /** The browser rejects `url`, or close code 4500: a parameter such as `device` is invalid. */
  | "bad_request"
  /** The app closed the client; open calls of `read` and `handle` reject with it. */
  | "closed"
  /** A handler of the app threw or rejected; the client calls it again. */
  | "handler_failed"
  /** The `token` callback failed, took too long or returned no token; the client calls it again. */
  | "token_failed"
  /** The `token` callback returned a token of another subscriber: call `connect` again. */
  | "subscriber_changed"
  /** Close code 4501: the server does not accept the token (signature, audience, issuer …). */
  | "token_refused"
  /** Close code 4503: the token names no feed that may be read. */
  | "no_feed"
  /** Close code 4402: the token's `nbf` is in the future; the client reconnects later. */
  | "token_not_valid_yet"
  /** Several attempts in a row failed, and the browser does not show why; the client retries. */
  | "connect_failed"
  /** The server violated the protocol, for example with a gap; the client reconnects. */
  | "protocol_fault"
  /** `read` or `handle` of a number that does not exist. */
  | "unknown_seq"
  /** `read` or `handle` on the shared broadcast feed. */
  | "read_only"
  /** The token does not name the feed. */
  | "unknown_feed"
  /** The history request failed: see `status`. */
  | "http_failed"
  | (string & {});

/** The body of a failed history request (RFC 9457). */
export interface Problem {
  type?: string;
  title?: string;
  status?: number;
  detail?: string;
  [extension: string]: unknown;
}

/** Every error that this package throws, rejects with, or reports. */
export class ShopbellError extends Error {
  /** The reason, for programs. */
  readonly code: ErrorCode;
  /** The WebSocket close code, if a close was the reason. */
  readonly closeCode?: number;
  /** The HTTP status, if a response was the reason. */
  readonly status?: number;
  /** The problem, if the response contained one. */
  readonly problem?: Problem;

  constructor(
    code: ErrorCode,
    message: string,
    more: { cause?: unknown; closeCode?: number; status?: number; problem?: Problem } = {},
  ) {
    super(message, more);
    this.name = "ShopbellError";
    this.code = code;
    const { cause: _, ...rest } = more;
    Object.assign(this, rest);
  }
}
