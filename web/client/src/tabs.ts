// The tabs of a browser profile that share a socket: election of a leader, and their messages.
//
// A Web Lock elects the leader: its holder leads, its queue holds the successors, and the browser
// releases it when a tab dies. A lock does not detect a leader that is alive but does not run:
// frozen, at a debugger's breakpoint, in an endless loop. So a visible follower pings the leader,
// and steals the lock after several pings without a reply. Hidden followers do not ping, because
// browsers delay their timers. A hidden leader keeps the lock, because its socket and channel still
// work.
//
// A leader stops only when it loses its lock. A message from another leader may be older than its
// own lead, so tabs that trusted such messages could depose each other for ever. Until it stops,
// the store of completed numbers keeps its tab from ringing a second time.

import type { Notification } from "./events.js";
import type { LocksLike, Platform } from "./platform.js";
import type { ServerFrame, Welcome } from "./protocol.js";
import type { Mark, Outcome } from "./requests.js";
import type { Status } from "./status.js";

/** Interval between pings of a tab. */
export const PING_MS = 2_000;
/** A tab counts as dead after this number of pings in a row without a reply. */
export const MISSED_MAX = 3;

/** State of a tab, from which the leader chooses the tab that rings. */
export interface Presence {
  visible: boolean;
  focused: boolean;
  /** Time when the tab last became visible or focused, in milliseconds since 1970. */
  activeAt: number;
  /** Patterns of its one-tab handlers. */
  patterns: string[];
  /** Notifications whose one-tab handlers run now, by `Feeds.key`. */
  ringing: string[];
}

/** From the leader to all tabs, or to the tab `to`. */
export type LeaderMessage = { from: string; to?: string; leader: true } & (
  | { kind: "lead" }
  | { kind: "frame"; frame: ServerFrame }
  | { kind: "status"; status: Status }
  /** The state for a tab that joins; `pending` are received and not completed. */
  | { kind: "snapshot"; to: string; welcome?: Welcome; pending: Notification[]; status: Status }
  | { kind: "ring"; to: string; notification: Notification; key?: string }
  | { kind: "settled"; to: string; id: string; outcome: Outcome }
  | { kind: "pong" }
  | { kind: "ping"; to: string }
);

/** From a tab to the leader; every tab receives it. */
export type TabMessage = { from: string; leader?: never } & (
  | { kind: "hello"; presence: Presence; joining: boolean }
  | { kind: "bye" }
  /** The tab's handlers have completed this notification. */
  | { kind: "rung"; feed: string; seq: number; key?: string }
  /** `key` contains the epoch of the sender: a leader in another epoch ignores the mark. */
  | { kind: "mark"; id: string; mark: Mark; feed: string; seq: 0; key?: string }
  | { kind: "ping" }
  | { kind: "pong" }
);

export type TabsMessage = LeaderMessage | TabMessage;

/** A message before its sender is added. */
export type Unaddressed<M> = M extends unknown ? Omit<M, "from" | "leader"> : never;

export interface TabsHooks {
  receive(message: TabsMessage): void;
  /** This tab leads from now on. */
  lead(): void;
  /** This tab no longer leads. */
  follow(): void;
}

/** One request for the lock, from `join` to `leave`. */
interface Stay {
  leading: boolean;
  /** Releases the lock, or withdraws the request for it. */
  end: () => void;
}

export class Tabs {
  readonly #platform: Platform;
  readonly #tabId: string;
  readonly #name: string | undefined;
  readonly #hooks: TabsHooks;
  #channel: ReturnType<NonNullable<Platform["channel"]>> | undefined;
  #stay: Stay | undefined;
  #pinging = false;
  #missed = 0;
  #cancelPing = () => {};

  /** @param name tabs with the same name share a socket; a tab without a name always leads. */
  constructor(platform: Platform, tabId: string, name: string | undefined, hooks: TabsHooks) {
    this.#platform = platform;
    this.#tabId = tabId;
    this.#name = name;
    this.#hooks = hooks;
  }

  join(): void {
    const { channel, locks } = this.#platform;
    if (this.#name === undefined || !channel || !locks) return this.#alone();
    this.#channel = channel(this.#name);
    this.#channel.onmessage = ({ data }) => this.#onMessage(data as TabsMessage);
    this.#request(false);
    this.attention();
  }

  leave(): void {
    this.#stopPinging();
    this.post({ kind: "bye", from: this.#tabId });
    this.#end();
    this.#channel?.close();
    this.#channel = undefined;
  }

  /** Sends to every other tab. */
  post(message: TabsMessage): void {
    this.#channel?.postMessage(message);
  }

  /** The visibility of this tab changed: a visible follower pings the leader. */
  attention(): void {
    if (!this.#pinging) this.#ping();
  }

  #ping(): void {
    this.#pinging = !!this.#channel && !this.#stay?.leading && this.#platform.attention().visible;
    if (!this.#pinging) return void (this.#missed = 0);
    if (this.#missed >= MISSED_MAX) return this.#steal();
    this.#missed++;
    this.post({ kind: "ping", from: this.#tabId });
    this.#cancelPing = this.#platform.after(PING_MS, () => this.#ping());
  }

  #stopPinging(): void {
    this.#cancelPing();
    this.#pinging = false;
    this.#missed = 0;
  }

  #steal(): void {
    this.#stopPinging();
    this.#end();
    this.#request(true);
  }

  #end(): void {
    const stay = this.#stay;
    this.#stay = undefined;
    stay?.end();
  }

  #onMessage(message: TabsMessage): void {
    if (message.leader) this.#missed = 0;
    if (!("to" in message) || message.to === this.#tabId) this.#hooks.receive(message);
  }

  #request(steal: boolean): void {
    // `join` has checked both.
    const [locks, name] = [this.#platform.locks as LocksLike, this.#name as string];
    const abort = new AbortController();
    const stay: Stay = { leading: false, end: () => abort.abort() };
    this.#stay = stay;
    const held = () => {
      if (this.#stay !== stay) return Promise.resolve();
      stay.leading = true;
      this.#stopPinging();
      const released = new Promise<void>((resolve) => (stay.end = resolve));
      this.#hooks.lead();
      return released;
    };
    // Web Locks: `steal` and `signal` exclude each other.
    locks
      .request(name, steal ? { steal } : { signal: abort.signal }, held)
      .catch((error: unknown) => {
        if (this.#stay !== stay) return;
        if (stay.leading) return this.#follow();
        // Locks are forbidden here (a sandboxed frame): this tab gets a socket of its own.
        if ((error as Error).name !== "AbortError") this.#alone();
      });
  }

  #follow(): void {
    this.#end();
    this.#hooks.follow();
    this.#request(false);
    this.attention();
  }

  #alone(): void {
    this.#channel?.close();
    this.#channel = undefined;
    this.#stay = { leading: true, end: () => {} };
    this.#hooks.lead();
  }
}
