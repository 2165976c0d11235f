// The app's watchers of the client's own state.

import type { ShopbellError } from "./errors.js";
import type { Notification } from "./events.js";
import type { Counts } from "./feeds.js";
import type { State } from "./protocol.js";
import type { Status } from "./status.js";

/** The values that {@link Client.watch} passes to a watcher, by name. */
export interface Watched {
  /** The status of the connection changed. */
  status: Status;
  /** A count changed. */
  counts: Counts;
  /** Notifications were marked as read or handled. */
  state: State;
  /** The replay is complete; later notifications are live. Once in each session. */
  caught_up: undefined;
  /** This tab missed something of the feed: fetch its history again. */
  resync: { feed: string };
  /**
   * The client recovers from this error by itself. `notification` is set if a handler failed on it.
   * If the app watches no errors, they go to the console.
   */
  error: { error: ShopbellError; notification?: Notification };
}

export class Watchers {
  readonly #watchers = new Map<keyof Watched, Set<(value: never) => void>>();

  /** @returns a function that removes the watcher. */
  add<Name extends keyof Watched>(name: Name, watcher: (value: Watched[Name]) => void): () => void {
    const watchers = this.#watchers.get(name) ?? new Set();
    this.#watchers.set(name, watchers);
    watchers.add(watcher);
    return () => void watchers.delete(watcher);
  }

  emit<Name extends keyof Watched>(name: Name, value: Watched[Name]): void {
    for (const watcher of [...(this.#watchers.get(name) ?? [])]) {
      try {
        (watcher as (value: Watched[Name]) => void)(value);
      } catch (error) {
        // Thrown later, as an uncaught error of the page, so that the current frame is completed.
        queueMicrotask(() => {
          throw error;
        });
      }
    }
  }

  fail(error: ShopbellError, notification?: Notification): void {
    if (!this.#watchers.get("error")?.size) console.error(error);
    this.emit("error", { error, ...(notification && { notification }) });
  }
}
