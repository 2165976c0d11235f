// The position of this tab in each feed: numbers, counts, versions. Input: frames. Output:
// verdicts. No I/O, no clock.

import type { Notification } from "./events.js";
import type { Skipped, State, Welcome, WelcomeFeed } from "./protocol.js";

/**
 * Bound on notifications above the counts' `last` that are kept one by one; older ones are summed.
 */
export const ABOVE_MAX = 256;

/** Number of unread and unhandled notifications. */
export interface Count {
  readonly unread: number;
  readonly unhandled: number;
}

/** Counts of all feeds. */
export interface Counts {
  /** The sum for a badge; without shared feeds, which have no marks. */
  readonly total: Count;
  readonly feeds: Readonly<Record<string, Count & { readonly shared: boolean }>>;
}

/** A notification that the counts as of `asOf` do not contain. */
interface Above {
  seq: number;
  unread: 0 | 1;
  unhandled: 0 | 1;
}

interface Place {
  shared: boolean;
  /** The last number of this session, sent or skipped. */
  position: number;
  /** The highest number that this tab's handlers have received or may skip. */
  seen: number;
  /** Everything up to this number is completed: the handlers of the chosen tab have resolved. */
  completed: number;
  caughtUp: boolean;
  /** The newest mark that this tab has received; `undefined` if the server sends no versions. */
  version: number | undefined;
  /** The counts contain the marks up to this version. */
  countedVersion: number;
  unread: number;
  unhandled: number;
  /** `unread` and `unhandled` are as of this number. */
  asOf: number;
  above: Above[];
  /** The counts are not exact, and an empty `read` is due. */
  stale: boolean;
}

/** How the number of a frame relates to the last one of its feed. */
export type Verdict =
  /** It is the next number. */
  | "next"
  /** The session has received it already. */
  | "old"
  /** A number in between is missing: the server violated the protocol. */
  | "gap"
  /** `welcome` did not contain the feed. */
  | "unknown";

/** A feed in the `welcome` that a leader makes for a tab that joins. */
type SnapshotFeed = WelcomeFeed & { position?: number };

export class Feeds {
  readonly #storedSeq: (welcome: Welcome, feed: string) => number;
  #places = new Map<string, Place>();
  #epoch: string | undefined;

  /**
   * @param storedSeq the number that this browser profile has completed in a feed; 0 if unknown.
   */
  constructor(storedSeq: (welcome: Welcome, feed: string) => number) {
    this.#storedSeq = storedSeq;
  }

  /** Begins a session. Returns the feeds in which this tab missed something and must resync. */
  onWelcome(welcome: Welcome): string[] {
    const renewed = this.isRenewed(welcome);
    const before = this.#places;
    this.#epoch = welcome.feeds[0]?.epoch;
    this.#places = new Map();
    const missed: string[] = [];
    for (const feed of welcome.feeds as SnapshotFeed[]) {
      const known = renewed ? undefined : before.get(feed.feed);
      const place = initialPlace(feed, known, () => this.#storedSeq(welcome, feed.feed));
      this.#places.set(feed.feed, place);
      // Missed: marks, because a leader does not replay them, or acks of another browser.
      const changed = feed.position !== undefined && feed.version !== known?.version;
      if (renewed || (known && (changed || feed.cursor > known.seen))) missed.push(feed.feed);
    }
    return missed;
  }

  /**
   * Returns whether the epoch has changed: the old numbers may belong to other notifications now.
   */
  isRenewed({ feeds }: Welcome): boolean {
    return !!this.#epoch && this.#epoch !== feeds[0]?.epoch;
  }

  /** `FEED:SEQ:EPOCH`, or `FEED:SEQ` for a server without epochs. */
  key({ feed, seq }: { feed: string; seq: number }): string {
    return `${feed}:${seq}` + (this.#epoch ? `:${this.#epoch}` : "");
  }

  /** @param strict a frame after a gap changes nothing. */
  onNotification(frame: Notification, strict: boolean): Verdict {
    const place = this.#places.get(frame.feed);
    const verdict = verdictOf(place, frame.seq);
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
    const verdict = verdictOf(
      place,
      Math.max(frame.from, Math.min((place?.position ?? 0) + 1, frame.through)),
    );
    if (!place || (strict && verdict === "gap")) return verdict;
    place.position = frame.through;
    place.seen = Math.max(place.seen, frame.through);
    // The frame does not contain the marks of the skipped notifications.
    if (frame.through > place.asOf) place.stale = true;
    return verdict;
  }

  onCaughtUp(feed: string): void {
    const place = this.#places.get(feed);
    if (place) place.caughtUp = true;
  }

  /** Applies a mark or a reply. Returns whether this tab missed marks before it and must resync. */
  onState(frame: State): boolean {
    const place = this.#places.get(frame.feed);
    if (!place) return false;
    if (frame.version === undefined) {
      // Only the reply to an empty `read` has counts of a known time.
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

  /** Returns true once for each notification that this tab's handlers must receive. */
  take(frame: Notification): boolean {
    const place = this.#places.get(frame.feed);
    if (!place || frame.seq <= place.seen) return false;
    place.seen = frame.seq;
    return true;
  }

  /** The chosen tab completed everything up to `seq`. */
  onCompleted(feed: string, seq: number): void {
    const place = this.#places.get(feed);
    if (place) place.completed = Math.max(place.completed, seq);
  }

  completed(feed: string): number {
    return this.#places.get(feed)?.completed ?? 0;
  }

  position(feed: string): number {
    return this.#places.get(feed)?.position ?? 0;
  }

  version(feed: string): number | undefined {
    return this.#places.get(feed)?.version;
  }

  /** Returns whether the replay of every feed is complete. */
  caughtUp(): boolean {
    return [...this.#places.values()].every((place) => place.caughtUp);
  }

  /** Feeds whose counts must be requested. */
  stale(): string[] {
    return [...this.#places]
      .filter(([, place]) => place.stale && !place.shared)
      .map(([feed]) => feed);
  }

  counts(): Counts {
    const total = { unread: 0, unhandled: 0 };
    // `fromEntries`, because assignment fails for a feed named `__proto__`.
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

  /**
   * The query from which the server replays missed marks.
   *
   * @param after the session goes on, so the server sends only what this client has not received.
   */
  query(after = false): URLSearchParams {
    const query = new URLSearchParams();
    for (const [feed, { version, position }] of this.#places) {
      if (version !== undefined) query.append("state", this.key({ feed, seq: version }));
      if (after) query.append("after", this.key({ feed, seq: position }));
    }
    return query;
  }

  /** The `welcome` of a session that would begin now, for a tab that joins. */
  snapshot(welcome: Welcome): Welcome {
    const feeds = welcome.feeds.map((feed): SnapshotFeed => {
      const place = this.#places.get(feed.feed);
      if (!place) return feed;
      const { completed, position, asOf, version } = place;
      return {
        ...feed,
        ...sum(place),
        cursor: Math.min(completed, position),
        position,
        last: Math.max(position, asOf),
        ...(version !== undefined && { version }),
      };
    });
    return { ...welcome, feeds };
  }
}

function initialPlace(
  feed: SnapshotFeed,
  known: Place | undefined,
  storedSeq: () => number,
): Place {
  const completed = Math.max(known?.completed ?? storedSeq(), feed.cursor);
  return {
    shared: feed.shared === true,
    position: feed.position ?? feed.cursor,
    seen: Math.max(known?.seen ?? completed, feed.cursor),
    completed,
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

function verdictOf(place: Place | undefined, seq: number): Verdict {
  if (!place) return "unknown";
  if (seq <= place.position) return "old";
  return seq === place.position + 1 ? "next" : "gap";
}

function rebase(place: Place, { unread, unhandled, last }: State): void {
  place.above = place.above.filter(({ seq }) => seq > last);
  // No frame contains the counts of numbers skipped above `last`.
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
