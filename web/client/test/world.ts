// A world for tests: one clock, one server, and one browser profile with tabs that freeze, crash and come back. One seed determines all randomness.

import type { Client, ConnectOptions } from "../src/client.js";
import { Client as ClientClass } from "../src/client.js";
import type { PageChange, Platform, Store } from "../src/platform.js";
import { FakeSocket, Server } from "./server.js";

/** Mulberry32. */
export function randomOf(seed: number): () => number {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

interface Timer {
  at: number;
  id: number;
  fn: () => void;
}

export class World {
  now = 1_700_000_000_000;
  random: () => number;
  server: Server;
  store = new Map<string, string>();
  tabs: Tab[] = [];
  locks: Lock[] = [];
  #timers: Timer[] = [];
  #ids = 0;

  constructor(seed = 1) {
    this.random = randomOf(seed);
    this.server = new Server(this);
  }

  after(ms: number, fn: () => void): () => void {
    const timer = { at: this.now + Math.max(0, ms), id: this.#ids++, fn };
    this.#timers.push(timer);
    return () => {
      this.#timers = this.#timers.filter((other) => other !== timer);
    };
  }

  /** Advances the clock by `ms` and runs the timers that are due. */
  async pass(ms: number): Promise<void> {
    const until = this.now + ms;
    for (;;) {
      await settle();
      const next = this.#timers.reduce<Timer | undefined>(
        (soonest, timer) =>
          !soonest || timer.at < soonest.at || (timer.at === soonest.at && timer.id < soonest.id)
            ? timer
            : soonest,
        undefined,
      );
      if (!next || next.at > until) break;
      this.#timers = this.#timers.filter((timer) => timer !== next);
      this.now = Math.max(this.now, next.at);
      next.fn();
    }
    this.now = until;
    await settle();
  }

  /** Opens a tab with a connected client. */
  open(options: Partial<ConnectOptions> = {}, page: Partial<Tab> = {}): Tab {
    const tab = new Tab(this);
    Object.assign(tab, page);
    this.tabs.push(tab);
    tab.client = new ClientClass(
      { url: "https://shop.example/", token: () => this.server.token(), ...options },
      tab.platform(),
    );
    return tab;
  }

  grant(name: string): void {
    if (this.locks.some((lock) => lock.name === name && lock.held)) return;
    const next = this.locks.find((lock) => lock.name === name);
    if (!next) return;
    next.held = true;
    next.tab.run(() => {
      void next.take().then(() => {
        if (!this.locks.includes(next)) return;
        this.#drop(next);
        next.resolve();
      });
    });
  }

  #drop(lock: Lock): void {
    this.locks = this.locks.filter((other) => other !== lock);
    void Promise.resolve().then(() => this.grant(lock.name));
  }

  release(tab: Tab): void {
    for (const lock of this.locks.filter((lock) => lock.tab === tab)) this.#drop(lock);
  }

  request(
    tab: Tab,
    name: string,
    steal: boolean,
    signal: AbortSignal | undefined,
    take: () => Promise<void>,
  ) {
    return new Promise<void>((resolve, reject) => {
      const abort = () => Object.assign(new Error("aborted"), { name: "AbortError" });
      const lock: Lock = { name, tab, held: false, take, resolve, reject };
      if (steal) {
        for (const other of this.locks.filter((other) => other.name === name && other.held)) {
          this.locks = this.locks.filter((one) => one !== other);
          // The tab may receive this before or after the messages of its channel.
          this.after(this.random() * 100, () => other.tab.run(() => other.reject(abort())));
        }
        this.locks.unshift(lock);
      } else this.locks.push(lock);
      signal?.addEventListener("abort", () => {
        if (lock.held || !this.locks.includes(lock)) return;
        this.locks = this.locks.filter((other) => other !== lock);
        reject(abort());
      });
      void Promise.resolve().then(() => this.grant(name));
    });
  }
}

interface Lock {
  name: string;
  tab: Tab;
  held: boolean;
  take: () => Promise<void>;
  resolve: () => void;
  reject: (error: Error) => void;
}

/** Runs all microtasks, including those that they queue. */
export async function settle(): Promise<void> {
  await new Promise<void>((resolve) => setImmediate(resolve));
}

export class Tab {
  client!: Client;
  visible = false;
  focused = false;
  alive = true;
  frozen = false;
  shares = true;
  /** Throws like the `WebSocket` constructor. */
  refuse: ((protocols: string[]) => void) | undefined;
  errors: string[] = [];
  sockets: FakeSocket[] = [];
  #waiting: (() => void)[] = [];
  #channels: { name: string; onmessage: ((event: MessageEvent) => void) | null }[] = [];
  #changed: (change: PageChange) => void = () => {};

  constructor(readonly world: World) {}

  /** Runs a task of this tab: later if it is frozen, never if it has crashed. */
  run(fn: () => void): void {
    if (!this.alive) return;
    if (this.frozen) this.#waiting.push(fn);
    else fn();
  }

  crash(): void {
    this.alive = false;
    for (const socket of this.sockets) socket.lost();
    this.#channels = [];
    this.world.release(this);
  }

  freeze(): void {
    this.frozen = true;
  }

  async thaw(): Promise<void> {
    this.frozen = false;
    // Promises settle between tasks.
    for (let task = this.#waiting.shift(); task; task = this.#waiting.shift()) {
      task();
      await settle();
    }
  }

  /** Fires an event of the page. */
  page(change: PageChange): void {
    this.#changed(change);
  }

  look(visible: boolean, focused = visible): void {
    Object.assign(this, { visible, focused });
    this.#changed("attention");
    if (visible) this.#changed("hurry");
  }

  sleep(ms: number): Promise<void> {
    return new Promise((resolve) => this.world.after(ms, () => this.run(resolve)));
  }

  store(): Store {
    const { store } = this.world;
    return {
      getItem: (key) => store.get(key) ?? null,
      setItem: (key, value) => void (this.alive && store.set(key, value)),
    };
  }

  platform(): Platform {
    const { world } = this;
    return {
      now: () => world.now,
      random: () => world.random(),
      after: (ms, fn) => {
        let cancelled = false;
        const cancel = world.after(ms, () => this.run(() => cancelled || fn()));
        return () => {
          cancelled = true;
          cancel();
        };
      },
      socket: (url, protocols) => {
        this.refuse?.(protocols);
        const socket = new FakeSocket(this, url, protocols);
        this.sockets.push(socket);
        return socket;
      },
      ...(this.shares && {
        channel: (name: string) => {
          const channel = {
            name,
            onmessage: null as ((event: MessageEvent) => void) | null,
            postMessage: (message: unknown) => {
              if (!this.alive) return;
              const copy = structuredClone(message);
              for (const tab of world.tabs) if (tab !== this) tab.receive(name, copy);
            },
            close: () =>
              void (this.#channels = this.#channels.filter((other) => other !== channel)),
          };
          this.#channels.push(channel);
          return channel;
        },
        locks: {
          request: (name, { steal = false, signal }, held) =>
            world.request(this, name, steal, signal, held),
        },
      }),
      store: this.store(),
      fetch: () => Promise.reject(new Error("no HTTP here")),
      base: "https://shop.example/",
      attention: () => ({ visible: this.visible, focused: this.focused }),
      listen: (changed) => {
        this.#changed = (change) => this.run(() => changed(change));
        return () => (this.#changed = () => {});
      },
    };
  }

  receive(name: string, message: unknown): void {
    for (const channel of this.#channels) {
      if (channel.name !== name) continue;
      // Each message is a task, in the order of posting.
      this.world.after(0, () =>
        this.run(() => {
          if (this.#channels.includes(channel))
            channel.onmessage?.({ data: message } as MessageEvent);
        }),
      );
    }
  }
}

/** A visible tab with a socket of its own; `rung` lists the numbers that rang. */
export function alone(
  world: World,
  options: Partial<ConnectOptions> = {},
): { tab: Tab; rung: number[]; statuses: string[] } {
  const tab = world.open({ share: false, ...options }, { visible: true });
  const rung: number[] = [];
  const statuses: string[] = [];
  tab.client.ring("*", ({ seq }) => rung.push(seq));
  tab.client.watch("error", ({ error }) => tab.errors.push(error.code));
  tab.client.watch("status", ({ state }) => statuses.push(state));
  return { tab, rung, statuses };
}
export const upTo = (count: number) => Array.from({ length: count }, (_, index) => index + 1);
