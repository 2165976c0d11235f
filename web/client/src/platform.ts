// What the client needs of the world around it, and the browser's own. Tests hand in a world with its own clock.

/** The part of `WebSocket` that is used. */
export interface SocketLike {
  onmessage: ((event: MessageEvent) => void) | null;
  onclose: ((event: CloseEvent) => void) | null;
  send(text: string): void;
  close(code?: number, reason?: string): void;
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
 * Where the client remembers what was handled: synchronous, because it must be written before a page can go away.
 * `localStorage` is one. It may throw; then the client remembers for as long as the page lives.
 */
export interface Store {
  getItem(key: string): string | null;
  setItem(key: string, value: string): void;
}

/** What happened to the page. */
export type PageChange =
  /** It may be frozen or put aside from now on: hold no socket, lock or channel. */
  | "suspend"
  /** It is back. */
  | "resume"
  /** The network is back, or a person looks at the page: a good time to try. */
  | "hurry"
  /** Visibility or focus changed. */
  | "attention";

export interface Platform {
  /** Wall clock, milliseconds since 1970. */
  now(): number;
  /** From 0 to 1. */
  random(): number;
  /** Runs `fn` once after `ms`; gives what cancels it. */
  after(ms: number, fn: () => void): () => void;
  socket(url: string, protocols: string[]): SocketLike;
  /** Absent where the browser lacks it. */
  channel?: (name: string) => ChannelLike;
  locks?: LocksLike;
  store: Store | undefined;
  fetch(url: string, init: RequestInit): Promise<Response>;
  /** What relative addresses are relative to. */
  base: string | undefined;
  attention(): { visible: boolean; focused: boolean };
  /** Listens to the page; gives what ends it. */
  listen(changed: (change: PageChange) => void): () => void;
}

/** `setTimeout` takes 31 bits of milliseconds, and fires at once above them. */
const TIMEOUT_MS_MAX = 2 ** 31 - 1;

/** The browser that this page is in. */
export function browser(): Platform {
  const page = globalThis.document as Document | undefined;
  return {
    now: () => Date.now(),
    random: () => Math.random(),
    after,
    socket: (url, protocols) => new WebSocket(url, protocols),
    ...(globalThis.BroadcastChannel && { channel: (name: string) => new BroadcastChannel(name) }),
    // Only a secure context has locks; the types do not know.
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
    // Where storage is forbidden, already the access throws.
    return globalThis.localStorage;
  } catch {
    return undefined;
  }
}

function listen(changed: (change: PageChange) => void): () => void {
  const ends: (() => void)[] = [];
  const on = (target: EventTarget | undefined, type: string, listener: (event: Event) => void) => {
    target?.addEventListener(type, listener);
    ends.push(() => target?.removeEventListener(type, listener));
  };
  const page = globalThis.document as Document | undefined;
  const window = page && globalThis;
  on(window, "online", () => changed("hurry"));
  on(window, "focus", () => changed("attention"));
  on(window, "blur", () => changed("attention"));
  on(page, "visibilitychange", () => {
    changed("attention");
    if (page?.visibilityState === "visible") changed("hurry");
  });
  // A page with a socket or a lock is not let into the back/forward cache, and one in it must not own what others need.
  on(window, "pagehide", () => changed("suspend"));
  on(window, "pageshow", () => changed("resume"));
  // Page Lifecycle: the same for a hidden tab that the browser stops to save power.
  on(page, "freeze", () => changed("suspend"));
  on(page, "resume", () => changed("resume"));
  return () => {
    for (const end of ends) end();
  };
}
