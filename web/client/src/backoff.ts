// How long to wait before the next try. Pure: randomness comes in as an argument.

/** The first wait is somewhere between nothing and this. */
export const BACKOFF_BASE_MS = 500;
/** No wait of our own is longer: a shop's bell that is half a minute late is bad enough. */
export const BACKOFF_CAP_MS = 30_000;

/**
 * Full jitter, `random(0, min(cap, base * 2 ** attempt))`: of all formulas it spreads a crowd that lost the same replica
 * best (AWS Architecture Blog, "Exponential Backoff And Jitter").
 *
 * @param attempt 0 for the first wait.
 * @param random from 0 to 1.
 * @returns milliseconds.
 */
export function backoff(attempt: number, random: number): number {
  return random * Math.min(BACKOFF_CAP_MS, BACKOFF_BASE_MS * 2 ** attempt);
}
