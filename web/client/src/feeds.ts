// Where this tab stands in each feed: numbers, counts, versions. Frames and marks go in, verdicts come out; no I/O, no clock.

import type { Notification } from "./events.js";
import type { Skipped, State, Welcome, WelcomeFeed } from "./protocol.js";

/** Notifications above the counts' `last` are kept one by one up to so many; older ones become part of the sum. */
export const ABOVE_MAX = 256;

/** What nobody has read or handled yet. */
export interface Count {
  readonly unread: number;
  readonly unhandled: number;
}

/** Counts of every feed. */
export interface Counts {
  /** Without shared feeds, whose counts are nobody's: a badge shows this. */
  readonly total: Count;
  readonly feeds: Readonly<Record<string, Count & { readonly shared: boolean }>>;
}

/** A notification that the counts as of `asOf` do not have yet. */
interface Above {
  seq: number;
  unread: 0 | 1;
  unhandled: 0 | 1;
}

interface Place {
  shared: boolean;
  /** The last number of this session, sent or skipped. */
  position: number;
  /** The highest number that this tab's handlers were given, or need not be. */
  seen: number;
  /** Everything up to here was handled by the tab chosen for it. */
  mark: number;
  caughtUp: boolean;
  /** The newest state change that this tab knows; `undefined` where the server tells none. */
  version: number | undefined;
  /** Changes up to this version are in the counts already. */
  countedVersion: number;
  unread: number;
  unhandled: number;
  /** `unread` and `unhandled` are as of this number. */
  asOf: number;
  above: Above[];
  /** The counts are not exact, and an empty `read` is due. */
  stale: boolean;
}

/** What became of a numbered frame. */
export type Verdict =
  /** The next one. */
  | "next"
  /** Had it in this session. */
  | "old"
  /** A number between was never sent: a fault of the protocol. */
  | "gap"
  /** Of a feed that `welcome` did not name. */
  | "unknown";

/** A feed in the `welcome` that a leader makes for a tab that comes later. */
type SnapshotFeed = WelcomeFeed & { position?: number };

export class Feeds {
  readonly #storedMark: (welcome: Welcome, feed: string) => number;
  #places = new Map<string, Place>();
  #epoch: string | undefined;

  /** @param storedMark what an earlier page of this browser profile handled in a feed; 0 where nothing is known. */
  constructor(storedMark: (welcome: Welcome, feed: string) => number) {
    this.#storedMark = storedMark;
  }

  /** Begins a session. Gives the feeds in which this tab missed something, whose history is to be fetched again. */
  onWelcome(welcome: Welcome): string[] {
    const renewed = this.isRenewed(welcome);
    const before = this.#places;
    this.#epoch = welcome.feeds[0]?.epoch;
    this.#places = new Map();
    const missed: string[] = [];
    for (const feed of welcome.feeds as SnapshotFeed[]) {
      const known = renewed ? undefined : before.get(feed.feed);
      const place = begin(feed, known, () => this.#storedMark(welcome, feed.feed));
      this.#places.set(feed.feed, place);
      // The server sends the changes after the leader's version; a leader does not. Or acknowledged elsewhere meanwhile.
      const changed = feed.position !== undefined && feed.version !== known?.version;
      if (renewed || (known && (changed || feed.cursor > known.seen))) missed.push(feed.feed);
    }
    return missed;
  }

  /** Whether numbers are given anew: what this tab knows of a number is about another notification. */
  isRenewed({ feeds }: Welcome): boolean {
    return !!this.#epoch && this.#epoch !== feeds[0]?.epoch;
  }

  /** `FEED:SEQ:EPOCH`, as numbers are kept; a server before epochs takes `FEED:SEQ`. */
  key({ feed, seq }: { feed: string; seq: number }): string {
    return `${feed}:${seq}` + (this.#epoch ? `:${this.#epoch}` : "");
  }

  /** @param strict after a gap nothing is taken in. */
  onNotification(frame: Notification, strict: boolean): Verdict {
    const place = this.#places.get(frame.feed);
    const verdict = numbered(place, frame.seq);
    if (!place || verdict === "old" || (strict && verdict === "gap")) return verdict;
    place.position = frame.seq;
    if (frame.seq > place.asOf) {
      place.above.push({
        seq: frame.seq,
        unread: frame.read_at ? 0 : 1,
        unhandled: frame.handled_at ? 0 : 1,
      });
      if (place.above.length > ABOVE_MAX) fold(place, frame.seq);
    }
    return verdict;
  }

  onSkipped(frame: Skipped, strict: boolean): Verdict {
    const place = this.#places.get(frame.feed);
    if (place && frame.through <= place.position) return "old";
    const verdict = numbered(
      place,
      Math.max(frame.from, Math.min((place?.position ?? 0) + 1, frame.through)),
    );
    if (!place || (strict && verdict === "gap")) return verdict;
    place.position = frame.through;
    place.seen = Math.max(place.seen, frame.through);
    // Whether somebody has read what is skipped, the frame does not say.
    if (frame.through > place.asOf) place.stale = true;
    return verdict;
  }

  onCaughtUp(feed: string): void {
    const place = this.#places.get(feed);
    if (place) place.caughtUp = true;
  }

  /** Takes in a change or an answer. Gives whether changes between were missed: then the history is to be fetched again. */
  onState(frame: State): boolean {
    const place = this.#places.get(frame.feed);
    if (!place) return false;
    if (frame.version === undefined) {
      // Only the answer to an empty `read` counts; that to another was computed at a time that nothing tells.
      if (frame.seqs?.length === 0 && frame.last >= place.asOf) rebase(place, frame);
      return false;
    }
    const known = place.version ?? frame.version - 1;
    if (frame.version <= known) return false;
    place.version = frame.version;
    if (frame.version > place.countedVersion) {
      place.countedVersion = frame.version;
      if (frame.last >= place.asOf) rebase(place, frame);
      else place.stale = true;
    }
    return frame.version !== known + 1;
  }

  /** Whether this tab's handlers are yet to be given this one; once. */
  take(frame: Notification): boolean {
    const place = this.#places.get(frame.feed);
    if (!place || frame.seq <= place.seen) return false;
    place.seen = frame.seq;
    return true;
  }

  /** A tab handled everything up to `seq`. */
  onHandled(feed: string, seq: number): void {
    const place = this.#places.get(feed);
    if (place) place.mark = Math.max(place.mark, seq);
  }

  mark(feed: string): number {
    return this.#places.get(feed)?.mark ?? 0;
  }

  position(feed: string): number {
    return this.#places.get(feed)?.position ?? 0;
  }

  version(feed: string): number | undefined {
    return this.#places.get(feed)?.version;
  }

  /** Everything stored when the session began has come. */
  caughtUp(): boolean {
    return [...this.#places.values()].every((place) => place.caughtUp);
  }

  /** Feeds whose counts are to be asked for. */
  stale(): string[] {
    return [...this.#places]
      .filter(([, place]) => place.stale && !place.shared)
      .map(([feed]) => feed);
  }

  counts(): Counts {
    const total = { unread: 0, unhandled: 0 };
    // Not by assignments: `__proto__` is a feed's name like any other.
    const feeds = Object.fromEntries(
      [...this.#places].map(([feed, place]) => {
        const { shared } = place;
        const count = sum(place);
        if (!shared) {
          total.unread += count.unread;
          total.unhandled += count.unhandled;
        }
        return [feed, { ...count, shared }];
      }),
    );
    return { total, feeds };
  }

  /** The query that goes on where this tab is. */
  query(): URLSearchParams {
    const query = new URLSearchParams();
    for (const [feed, { version }] of this.#places) {
      if (version !== undefined) query.append("state", this.key({ feed, seq: version }));
    }
    return query;
  }

  /** `welcome` as it would be now, beginning after what was handled: for a tab that comes later. */
  snapshot(welcome: Welcome): Welcome {
    const feeds = welcome.feeds.map((feed): SnapshotFeed => {
      const place = this.#places.get(feed.feed);
      if (!place) return feed;
      const { mark, position, asOf, version } = place;
      return {
        ...feed,
        ...sum(place),
        cursor: Math.min(mark, position),
        position,
        last: Math.max(position, asOf),
        ...(version !== undefined && { version }),
      };
    });
    return { ...welcome, feeds };
  }
}

function begin(feed: SnapshotFeed, known: Place | undefined, storedMark: () => number): Place {
  const mark = Math.max(known?.mark ?? storedMark(), feed.cursor);
  return {
    shared: feed.shared === true,
    position: feed.position ?? feed.cursor,
    seen: Math.max(known?.seen ?? mark, feed.cursor),
    mark,
    caughtUp: false,
    version: feed.position === undefined ? (known?.version ?? feed.version) : feed.version,
    countedVersion: feed.version ?? 0,
    unread: feed.unread,
    unhandled: feed.unhandled,
    asOf: feed.last,
    above: [],
    stale: false,
  };
}

function numbered(place: Place | undefined, seq: number): Verdict {
  if (!place) return "unknown";
  if (seq <= place.position) return "old";
  return seq === place.position + 1 ? "next" : "gap";
}

function rebase(place: Place, { unread, unhandled, last }: State): void {
  place.above = place.above.filter(({ seq }) => seq > last);
  // A number that was skipped above `last` is in no frame: still to be asked for.
  place.stale = place.stale && last < place.position;
  Object.assign(place, { unread, unhandled, asOf: last });
}

function fold(place: Place, through: number): void {
  Object.assign(place, sum(place), { asOf: through, above: [] });
}

function sum({ unread, unhandled, above }: Place): Count {
  for (const one of above) {
    unread += one.unread;
    unhandled += one.unhandled;
  }
  return { unread, unhandled };
}
