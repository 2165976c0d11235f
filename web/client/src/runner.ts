// Runs the app's handlers in this tab.

import type { CompletedSeqs } from "./completed.js";
import type { Notification } from "./events.js";
import type { Feeds } from "./feeds.js";
import { Handlers, Lanes, type Retry } from "./handlers.js";
import type { Welcome } from "./protocol.js";

/**
 * Bound on the notifications of a feed that wait for every-tab handlers; above it the tab resyncs.
 */
export const WAITING_MAX = 1_000;

export interface RunnerHooks extends Retry {
  /** The one-tab handlers have completed this notification. */
  rung(completed: { feed: string; seq: number; key: string }): unknown;
  /** The tab skipped notifications because its handlers were too slow. */
  resync(feed: string): void;
}

export class Runner {
  readonly everyTab = new Handlers();
  readonly oneTab = new Handlers();
  readonly #feeds: Feeds;
  readonly #completed: CompletedSeqs;
  readonly #hooks: RunnerHooks;
  readonly #lanes = new Lanes();
  /** Every-tab handlers that are running or waiting, by `Feeds.key`. */
  readonly #running = new Map<string, Promise<void>>();
  readonly #ringing = new Set<string>();
  readonly #overflowed = new Set<string>();

  constructor(feeds: Feeds, completed: CompletedSeqs, hooks: RunnerHooks) {
    this.#feeds = feeds;
    this.#completed = completed;
    this.#hooks = hooks;
  }

  /** Notifications whose one-tab handlers run now, by `Feeds.key`. */
  ringing(): string[] {
    return [...this.#ringing];
  }

  /** Runs the every-tab handlers, once for each notification. */
  run(notification: Notification): void {
    const { feed } = notification;
    if (!this.#feeds.take(notification)) return;
    if (this.#lanes.length(feed) >= WAITING_MAX) {
      if (this.#overflowed.has(feed)) return;
      this.#overflowed.add(feed);
      return void this.#lanes.add(feed, async () => {
        this.#overflowed.delete(feed);
        this.#hooks.resync(feed);
      });
    }
    const key = this.#feeds.key(notification);
    const done = this.#lanes.add(feed, () => this.everyTab.run(notification, this.#hooks));
    this.#running.set(key, done);
    void done.then(() => this.#running.delete(key));
  }

  /** Runs the one-tab handlers after the every-tab handlers: the leader chose this tab. */
  async ring(notification: Notification, owner: Welcome | undefined): Promise<void> {
    const { feed, seq } = notification;
    // Computed before the handlers run, because the epoch may change while they do.
    const key = this.#feeds.key(notification);
    if (this.#ringing.has(key) || !owner) return;
    this.#ringing.add(key);
    this.run(notification);
    await this.#running.get(key);
    // Another tab may have completed it: while this tab was frozen, or without a shared channel.
    if (this.#completed.read(owner, feed) < seq) {
      await this.oneTab.run(notification, this.#hooks);
      if (this.#completed.read(owner, feed) < seq) this.#completed.write(owner, feed, seq);
    }
    this.#ringing.delete(key);
    this.#hooks.rung({ feed, seq, key });
  }
}
