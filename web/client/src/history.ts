// Stored notifications of a feed over HTTP, newest first.

import type { Problem, ShopbellError } from "./errors.js";
import type { Notification } from "./events.js";
import type { Platform } from "./platform.js";

/** Filters of a history request. */
export interface HistoryQuery {
  /** Only numbers below this; pass the `next` of the previous page. */
  before?: number;
  /** Notifications per page: 1 to 200, default 50. */
  limit?: number;
  /** Only unread notifications. */
  unread?: boolean;
  /** Only unhandled notifications. */
  unhandled?: boolean;
  /**
   * `false`: also notifications that expired or that a newer one with the same `collapse_key`
   * replaces. Default: `true` without `unread` and `unhandled`, else `false`.
   */
  collapse?: boolean;
  /** Aborts the request. */
  signal?: AbortSignal;
}

/** One page of a feed's history. */
export interface HistoryPage {
  feed: string;
  /** The newest stored number. */
  last: number;
  /** The newest mark that the page contains. */
  version: number;
  unread: number;
  unhandled: number;
  /** Newest first. May be empty even if `next` is not `null`. */
  notifications: Notification[];
  /** The `before` of the next page; `null` after the last one. */
  next: number | null;
}

export async function fetchHistory(
  platform: Platform,
  base: string,
  token: () => Promise<string>,
  feed: string,
  { signal, ...filters }: HistoryQuery,
  Failure: typeof ShopbellError,
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
    let response = await get();
    // The token may have expired: one retry with a fresh one.
    if (response.status === 401) response = await get();
    if (!response.ok) throw await problem(response, Failure);
    return (await response.json()) as HistoryPage;
  } catch (cause) {
    if (cause instanceof Failure || signal?.aborted) throw cause;
    throw new Failure("http_failed", `the history of ${feed} failed`, { cause });
  }
}

async function problem(response: Response, Failure: typeof ShopbellError): Promise<ShopbellError> {
  const more: { status: number; problem?: Problem } = { status: response.status };
  if (response.headers.get("content-type")?.startsWith("application/problem+json")) {
    // If the body is incomplete, the status is enough.
    more.problem = (await response.json().catch(() => undefined)) as Problem;
  }
  const detail = more.problem?.detail ?? more.problem?.title ?? response.statusText;
  return new Failure("http_failed", `${response.status} ${detail}`.trim(), more);
}
