// How the client is, in one word each. Types only.

import type { ShopbellError } from "./errors.js";

/** How the connection is; the same in every tab that shares it. */
export type Status =
  /** A token is being fetched, or a connection made. */
  | { readonly state: "connecting" }
  /** Connected; what was stored before is still coming. */
  | { readonly state: "catching_up" }
  /** Connected, and nothing is missing. */
  | { readonly state: "live" }
  /** Not connected; tried again at `retryAt` (milliseconds since 1970), or sooner when the network or a person returns. */
  | { readonly state: "waiting"; readonly retryAt: number }
  /** It will not connect again: the app closed it, or `error` says why. */
  | { readonly state: "closed"; readonly error?: ShopbellError };
