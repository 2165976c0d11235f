// For each feed, the highest number that this browser profile has completed. It is stored, so that
// a notification does not ring again if the page is closed between a handler and its ack.

import type { Store } from "./platform.js";
import type { Welcome } from "./protocol.js";

/** The owner of the numbers; the feeds contain the epoch. */
export type Owner = Pick<Welcome, "subscriber" | "device" | "feeds">;

export class CompletedSeqs {
  readonly #store: Store | undefined;
  readonly #url: string;
  /** Values that the store did not accept. */
  #memory = new Map<string, string>();

  constructor(store: Store | undefined, url: string) {
    this.#store = store;
    this.#url = url;
  }

  read(owner: Owner, feed: string): number {
    const key = this.#key(owner, feed);
    let text: string | null | undefined = this.#memory.get(key);
    try {
      text ??= this.#store?.getItem(key);
    } catch {
      // A private window, or storage is forbidden.
    }
    const seq = Number(text);
    return Number.isSafeInteger(seq) && seq > 0 ? seq : 0;
  }

  write(owner: Owner, feed: string, seq: number): void {
    const key = this.#key(owner, feed);
    this.#memory.set(key, String(seq));
    if (!this.#store) return;
    try {
      this.#store.setItem(key, String(seq));
      this.#memory.delete(key);
    } catch {
      // Full or forbidden: the value stays in memory.
    }
  }

  #key({ subscriber, device, feeds }: Owner, feed: string): string {
    return `shopbell:${JSON.stringify([this.#url, subscriber, device, feed, feeds[0]?.epoch])}`;
  }
}
