// The wait before the next try. Pure: randomness is an argument.

/** Upper bound of the first wait. */
export const BACKOFF_BASE_MS = 500;
/** Upper bound of every wait, so that a bell rings at most ten seconds after the network is back. */
export const BACKOFF_CAP_MS = 10_000;

/**
 * Full jitter, `random(0, min(cap, base * 2 ** attempt))`, spreads the clients of a lost replica
 * (AWS Architecture Blog, "Exponential Backoff And Jitter").
 *
 * @param attempt 0 for the first wait.
 * @param random from 0 to 1.
 * @returns milliseconds.
 */
export function backoff(attempt: number, random: number): number {
  return random * Math.min(BACKOFF_CAP_MS, BACKOFF_BASE_MS * 2 ** attempt);
}
