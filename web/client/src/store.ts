// Up to where this browser profile has handled each feed, kept across reloads: a page that goes away after a handler
// resolved and before the server has the ack must not ring again.

import type { Store } from "./platform.js";
import type { Welcome } from "./protocol.js";

/** Whose marks these are, and of which epoch: numbers of another one are about other notifications. */
export type Owner = Pick<Welcome, "subscriber" | "device" | "feeds">;

export class Marks {
  readonly #store: Store | undefined;
  readonly #url: string;
  /** What the store did not take. */
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
      // A private window, or storage that was forbidden meanwhile.
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
      // Full or forbidden: what is in memory serves until the page goes.
    }
  }

  #key({ subscriber, device, feeds }: Owner, feed: string): string {
    return `shopbell:${JSON.stringify([this.#url, subscriber, device, feed, feeds[0]?.epoch])}`;
  }
}
