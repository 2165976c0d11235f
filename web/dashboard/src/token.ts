// Where the token comes from: the fragment, a path of the same origin, or a person. Pure.

/** What the address says. */
export interface Address {
  token: string | undefined;
  tokenUrl: string | undefined;
  demo: boolean;
  /** The fragment without the token. */
  fragment: string;
}

/** Reads `?token-url=` and `#token=…&demo`. */
export function readAddress(search: string, hash: string): Address {
  const fragment = new URLSearchParams(hash.replace(/^#/, ""));
  const demo = fragment.has("demo");
  const token = fragment.get("token") ?? undefined;
  return { token, tokenUrl: samePath(new URLSearchParams(search).get("token-url")), demo, fragment: demo ? "#demo" : "" };
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
