// The browser functions that the client uses. Tests pass a platform with a clock of its own.

/** The part of `WebSocket` that is used. */
export interface SocketLike {
  onmessage: ((event: MessageEvent) => void) | null;
  onclose: ((event: CloseEvent) => void) | null;
  send(text: string): void;
  close(code?: number, reason?: string): void;
  /** Absent for a `WebSocket`. */
  transport?: "stream" | "poll";
  /** The network may be another one. */
  hurry?(): void;
}

/** The part of `BroadcastChannel` that is used. */
export interface ChannelLike {
  onmessage: ((event: MessageEvent) => void) | null;
  postMessage(message: unknown): void;
  close(): void;
}

/** The part of the Web Locks API that is used. */
export interface LocksLike {
  request(
    name: string,
    options: { steal?: boolean; signal?: AbortSignal },
    held: () => Promise<void>,
  ): Promise<unknown>;
}

/**
 * Storage for the completed numbers, such as `localStorage`. It is synchronous, so that a write is
 * done before the page is closed. If it throws, the client keeps the numbers in memory.
 */
export interface Store {
  getItem(key: string): string | null;
  setItem(key: string, value: string): void;
}

/** An event of the page. */
export type PageChange =
  /** The browser may freeze the page: it must release socket, lock and channel. */
  | "suspend"
  /** The page runs again. */
  | "resume"
  /** The network is back, or the page became visible: connect now. */
  | "hurry"
  /** Visibility or focus changed. */
  | "attention";

export interface Platform {
  /** Wall clock, milliseconds since 1970. */
  now(): number;
  /** From 0 to 1. */
  random(): number;
  /** Runs `fn` once after `ms`; returns a function that cancels it. */
  after(ms: number, fn: () => void): () => void;
  socket(url: string, protocols: string[]): SocketLike;
  /** Absent if the browser does not support it. */
  channel?: (name: string) => ChannelLike;
  locks?: LocksLike;
  store: Store | undefined;
  fetch(url: string, init: RequestInit): Promise<Response>;
  /** Base of relative URLs. */
  base: string | undefined;
  attention(): { visible: boolean; focused: boolean };
  /** Listens to events of the page; returns a function that stops it. */
  listen(changed: (change: PageChange) => void): () => void;
}

/** `setTimeout` fires at once for delays of more than 31 bits. */
const TIMEOUT_MS_MAX = 2 ** 31 - 1;

/** The platform of this page. */
export function browser(): Platform {
  const page = globalThis.document as Document | undefined;
  return {
    now: Date.now,
    random: Math.random,
    after,
    socket: (url, protocols) => new WebSocket(url, protocols),
    ...(globalThis.BroadcastChannel && { channel: (name: string) => new BroadcastChannel(name) }),
    // Only a secure context has locks, which the types do not express.
    ...(globalThis.navigator?.locks && { locks: navigator.locks as unknown as LocksLike }),
    store: localStore(),
    fetch: (url, init) => fetch(url, init),
    base: globalThis.location?.href,
    attention: () => ({
      visible: page?.visibilityState !== "hidden",
      focused: page?.hasFocus() ?? false,
    }),
    listen,
  };
}

function after(ms: number, fn: () => void): () => void {
  let timer: ReturnType<typeof setTimeout>;
  const arm = (left: number) => {
    const step = Math.min(left, TIMEOUT_MS_MAX);
    timer = setTimeout(() => (left > step ? arm(left - step) : fn()), step);
  };
  arm(ms);
  return () => clearTimeout(timer);
}

function localStore(): Store | undefined {
  try {
    // Throws if storage is forbidden.
    return globalThis.localStorage;
  } catch {
    return undefined;
  }
}

function listen(changed: (change: PageChange) => void): () => void {
  const abort = new AbortController();
  const { signal } = abort;
  const on = (target: EventTarget | undefined, type: string, change: PageChange) =>
    target?.addEventListener(type, () => changed(change), { signal });
  const page = globalThis.document as Document | undefined;
  const window = page && globalThis;
  on(window, "online", "hurry");
  on(window, "focus", "attention");
  on(window, "blur", "attention");
  on(page, "visibilitychange", "attention");
  page?.addEventListener(
    "visibilitychange",
    () => page.visibilityState === "visible" && changed("hurry"),
    { signal },
  );
  // Browsers do not put a page with a socket or a lock into the back/forward cache.
  on(window, "pagehide", "suspend");
  on(window, "pageshow", "resume");
  // Page Lifecycle: browsers freeze hidden tabs to save power.
  on(page, "freeze", "suspend");
  on(page, "resume", "resume");
  return () => abort.abort();
}
