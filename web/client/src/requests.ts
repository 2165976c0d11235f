// `read` and `handle` on their way to the server and back: one at a time a feed, because an `error` names only the feed; sent
// again after a reconnect until answered. Answers are recognised by the facts they state, whoever caused them. No clock.

import type { ClientFrame, State, Welcome } from "./protocol.js";

/** The server takes so many numbers in a frame. */
export const SEQS_MAX = 256;

/** What an app asked for. */
export type Ask =
  | { type: "read" | "handle"; feed: string; seqs: number[] }
  | { type: "read"; feed: string; through: number };

/** Codes after which nothing was changed and asking again may help. */
const PASSING = new Set(["busy", "not_taken"]);

interface Request {
  ask: Ask;
  /** Numbers not confirmed yet; empty where `through` or the counts are asked for. */
  open: Set<number>;
  states: State[];
  done: (outcome: State[] | { code: string; message: string }) => void;
}

export class Requests {
  readonly #send: (frame: ClientFrame) => void;
  readonly #later: (attempt: number, fn: () => void) => void;
  /** The first of each queue is the one that was sent. */
  #queues = new Map<string, Request[]>();
  #attempts = 0;
  /** Each feed's version when the session began: changes up to it are replayed. */
  #begun = new Map<string, number | undefined>();

  /**
   * @param send writes to the session, if there is one.
   * @param later calls back after a wait that grows with `attempt`.
   */
  constructor(
    send: (frame: ClientFrame) => void,
    later: (attempt: number, fn: () => void) => void,
  ) {
    this.#send = send;
    this.#later = later;
  }

  add(ask: Ask, done: Request["done"]): void {
    const queue = this.#queues.get(ask.feed) ?? [];
    this.#queues.set(ask.feed, queue);
    queue.push({ ask, open: new Set("seqs" in ask ? ask.seqs : []), states: [], done });
    if (queue.length === 1) this.#send(ask);
  }

  /** A session began: what was not answered by the last one is asked again, unless its numbers are of another epoch. */
  onWelcome({ feeds }: Welcome, renewed: boolean): void {
    this.#begun = new Map(feeds.map(({ feed, version }) => [feed, version]));
    for (const queue of this.#queues.values()) {
      if (renewed)
        for (const { done } of queue.splice(0))
          done({ code: "unknown_seq", message: "the database was restored" });
      if (queue[0]) this.#send(rest(queue[0]));
    }
  }

  onState(state: State): void {
    const queue = this.#queues.get(state.feed);
    const first = queue?.[0];
    if (!queue || !first || !this.#confirms(state, first)) return;
    first.states.push(state);
    // Stated in part: the answer to the rest is on its way, and asking again could earn a second error.
    if (first.open.size > 0) return;
    first.done(first.states);
    this.#next(queue);
  }

  onError(code: string, message: string, feed: string | undefined): void {
    const queue = feed === undefined ? undefined : this.#queues.get(feed);
    const first = queue?.[0];
    // An ack can be refused too, and names its feed too.
    if (!queue || !first || code === "ack_not_sent") return;
    if (PASSING.has(code)) {
      const session = this.#begun;
      return this.#later(this.#attempts++, () => {
        // A later session has asked it already.
        if (queue[0] === first && session === this.#begun) this.#send(rest(first));
      });
    }
    first.done({ code, message });
    this.#next(queue);
  }

  /** Takes from what is open what this frame states; gives whether it stated any of it. */
  #confirms(
    { feed, version, seqs, through, last, read_at, handled_at }: State,
    { ask, open }: Request,
  ): boolean {
    if ("through" in ask) {
      // All that is stored is enough, but a replayed frame's `last` is from before.
      const now = version === undefined || version > (this.#begun.get(feed) ?? 0);
      return now && !handled_at && through !== undefined && through >= Math.min(ask.through, last);
    }
    if (ask.seqs.length === 0) return version === undefined && seqs?.length === 0;
    if (!(ask.type === "read" ? read_at : handled_at)) return false;
    const before = open.size;
    for (const seq of open) {
      if (seq <= (through ?? 0) || seqs?.includes(seq)) open.delete(seq);
    }
    return open.size < before;
  }

  #next(queue: Request[]): void {
    this.#attempts = 0;
    queue.shift();
    if (queue[0]) this.#send(queue[0].ask);
  }
}

/** What is still to be asked for. */
function rest({ ask, open }: Request): Ask {
  return "seqs" in ask ? { ...ask, seqs: [...open] } : ask;
}
