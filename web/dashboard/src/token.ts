// Where the token comes from: the fragment, a path of the same origin, or a person. Pure.

/** What the address says. */
export interface Address {
  token: string | undefined;
  tokenUrl: string | undefined;
  demo: boolean;
  /** Why the page before this one ended. */
  why: Why | undefined;
  /** The fragment without the token and the reason. */
  fragment: string;
}

/** Why a token is asked for. A word, not a text: a link must not be able to put words on the page. */
const WHYS = ["expired", "refused", "no_feed", "changed"] as const;
export type Why = (typeof WHYS)[number];

export function asWhy(text: string | null | undefined): Why | undefined {
  return WHYS.find((why) => why === text);
}

/** The fragment that hands these to the page as it is loaded anew, where a browser forbids storage. */
export function fragmentOf({
  demo,
  token,
  why,
}: {
  demo: boolean;
  token?: string | undefined;
  why?: Why | undefined;
}): string {
  const parts = [
    demo && "demo",
    token !== undefined && `token=${encodeURIComponent(token)}`,
    why && `why=${why}`,
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
    why: asWhy(fragment.get("why")),
    fragment: fragmentOf({ demo }),
  };
}

/** Only a path on this host: `//host` and `/\host` are addresses elsewhere. */
export function samePath(path: string | null): string | undefined {
  return path !== null && /^\/(?![/\\])/.test(path) && !/[\t\r\n]/.test(path) ? path : undefined;
}

/** What a person pasted, if it may be a JWT. */
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

/** What a token says of itself; nothing is verified here. */
export function claims(token: string): Claims {
  try {
    const payload = (token.split(".")[1] ?? "").replaceAll("-", "+").replaceAll("_", "/");
    const bytes = Uint8Array.from(atob(payload), (char) => char.charCodeAt(0));
    const said = JSON.parse(new TextDecoder().decode(bytes)) as Record<string, unknown>;
    const { sub, name, exp, feeds } = said;
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
