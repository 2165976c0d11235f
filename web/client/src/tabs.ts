// The tabs of a browser profile that share a socket: who leads, and how they talk.
//
// The Web Lock is the election: its holder leads, its queue is the succession, and the browser releases it when a tab dies,
// so a successor needs no time-out. What a lock cannot see is a leader that lives but does not run (frozen with its lock
// held, a debugger's breakpoint, an endless loop). So followers that somebody looks at ask it for a sign of life, and steal
// the lock when several questions in a row stay unanswered. Only visible tabs judge: their own timers run on time, hidden
// ones' do not, and where no tab is visible nobody waits for a toast. A leader does not hand over just because it is
// hidden: its socket and channel work there as before, and each change of leader costs a connection. A stolen leader learns
// it from its lock alone (another's word may be older than its own lead: tabs that believe such words depose each other for
// ever); what it has in its hands until then is stopped by the mark in the store, which is looked at before each handler.

import type { Notification } from "./events.js";
import type { Platform } from "./platform.js";
import type { ServerFrame, State, Welcome } from "./protocol.js";
import type { Ask } from "./requests.js";
import type { Status } from "./status.js";

/** How often a tab is asked for a sign of life … */
export const PING_MS = 2_000;
/** … and how many questions in a row it may leave unanswered. */
export const MISSED_MAX = 3;

/** What a tab is good for. */
export interface Presence {
  visible: boolean;
  focused: boolean;
  /** When somebody last turned to it, in milliseconds since 1970. */
  activeAt: number;
  /** Patterns of its one-tab handlers. */
  patterns: string[];
  /** Notifications that its one-tab handlers are at, by `Feeds.key`. */
  ringing: string[];
}

/** From the leader: to all, or to one. */
export type LeaderMessage = { from: string; to?: string; leader: true } & (
  | { kind: "lead" }
  | { kind: "frame"; frame: ServerFrame }
  | { kind: "status"; status: Status }
  /** What a tab that comes later must know; `pending` came, and is not handled yet. */
  | { kind: "snapshot"; to: string; welcome?: Welcome; pending: Notification[]; status: Status }
  | { kind: "ring"; to: string; notification: Notification; key?: string }
  | { kind: "answered"; to: string; id: string; states: State[] }
  | { kind: "refused"; to: string; id: string; code: string; message: string }
  | { kind: "alive" }
  | { kind: "ping"; to: string }
);

/** From a tab: to the leader, and heard by all. */
export type TabMessage = { from: string; leader?: never } & (
  | { kind: "hello"; presence: Presence; joining: boolean }
  | { kind: "bye" }
  /** Its handlers have done this one. */
  | { kind: "rung"; feed: string; seq: number; key?: string }
  /** `key` names the epoch of the asker: a leader in another epoch ignores the request. */
  | { kind: "ask"; id: string; ask: Ask; feed: string; seq: 0; key?: string }
  | { kind: "anyone" }
  | { kind: "here" }
);

export type TabsMessage = LeaderMessage | TabMessage;

export interface TabsHooks {
  receive(message: TabsMessage): void;
  /** This tab leads from now on. */
  lead(): void;
  /** It does not any more. */
  follow(): void;
}

/** One stay among the tabs, from `join` to `leave`. */
interface Stay {
  leading: boolean;
  /** Gives the lock back, or withdraws the request for it. */
  end: () => void;
}

export class Tabs {
  readonly #platform: Platform;
  readonly #me: string;
  readonly #name: string | undefined;
  readonly #hooks: TabsHooks;
  #channel: ReturnType<NonNullable<Platform["channel"]>> | undefined;
  #stay: Stay | undefined;
  #asking = false;
  #missed = 0;
  #cancelPing = () => {};

  /** @param name what tabs must have in common; `undefined` for a tab that shares with nobody, and so always leads. */
  constructor(platform: Platform, me: string, name: string | undefined, hooks: TabsHooks) {
    this.#platform = platform;
    this.#me = me;
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
    this.#stopAsking();
    this.post({ kind: "bye", from: this.#me });
    const stay = this.#stay;
    this.#stay = undefined;
    stay?.end();
    this.#channel?.close();
    this.#channel = undefined;
  }

  /** To every other tab. */
  post(message: TabsMessage): void {
    this.#channel?.postMessage(message);
  }

  /** Somebody may look at this tab from now on: as a follower it asks whether the leader lives. */
  attention(): void {
    if (!this.#asking) this.#ask();
  }

  #ask(): void {
    this.#asking = !!this.#channel && !this.#stay?.leading && this.#platform.attention().visible;
    if (!this.#asking) return void (this.#missed = 0);
    if (this.#missed >= MISSED_MAX) return this.#steal();
    this.#missed++;
    this.post({ kind: "anyone", from: this.#me });
    this.#cancelPing = this.#platform.after(PING_MS, () => this.#ask());
  }

  #stopAsking(): void {
    this.#cancelPing();
    this.#asking = false;
    this.#missed = 0;
  }

  #steal(): void {
    this.#stopAsking();
    const stay = this.#stay;
    this.#stay = undefined;
    stay?.end();
    this.#request(true);
  }

  #onMessage(message: TabsMessage): void {
    if (message.leader) this.#missed = 0;
    if (!("to" in message) || message.to === this.#me) this.#hooks.receive(message);
  }

  #request(steal: boolean): void {
    const { locks } = this.#platform;
    if (!locks || this.#name === undefined) return;
    const abort = new AbortController();
    const stay: Stay = { leading: false, end: () => abort.abort() };
    this.#stay = stay;
    const held = () => {
      if (this.#stay !== stay) return Promise.resolve();
      stay.leading = true;
      this.#stopAsking();
      const released = new Promise<void>((resolve) => (stay.end = resolve));
      this.#hooks.lead();
      return released;
    };
    // A request that steals is granted at once, and must not bring a signal.
    locks
      .request(this.#name, steal ? { steal } : { signal: abort.signal }, held)
      .catch((error: unknown) => {
        if (this.#stay !== stay) return;
        if (stay.leading) return this.#follow();
        // Locks exist and are forbidden here (a sandboxed frame): one socket for this tab, then.
        if ((error as Error).name !== "AbortError") this.#alone();
      });
  }

  #follow(): void {
    const stay = this.#stay;
    this.#stay = undefined;
    stay?.end();
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
