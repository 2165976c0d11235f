// What a token says about itself. Nothing is verified here: the server does that. No I/O.

/** The claims that the client looks at. */
export interface Claims {
  sub?: string;
  /** Seconds since 1970. */
  exp?: number;
  iss?: unknown;
  aud?: unknown;
  feeds?: unknown;
}

/** Reads the claims of a JWT; nothing where it is none. */
export function claims(token: string): Claims {
  try {
    const [, payload = ""] = token.split(".");
    const bytes = atob(payload.replaceAll("-", "+").replaceAll("_", "/"));
    // `atob` gives one character a byte, but a `sub` may be any UTF-8.
    const json: unknown = JSON.parse(
      new TextDecoder().decode(Uint8Array.from(bytes, (char) => char.charCodeAt(0))),
    );
    return typeof json === "object" && json !== null ? json : {};
  } catch {
    return {};
  }
}

/**
 * Who reads what: tabs share a socket only where this is equal, so that neither another subscriber nor the same one with
 * other rights sees what its own token would not show. `undefined` where the token does not say: then nothing is shared.
 */
export function identity(token: string): string | undefined {
  const { sub, iss, aud, feeds } = claims(token);
  if (typeof sub !== "string") return undefined;
  return JSON.stringify([sub, iss ?? 0, sorted(aud), sorted(feeds)]);
}

function sorted(claim: unknown): unknown {
  return Array.isArray(claim) ? [...claim].sort() : (claim ?? 0);
}
