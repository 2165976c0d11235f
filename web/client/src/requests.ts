// Sends marks to the server: one at a time in each feed, because an `error` frame names only the
// feed. A mark is sent again after a reconnect until a `state` frame confirms it, also a frame that
// another subscriber caused. No clock.

import type { ClientFrame, State, Welcome } from "./protocol.js";

/** The server accepts this number of seqs in a frame. */
export const SEQS_MAX = 256;

/** The numbers of the old epoch are no longer valid. */
export const EPOCH_CHANGED = { code: "unknown_seq", message: "the epoch changed" };

/**
 * A person's read or handle of notifications, as a client frame. An empty `seqs` requests the
 * counts.
 */
export type Mark =
  | { type: "read" | "handle"; feed: string; seqs: number[] }
  | { type: "read"; feed: string; through: number };

/** The frames that confirm a mark, or the reason why it failed. */
export type Outcome = State[] | { code: string; message: string; cause?: unknown };

/** Errors after which the client sends the mark again: the server changed nothing. */
const TRANSIENT = new Set(["busy", "not_taken"]);

interface Request {
  mark: Mark;
  /** Seqs that are not confirmed; empty for `through` and for counts. */
  open: Set<number>;
  states: State[];
  done: (outcome: Outcome) => void;
}

export class Requests {
  readonly #send: (frame: ClientFrame) => void;
  readonly #later: (attempt: number, fn: () => void) => void;
  /** Only the first request of each queue has been sent. */
  #queues = new Map<string, Request[]>();
  #attempts = 0;
  /** The version of each feed when the session began: marks up to it may be replayed. */
  #begun = new Map<string, number | undefined>();

  /**
   * @param send sends a frame if there is a session.
   * @param later calls `fn` after a wait that grows with `attempt`.
   */
  constructor(
    send: (frame: ClientFrame) => void,
    later: (attempt: number, fn: () => void) => void,
  ) {
    this.#send = send;
    this.#later = later;
  }

  add(mark: Mark, done: Request["done"]): void {
    const queue = this.#queues.get(mark.feed) ?? [];
    this.#queues.set(mark.feed, queue);
    queue.push({ mark, open: new Set("seqs" in mark ? mark.seqs : []), states: [], done });
    if (queue.length === 1) this.#send(mark);
  }

  /** A session began: open requests are sent again, unless the epoch has changed. */
  onWelcome({ feeds }: Welcome, renewed: boolean): void {
    this.#begun = new Map(feeds.map(({ feed, version }) => [feed, version]));
    for (const queue of this.#queues.values()) {
      if (renewed) for (const { done } of queue.splice(0)) done(EPOCH_CHANGED);
      if (queue[0]) this.#send(rest(queue[0]));
    }
  }

  onState(state: State): void {
    const queue = this.#queues.get(state.feed);
    const first = queue?.[0];
    if (!queue || !first || !this.#confirms(state, first)) return;
    first.states.push(state);
    // Another frame confirms the rest. A repeated request could cause a second error.
    if (first.open.size > 0) return;
    first.done(first.states);
    this.#next(queue);
  }

  onError(code: string, message: string, feed: string | undefined): void {
    const queue = feed === undefined ? undefined : this.#queues.get(feed);
    const first = queue?.[0];
    // This error is the reply to an ack.
    if (!queue || !first || code === "ack_not_sent") return;
    if (TRANSIENT.has(code)) {
      const session = this.#begun;
      return this.#later(this.#attempts++, () => {
        // A later session has sent it already.
        if (queue[0] === first && session === this.#begun) this.#send(rest(first));
      });
    }
    first.done({ code, message });
    this.#next(queue);
  }

  /**
   * Removes from `open` the seqs that this frame confirms; returns whether it confirms anything.
   */
  #confirms(
    { feed, version, seqs, through, last, read_at, handled_at }: State,
    { mark, open }: Request,
  ): boolean {
    if ("through" in mark) {
      // The server marks stored notifications only. A replayed frame has an old `last`.
      const now = version === undefined || version > (this.#begun.get(feed) ?? 0);
      return now && !handled_at && through !== undefined && through >= Math.min(mark.through, last);
    }
    if (mark.seqs.length === 0) return version === undefined && seqs?.length === 0;
    if (!(mark.type === "read" ? read_at : handled_at)) return false;
    const before = open.size;
    for (const seq of open) {
      if (seq <= (through ?? 0) || seqs?.includes(seq)) open.delete(seq);
    }
    return open.size < before;
  }

  #next(queue: Request[]): void {
    this.#attempts = 0;
    queue.shift();
    if (queue[0]) this.#send(queue[0].mark);
  }
}

/** The part of a mark that is not confirmed. */
function rest({ mark, open }: Request): Mark {
  return "seqs" in mark ? { ...mark, seqs: [...open] } : mark;
}
