// What can go wrong, as an app sees it: one class, told apart by `code`. Knows nobody of ours.

/** Why something failed, for programs; what the server says under another code comes through as it is. */
export type ErrorCode =
  /** `url` cannot be used for a WebSocket at all, or close code 4500: a parameter of the handshake, such as the device's name. */
  | "bad_request"
  /** The app closed the client; a promise of `read` or `handle` that was open is rejected with it. */
  | "closed"
  /** A handler of the app threw or rejected; it is tried again. */
  | "handler_failed"
  /** The `token` callback threw, rejected, took too long or gave no usable token; it is tried again. */
  | "token_failed"
  /** The `token` callback returned a token of somebody else: connect anew for another subscriber. */
  | "subscriber_changed"
  /** Close code 4501: signature, audience, issuer … of the token. */
  | "token_refused"
  /** Close code 4503: the token names no feed that may be read. */
  | "no_feed"
  /** Close code 4402: the token's `nbf` is in the future; the client connects anew when the server wants it. */
  | "token_not_valid_yet"
  /** Several attempts in a row failed without a reason that a page can see; the client goes on trying. */
  | "connect_failed"
  /** The server said what the protocol does not allow, a gap for example; the client connects anew. */
  | "protocol_fault"
  /** `read` or `handle` of a number that is not stored. */
  | "unknown_seq"
  /** `read` or `handle` on the shared broadcast feed. */
  | "read_only"
  /** A feed that the token does not name. */
  | "unknown_feed"
  /** The history could not be fetched: see `status`. */
  | "http_failed"
  | (string & {});

/** An RFC 9457 problem, as the history's HTTP answers have it. */
export interface Problem {
  type?: string;
  title?: string;
  status?: number;
  detail?: string;
  [extension: string]: unknown;
}

/** Everything this package throws, rejects with, or reports. */
export class ShopbellError extends Error {
  /** Why, for programs. */
  readonly code: ErrorCode;
  /** The WebSocket's close code, where a close was the reason. */
  readonly closeCode?: number;
  /** The HTTP status, where an answer was the reason. */
  readonly status?: number;
  /** The problem document, where the answer brought one. */
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
