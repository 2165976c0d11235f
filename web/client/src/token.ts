// The claims of a token. The server verifies it; this module does not. No I/O.

/** The claims that the client uses. */
export interface Claims {
  sub?: string;
  /** Seconds since 1970. */
  exp?: number;
  iss?: unknown;
  aud?: unknown;
  feeds?: unknown;
}

/** Reads the claims of a JWT; empty for any other text. */
export function claims(token: string): Claims {
  try {
    const [, payload = ""] = token.split(".");
    const bytes = atob(payload.replaceAll("-", "+").replaceAll("_", "/"));
    // `atob` returns one character per byte, but claims are UTF-8.
    const json: unknown = JSON.parse(
      new TextDecoder().decode(Uint8Array.from(bytes, (char) => char.charCodeAt(0))),
    );
    return typeof json === "object" && json !== null ? json : {};
  } catch {
    return {};
  }
}

/**
 * Subscriber and rights of a token. Tabs share a socket only if this is equal, so that no tab
 * receives more than its own token allows. `undefined` if the token has no `sub`: such tabs share
 * nothing.
 */
export function identity(token: string): string | undefined {
  const { sub, iss, aud, feeds } = claims(token);
  if (typeof sub !== "string") return undefined;
  return JSON.stringify([sub, iss ?? 0, sorted(aud), sorted(feeds)]);
}

function sorted(claim: unknown): unknown {
  return Array.isArray(claim) ? [...claim].sort() : (claim ?? 0);
}
