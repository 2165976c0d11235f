// Marks (read, handled) that this tab has requested and the server has not confirmed. The leader
// sends them; each new leader and each new epoch gets them again.

import { ShopbellError } from "./errors.js";
import type { State } from "./protocol.js";
import { SEQS_MAX, type Mark, type Outcome } from "./requests.js";

interface Pending {
  mark: Mark;
  resolve: (states: State[]) => void;
  reject: (error: ShopbellError) => void;
}

export class PendingMarks {
  readonly #tabId: string;
  readonly #send: (id: string, mark: Mark) => void;
  readonly #pending = new Map<string, Pending>();
  #count = 0;

  constructor(tabId: string, send: (id: string, mark: Mark) => void) {
    this.#tabId = tabId;
    this.#send = send;
  }

  /** Resolves with the frames that confirm the mark. */
  add(mark: Mark): Promise<State[]> {
    return new Promise((resolve, reject) => {
      const id = `${this.#tabId}:${this.#count++}`;
      this.#pending.set(id, { mark, resolve, reject });
      this.#send(id, mark);
    });
  }

  sendAll(): void {
    for (const [id, { mark }] of this.#pending) this.#send(id, mark);
  }

  settle(id: string, outcome: Outcome): void {
    const pending = this.#pending.get(id);
    this.#pending.delete(id);
    if (Array.isArray(outcome)) pending?.resolve(outcome);
    else
      pending?.reject(new ShopbellError(outcome.code, outcome.message, { cause: outcome.cause }));
  }

  settleAll(outcome: Outcome): void {
    for (const id of [...this.#pending.keys()]) this.settle(id, outcome);
  }
}

/** Marks for any number of seqs: the server accepts {@link SEQS_MAX} in a frame. */
export function marksOf(type: Mark["type"], feed: string, seqs: readonly number[]): Mark[] {
  const marks: Mark[] = [];
  for (let at = 0; at < seqs.length; at += SEQS_MAX) {
    marks.push({ type, feed, seqs: seqs.slice(at, at + SEQS_MAX) });
  }
  return marks;
}
