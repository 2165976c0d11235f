// What is said aloud: two lines for screen readers that stand in the page from the start, because many ignore a live region that
// comes together with its text. Routine waits for its turn; what failed is said at once.

import { h } from "./dom.js";

/** Between two sayings: one that is cut off by the next says nothing. */
const ROUTINE_MS = 2_000;
const ALERT_MS = 150;
/** Then a line is empty again, so that the same may be said once more. */
const CLEAR_MS = 10_000;
/** Of a storm so much is said, the newest. */
const SAYINGS_MAX = 4;

/** Collects what is to be said until it is its turn. Pure. */
export class Sayings {
  #texts = new Map<string, string>();

  /** @param key a later text of the same key says it better */
  add(text: string, key = text): void {
    this.#texts.delete(key);
    this.#texts.set(key, text);
    for (const one of this.#texts.keys()) {
      if (this.#texts.size <= SAYINGS_MAX) break;
      this.#texts.delete(one);
    }
  }

  take(): string {
    const text = [...this.#texts.values()].join(". ");
    this.#texts.clear();
    return text;
  }
}

export class Announcer {
  readonly #lines: Record<"status" | "alert", Line>;

  constructor(root: HTMLElement) {
    this.#lines = { status: new Line("status", ROUTINE_MS), alert: new Line("alert", ALERT_MS) };
    // First: at the end they would make the page longer.
    root.prepend(this.#lines.status.element, this.#lines.alert.element);
  }

  say(how: "status" | "alert", text: string, key?: string): void {
    this.#lines[how].say(text, key);
  }
}

class Line {
  readonly element: HTMLElement;
  readonly #sayings = new Sayings();
  #saidAt = Number.NEGATIVE_INFINITY;
  #next: ReturnType<typeof setTimeout> | undefined;
  #clear: ReturnType<typeof setTimeout> | undefined;

  constructor(
    role: "status" | "alert",
    private readonly intervalMs: number,
  ) {
    this.element = h("p", { class: "hidden-text", testid: `said-${role}`, attributes: { role } });
  }

  say(text: string, key?: string): void {
    this.#sayings.add(text, key);
    this.#next ??= setTimeout(
      () => this.#say(),
      Math.max(ALERT_MS, this.#saidAt + this.intervalMs - performance.now()),
    );
  }

  #say(): void {
    this.#next = undefined;
    this.#saidAt = performance.now();
    this.element.textContent = this.#sayings.take();
    clearTimeout(this.#clear);
    this.#clear = setTimeout(() => void (this.element.textContent = ""), CLEAR_MS);
  }
}
