// The state of a client. Types only.

import type { ShopbellError } from "./errors.js";
import type { Counts } from "./feeds.js";
import type { Transport } from "./socket.js";

/** State of the connection; the same in every tab that shares it. */
export type Status =
  /** The client fetches a token or opens a connection. */
  | { readonly state: "connecting" }
  /** Connected; the server replays stored notifications. */
  | { readonly state: "catching_up"; readonly transport: Transport }
  /** Connected and caught up. */
  | { readonly state: "live"; readonly transport: Transport }
  /** Not connected. The next attempt is at `retryAt` (milliseconds since 1970) or earlier. */
  | { readonly state: "waiting"; readonly retryAt: number }
  /** The client does not connect again: the app closed it, or `error` gives the reason. */
  | { readonly state: "closed"; readonly error?: ShopbellError };

/** Status and counts at one moment; the same object until one of them changes. */
export interface Snapshot {
  readonly status: Status;
  readonly counts: Counts;
}
