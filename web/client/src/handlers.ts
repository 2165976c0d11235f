// The app's handlers, and running them: one notification after the other in each feed, each handler until it succeeds.

import { backoff } from "./backoff.js";
import { ShopbellError } from "./errors.js";
import { matches, type Notification } from "./events.js";

/** Does something about a notification; may be asynchronous, and is tried again until it neither throws nor rejects. */
export type Handler<N extends Notification = Notification> = (notification: N) => unknown;

interface Entry {
  pattern: string;
  handler: Handler;
}

/** Handlers by pattern, in the order in which they were added. */
export class Handlers {
  #entries = new Set<Entry>();

  add(pattern: string, handler: Handler): () => void {
    const entry = { pattern, handler };
    this.#entries.add(entry);
    return () => void this.#entries.delete(entry);
  }

  patterns(): string[] {
    return [...new Set([...this.#entries].map(({ pattern }) => pattern))];
  }

  /** Runs all that match. Those that failed are tried again, never those that succeeded; resolves when none is left. */
  async run(notification: Notification, retry: Retry): Promise<void> {
    const left = [...this.#entries].filter(({ pattern }) => matches(pattern, notification.event));
    for (let attempt = 0; left.length > 0;) {
      const entry = left[0] as Entry;
      try {
        // One that was taken away meanwhile has no say any more.
        if (this.#entries.has(entry)) await entry.handler(notification);
        left.shift();
        attempt = 0;
      } catch (cause) {
        const what = `a handler failed on ${notification.event} ${notification.feed}/${notification.seq}`;
        retry.failed(new ShopbellError("handler_failed", what, { cause }), notification);
        await retry.wait(backoff(attempt++, retry.random()));
      }
    }
  }
}

/** What trying again needs of the world. */
export interface Retry {
  failed(error: ShopbellError, notification: Notification): void;
  /** Resolves after `ms`, or never where the client was closed. */
  wait(ms: number): Promise<void>;
  random(): number;
}

/** Runs jobs one after the other in each feed; a feed that waits holds up no other. */
export class Lanes {
  #lanes = new Map<string, { tail: Promise<void>; length: number }>();

  /** How many jobs of this feed are not done. */
  length(feed: string): number {
    return this.#lanes.get(feed)?.length ?? 0;
  }

  /** Resolves when this job is done. A job never rejects. */
  add(feed: string, job: () => Promise<void>): Promise<void> {
    const lane = this.#lanes.get(feed) ?? { tail: Promise.resolve(), length: 0 };
    this.#lanes.set(feed, lane);
    lane.length++;
    lane.tail = lane.tail.then(job).finally(() => lane.length--);
    return lane.tail;
  }
}
