// The app's handlers: one notification at a time in each feed, each handler until it succeeds.

import { backoff } from "./backoff.js";
import { ShopbellError } from "./errors.js";
import { matches, type Notification } from "./events.js";

/**
 * Handles a notification; may be asynchronous. Called again until it neither throws nor rejects.
 */
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

  /** Runs all matching handlers in order, each until it succeeds. */
  async run(notification: Notification, retry: Retry): Promise<void> {
    const { event, feed, seq } = notification;
    for (const entry of [...this.#entries]) {
      if (!matches(entry.pattern, event)) continue;
      // The app may remove a handler while it fails.
      for (let attempt = 0; this.#entries.has(entry); attempt++) {
        try {
          await entry.handler(notification);
          break;
        } catch (cause) {
          const message = `a handler failed on ${event} ${feed}/${seq}`;
          retry.failed(new ShopbellError("handler_failed", message, { cause }), notification);
          await retry.wait(backoff(attempt, retry.random()));
        }
      }
    }
  }
}

/** How to report a failure and to wait for the next try. */
export interface Retry {
  failed(error: ShopbellError, notification: Notification): void;
  /** Resolves after `ms`; never if the client is closed. */
  wait(ms: number): Promise<void>;
  random(): number;
}

/** Runs jobs one at a time in each feed; feeds do not wait for each other. */
export class Lanes {
  #lanes = new Map<string, { tail: Promise<void>; length: number }>();

  /** Number of unfinished jobs of this feed. */
  length(feed: string): number {
    return this.#lanes.get(feed)?.length ?? 0;
  }

  /** Resolves when the job is done. A job must not reject. */
  add(feed: string, job: () => Promise<void>): Promise<void> {
    const lane = this.#lanes.get(feed) ?? { tail: Promise.resolve(), length: 0 };
    this.#lanes.set(feed, lane);
    lane.length++;
    lane.tail = lane.tail.then(job).finally(() => lane.length--);
    return lane.tail;
  }
}
