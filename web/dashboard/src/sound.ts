// The chime: two strokes on a small bell, synthesised. Off by default.

const KEY = "shopbell.dashboard.sound";
/** Time of the last chime of any tab. */
const PLAYED_KEY = "shopbell.dashboard.chimed";
/** The chime is repeated at this interval while an order is unhandled. */
export const CHIME_INTERVAL_MS = 20_000;
const NEWS_INTERVAL_MS = 1_500;

/** A stored time further ahead than this means that the clock was set back. */
const CLOCK_MS_MAX = 10_000;

/** Returns whether enough time has passed since the last chime. */
export function mayChime(now: number, playedAt: number, again: boolean): boolean {
  return (
    playedAt - now > CLOCK_MS_MAX ||
    now - playedAt >= (again ? CHIME_INTERVAL_MS : NEWS_INTERVAL_MS)
  );
}

export class Sound {
  #context: AudioContext | undefined;
  #playedAt = 0;
  on = read();

  constructor() {
    // Browsers allow sound only after a user gesture.
    const wake = () => void (this.on && this.#audio()?.resume());
    addEventListener("pointerdown", wake);
    addEventListener("keydown", wake);
  }

  set(on: boolean): void {
    this.on = on;
    try {
      localStorage.setItem(KEY, on ? "on" : "off");
    } catch {
      // The setting lasts until the page is reloaded.
    }
    if (on)
      void this.#audio()
        ?.resume()
        .then(() => this.#strike());
  }

  /** Plays the chime in one tab at a time, with a shortest interval. */
  async chime(now: number, again = false): Promise<void> {
    // A tab that may not play sound must not take the lock.
    if (!this.on || this.#audio()?.state !== "running" || !mayChime(now, this.#playedAt, again))
      return;
    const play = async () => {
      // Another tab may have played it.
      this.#playedAt = Math.max(this.#playedAt, playedAt());
      if (!mayChime(now, this.#playedAt, again)) return;
      this.#playedAt = now;
      try {
        localStorage.setItem(PLAYED_KEY, String(now));
      } catch {
        // Only the lock coordinates the tabs.
      }
      this.#strike();
      await new Promise((done) => setTimeout(done, 1_500));
    };
    const locks = navigator.locks as LockManager | undefined;
    if (locks)
      await locks.request("shopbell.chime", { ifAvailable: true }, async (lock) => lock && play());
    else await play();
  }

  #audio(): AudioContext | undefined {
    if (!("AudioContext" in globalThis)) return undefined;
    return (this.#context ??= new AudioContext());
  }

  #strike(): void {
    const audio = this.#audio();
    if (audio?.state !== "running") return;
    // The partials of a bell are not harmonics, and each has its own decay.
    for (const [after, pitch] of [
      [0, 1],
      [0.22, 0.794],
    ] as const) {
      for (const [ratio, loudness, seconds] of [
        [1, 0.16, 1.1],
        [2.76, 0.05, 0.6],
        [5.4, 0.02, 0.3],
      ] as const) {
        const at = audio.currentTime + after;
        const tone = new OscillatorNode(audio, { frequency: 1_175 * pitch * ratio });
        const gain = new GainNode(audio, { gain: 0 });
        gain.gain.setValueAtTime(0, at);
        gain.gain.linearRampToValueAtTime(loudness, at + 0.005);
        gain.gain.exponentialRampToValueAtTime(0.0001, at + seconds);
        tone.connect(gain).connect(audio.destination);
        tone.start(at);
        tone.stop(at + seconds);
      }
    }
  }
}

function playedAt(): number {
  try {
    return Number(localStorage.getItem(PLAYED_KEY)) || 0;
  } catch {
    return 0;
  }
}

function read(): boolean {
  try {
    return localStorage.getItem(KEY) === "on";
  } catch {
    return false;
  }
}
