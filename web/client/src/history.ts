// What is stored, by HTTP: a feed's notifications, newest first.

import { ShopbellError, type Problem } from "./errors.js";
import type { Notification } from "./events.js";
import type { Platform } from "./platform.js";

/** Which part of a feed. */
export interface HistoryQuery {
  /** Only numbers below this: the `next` of the page before. */
  before?: number;
  /** 1 to 200 notifications a page; 50 where absent. */
  limit?: number;
  /** Only what nobody has read. */
  unread?: boolean;
  /** Only what nobody has handled. */
  unhandled?: boolean;
  /**
   * `false` for those too of which a newer one of the same `collapse_key` says it better. Where absent these are left out,
   * and what expired, but not with `unread` or `unhandled`.
   */
  collapse?: boolean;
  /** Gives up. */
  signal?: AbortSignal;
}

/** One page of a feed's history. */
export interface HistoryPage {
  feed: string;
  /** The newest number stored. */
  last: number;
  /** The newest state change that the page shows. */
  version: number;
  unread: number;
  unhandled: number;
  /** Newest first; may be few or none although there is a `next`. */
  notifications: Notification[];
  /** The `before` of the next page; `null` at the end. */
  next: number | null;
}

export async function fetchHistory(
  platform: Platform,
  base: string,
  token: () => Promise<string>,
  feed: string,
  { signal, ...filters }: HistoryQuery,
): Promise<HistoryPage> {
  const params = new URLSearchParams();
  for (const [name, value] of Object.entries(filters))
    if (value !== undefined) params.set(name, String(value));
  const query = params.toString();
  const url = `${base}/v1/feeds/${encodeURIComponent(feed)}/notifications${query && `?${query}`}`;
  const get = async () => {
    const headers = { authorization: `Bearer ${await token()}` };
    return platform.fetch(url, { headers, ...(signal && { signal }) });
  };
  try {
    let answer = await get();
    // Expired on its way, or out of the app's cache: a fresh one, once.
    if (answer.status === 401) answer = await get();
    if (!answer.ok) throw await problem(answer);
    return (await answer.json()) as HistoryPage;
  } catch (cause) {
    if (cause instanceof ShopbellError || signal?.aborted) throw cause;
    throw new ShopbellError("http_failed", `the history of ${feed} failed`, { cause });
  }
}

async function problem(answer: Response): Promise<ShopbellError> {
  const more: { status: number; problem?: Problem } = { status: answer.status };
  if (answer.headers.get("content-type")?.startsWith("application/problem+json")) {
    // A body that broke off says less than the status, which is there already.
    more.problem = (await answer.json().catch(() => undefined)) as Problem;
  }
  const what = more.problem?.detail ?? more.problem?.title ?? answer.statusText;
  return new ShopbellError("http_failed", `${answer.status} ${what}`.trim(), more);
}

/** The service's addresses from what an app wrote: `wss://…/v1/ws`, `https://…`, `/`, or anything between. */
export function addresses(
  url: string,
  base: string | undefined,
  device: string | undefined,
): { ws: string; http: string } {
  const root = new URL(url, base);
  root.protocol = root.protocol.replace(/^http/, "ws");
  if (root.protocol !== "ws:" && root.protocol !== "wss:")
    throw new TypeError(`not an address of Shopbell: ${url}`);
  root.hash = "";
  root.pathname = `${root.pathname.replace(/\/+$/, "").replace(/\/v1\/ws$/, "")}/v1/ws`;
  if (device !== undefined) root.searchParams.set("device", device);
  const http = new URL(root);
  http.protocol = http.protocol.replace(/^ws/, "http");
  return { ws: root.href, http: http.origin + http.pathname.replace(/\/v1\/ws$/, "") };
}
