// A session over plain HTTP, for networks that block WebSockets: frames arrive by Server-Sent
// Events, or by polls if a proxy keeps the events, and leave by POST. To its user it is a socket.
// Beside the session it tries WebSockets.

import type { Problem } from "./errors.js";
import type { Platform, SocketLike } from "./platform.js";
import type { ClientFrame, ServerFrame, Welcome } from "./protocol.js";
import type { Opened } from "./socket.js";

/** Limit on the time to the first event of a stream. After it, or after a silence, polls begin. */
export const STREAM_TIMEOUT_MS = 4_000;
/** A stream counts as kept after a heartbeat interval plus this without an event. */
export const STREAM_SLACK_MS = 5_000;
/** The longest wait of a poll without news; a heartbeat interval if that is shorter. */
export const POLL_SECONDS = 25;
/** The server accepts this number of frames in a POST. */
export const FRAMES_MAX = 32;
/** A POST that fails this often in a row ends the session. */
export const POSTS_MAX = 4;
/** Upper bound of the wait before a POST is repeated; each failure doubles it. */
export const POST_RETRY_MS = 500;
/** A WebSocket is tried after this wait, which doubles up to the longest. */
export const UPGRADE_MS = 10_000;
export const UPGRADE_MS_MAX = 300_000;
/** Limit on the time to the first frame of a WebSocket. */
export const UPGRADE_TIMEOUT_MS = 10_000;

const ABNORMAL = 1006;
const EPOCH_CHANGED = 4410;

export interface HttpHooks {
  /** Returns the query that continues after the frames so far. */
  after(): URLSearchParams;
  /** Opens a WebSocket. */
  open(): Promise<Opened>;
  /** Gets a WebSocket that works, with its first frame. */
  adopt(opened: Opened, data: unknown): void;
}

/** Whether a proxy kept the events of a stream of this page. */
let keepsStreams = false;

export class HttpSocket implements SocketLike {
  onmessage: SocketLike["onmessage"] = null;
  onclose: SocketLike["onclose"] = null;
  transport: "stream" | "poll" = keepsStreams ? "poll" : "stream";
  readonly #platform: Platform;
  readonly #url: string;
  readonly #hooks: HttpHooks;
  readonly #abort = new AbortController();
  #token: string;
  /** After the first `welcome`. */
  #epoch: string | undefined;
  #silenceMs = STREAM_TIMEOUT_MS;
  #pollSeconds = POLL_SECONDS;
  #queue: ClientFrame[] = [];
  #posting = false;
  #ended = false;
  #upgradeMs = UPGRADE_MS;
  /** Cancels the wait for an attempt, or the attempt. */
  #cancelUpgrade = () => {};

  /** @param url the address of the WebSocket, with its query. */
  constructor(platform: Platform, url: string, token: string, hooks: HttpHooks) {
    this.#platform = platform;
    this.#url = url.replace(/^ws/, "http");
    this.#token = token;
    this.#hooks = hooks;
    this.#receive().catch(() => this.#end());
    this.#upgradeLater();
  }

  send(text: string): void {
    const frame = JSON.parse(text) as ClientFrame;
    // The next request uses it; a stream ends when its own token expires.
    if (frame.type === "auth") return void (this.#token = frame.token);
    // An ack covers the earlier ones.
    if (frame.type === "ack")
      this.#queue = this.#queue.filter(
        (other) => other.type !== "ack" || other.feed !== frame.feed,
      );
    this.#queue.push(frame);
    if (!this.#posting) void this.#post();
  }

  /** Frames that are queued are still sent. */
  close(): void {
    this.#ended = true;
    this.#abort.abort();
    this.#cancelUpgrade();
  }

  hurry(): void {
    this.#cancelUpgrade();
    void this.#upgrade();
  }

  async #receive(): Promise<void> {
    if (this.transport === "stream") await this.#stream();
    if (!this.#ended && keepsStreams) await this.#poll();
    this.#end();
  }

  /** Reads events until the end, or until none arrives in time. */
  async #stream(): Promise<void> {
    const abort = new AbortController();
    this.#abort.signal.addEventListener("abort", () => abort.abort());
    let cancel = () => {};
    const watch = () => {
      cancel();
      cancel = this.#platform.after(this.#silenceMs, () => {
        keepsStreams = true;
        this.transport = "poll";
        abort.abort();
      });
    };
    watch();
    try {
      const response = await this.#get(this.#address("stream"), abort.signal);
      const reader = response?.body?.pipeThrough(new TextDecoderStream()).getReader();
      for (let text = ""; reader;) {
        const { done, value } = await reader.read();
        if (done) break;
        const events = (text + value).split("\n\n");
        text = events.pop() ?? "";
        for (const event of events) {
          const lines = event.split("\n").filter((line) => line.startsWith("data: "));
          if (lines.length) this.#onFrame(lines.map((line) => line.slice(6)).join("\n"));
          watch();
        }
      }
    } catch (error) {
      if (!abort.signal.aborted) throw error;
    } finally {
      cancel();
    }
  }

  async #poll(): Promise<void> {
    // The first poll does not wait, because its frames arrive together.
    for (let wait = 0; !this.#ended; wait = this.#pollSeconds) {
      const address = this.#address("stream");
      const begun = this.#epoch !== undefined;
      if (begun) {
        address.searchParams.delete("state");
        for (const [name, value] of this.#hooks.after()) address.searchParams.append(name, value);
      }
      address.searchParams.set("wait", String(wait));
      const response = await this.#get(address, this.#abort.signal);
      if (!response) return;
      const frames = (await response.json()) as ServerFrame[];
      const [welcome] = frames;
      if (welcome?.type !== "welcome") return;
      // Each poll has a welcome; only the first one begins a session.
      if (begun) frames.shift();
      if (begun && (welcome.feeds[0]?.epoch ?? "") !== this.#epoch) return this.#end(EPOCH_CHANGED);
      for (const frame of frames) this.#onFrame(JSON.stringify(frame));
    }
  }

  #onFrame(data: string): void {
    if (this.#ended) return;
    if (data.startsWith('{"type":"close",')) {
      const { code, reason } = JSON.parse(data) as { code: number; reason: unknown };
      return this.#end(code, JSON.stringify(reason));
    }
    if (data.startsWith('{"type":"welcome",')) {
      const { feeds, heartbeat_seconds } = JSON.parse(data) as Welcome;
      this.#epoch = feeds[0]?.epoch ?? "";
      this.#silenceMs = heartbeat_seconds * 1000 + STREAM_SLACK_MS;
      this.#pollSeconds = Math.min(POLL_SECONDS, heartbeat_seconds);
    }
    this.onmessage?.({ data } as MessageEvent);
  }

  async #get(url: URL, signal: AbortSignal): Promise<Response | undefined> {
    const headers = { Authorization: `Bearer ${this.#token}` };
    const response = await this.#platform.fetch(url.href, { headers, signal, cache: "no-store" });
    if (response.ok) return response;
    const problem = (await response.json().catch(() => ({}))) as Problem;
    const { close_code: code, reason, detail, retry_after_ms } = problem;
    // A refusal that is final for a handshake may concern only the query of this poll.
    if (typeof code !== "number" || (this.#epoch !== undefined && code >= 4500))
      return void this.#end();
    return void this.#end(code, JSON.stringify({ code: reason, message: detail, retry_after_ms }));
  }

  async #post(): Promise<void> {
    this.#posting = true;
    for (let failures = 0; this.#queue.length > 0;) {
      const frames = this.#queue.splice(0, FRAMES_MAX);
      const address = this.#address("frames");
      address.searchParams.delete("state");
      if (this.#epoch) address.searchParams.set("epoch", this.#epoch);
      const response = await this.#platform
        .fetch(address.href, {
          method: "POST",
          headers: { Authorization: `Bearer ${this.#token}`, "Content-Type": "application/json" },
          body: JSON.stringify(frames),
          // The page may be closing.
          keepalive: true,
        })
        .catch(() => undefined);
      const replies = response?.ok && (await response.json().catch(() => undefined));
      if (replies) {
        failures = 0;
        for (const reply of replies) this.#onFrame(JSON.stringify(reply));
        continue;
      }
      const { status = 503 } = response ?? {};
      if (this.#ended || ++failures === POSTS_MAX || (status < 500 && status !== 429)) {
        this.#end(status === 409 ? EPOCH_CHANGED : ABNORMAL);
        break;
      }
      this.#queue.unshift(...frames);
      const ms = POST_RETRY_MS * 2 ** failures * this.#platform.random();
      await new Promise<void>((resume) => this.#platform.after(ms, resume));
    }
    this.#posting = false;
  }

  #upgradeLater(): void {
    this.#cancelUpgrade();
    this.#cancelUpgrade = this.#platform.after(this.#upgradeMs, () => void this.#upgrade());
    this.#upgradeMs = Math.min(2 * this.#upgradeMs, UPGRADE_MS_MAX);
  }

  async #upgrade(): Promise<void> {
    let cancelled = false;
    this.#cancelUpgrade = () => (cancelled = true);
    const opened = await this.#hooks.open().catch(() => undefined);
    if (cancelled) return opened?.socket.close();
    if (!opened) return this.#upgradeLater();
    const { socket } = opened;
    const cancelTimeout = this.#platform.after(UPGRADE_TIMEOUT_MS, () => this.#upgradeLater());
    this.#cancelUpgrade = () => {
      cancelTimeout();
      socket.onmessage = socket.onclose = null;
      socket.close();
    };
    socket.onclose = () => this.#upgradeLater();
    socket.onmessage = ({ data }) => {
      cancelTimeout();
      this.#cancelUpgrade = () => {};
      this.#hooks.adopt(opened, data);
    };
  }

  #address(name: "stream" | "frames"): URL {
    const url = new URL(this.#url);
    url.pathname = url.pathname.replace(/ws$/, name);
    return url;
  }

  #end(code = ABNORMAL, reason = ""): void {
    if (this.#ended) return;
    this.close();
    this.onclose?.({ code, reason } as CloseEvent);
  }
}
