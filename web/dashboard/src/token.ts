// The source of the token: the fragment, a path of the same origin, or the form. Pure.

/** The parameters of the page's address. */
export interface Address {
  token: string | undefined;
  tokenUrl: string | undefined;
  demo: boolean;
  /** The reason why the page was reloaded. */
  reason: Reason | undefined;
  /** The fragment without the token and the reason. */
  fragment: string;
}

/** The reason for the form. A code, so that a link cannot put text on the page. */
const REASONS = ["expired", "refused", "no_feed", "changed"] as const;
export type Reason = (typeof REASONS)[number];

export function asReason(text: string | null | undefined): Reason | undefined {
  return REASONS.find((reason) => reason === text);
}

/** The fragment that passes these to the reloaded page if storage is forbidden. */
export function fragmentOf({
  demo,
  token,
  reason,
}: {
  demo: boolean;
  token?: string | undefined;
  reason?: Reason | undefined;
}): string {
  const parts = [
    demo && "demo",
    token !== undefined && `token=${encodeURIComponent(token)}`,
    reason && `reason=${reason}`,
  ].filter((part) => part !== false && part !== undefined);
  return parts.length > 0 ? `#${parts.join("&")}` : "";
}

/** Reads `?token-url=` and `#token=…&demo`. */
export function readAddress(search: string, hash: string): Address {
  const fragment = new URLSearchParams(hash.replace(/^#/, ""));
  const demo = fragment.has("demo");
  const token = fragment.get("token") ?? undefined;
  return {
    token,
    tokenUrl: samePath(new URLSearchParams(search).get("token-url")),
    demo,
    reason: asReason(fragment.get("reason")),
    fragment: fragmentOf({ demo }),
  };
}

/** Returns a path on this host only: `//host` and `/\host` name other hosts. */
export function samePath(path: string | null): string | undefined {
  return path !== null && /^\/(?![/\\])/.test(path) && !/[\t\r\n]/.test(path) ? path : undefined;
}

/** The pasted text if it may be a JWT. */
export function asToken(text: string): string | undefined {
  const token = text.trim().replace(/^Bearer\s+/i, "");
  return /^[\w-]+\.[\w-]+\.[\w-]*$/.test(token) ? token : undefined;
}

export interface Claims {
  sub?: string;
  name?: string;
  /** Seconds since 1970. */
  exp?: number;
  feeds?: string[];
}

/** The claims of a token, without verification. */
export function claims(token: string): Claims {
  try {
    const encoded = (token.split(".")[1] ?? "").replaceAll("-", "+").replaceAll("_", "/");
    const bytes = Uint8Array.from(atob(encoded), (char) => char.charCodeAt(0));
    const payload = JSON.parse(new TextDecoder().decode(bytes)) as Record<string, unknown>;
    const { sub, name, exp, feeds } = payload;
    return {
      ...(typeof sub === "string" && { sub }),
      ...(typeof name === "string" && { name }),
      ...(typeof exp === "number" && { exp }),
      ...(Array.isArray(feeds) && { feeds: feeds.filter((feed) => typeof feed === "string") }),
    };
  } catch {
    return {};
  }
}
