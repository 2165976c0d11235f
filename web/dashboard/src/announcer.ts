// Announcements for screen readers: two hidden lines that are in the page from the start, because
// many screen readers ignore a live region that is added together with its text. Routine texts are
// delayed, alerts are not.

import { h } from "./dom.js";

/** Interval between announcements, so that a screen reader can finish each one. */
const ROUTINE_MS = 2_000;
const ALERT_MS = 150;
/** A line is cleared after this time, so that the same text can be announced again. */
const CLEAR_MS = 10_000;
/** Bound on the texts of one announcement; the newest are kept. */
const ANNOUNCEMENTS_MAX = 4;

/** Collects texts for the next announcement. Pure. */
export class Announcements {
  #texts = new Map<string, string>();

  /** @param key a later text with the same key replaces this one */
  add(text: string, key = text): void {
    this.#texts.delete(key);
    this.#texts.set(key, text);
    for (const one of this.#texts.keys()) {
      if (this.#texts.size <= ANNOUNCEMENTS_MAX) break;
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
    // At the end they would make the page longer.
    root.prepend(this.#lines.status.element, this.#lines.alert.element);
  }

  announce(how: "status" | "alert", text: string, key?: string): void {
    this.#lines[how].announce(text, key);
  }
}

class Line {
  readonly element: HTMLElement;
  readonly #announcements = new Announcements();
  #announcedAt = Number.NEGATIVE_INFINITY;
  #next: ReturnType<typeof setTimeout> | undefined;
  #clear: ReturnType<typeof setTimeout> | undefined;

  constructor(
    role: "status" | "alert",
    private readonly intervalMs: number,
  ) {
    this.element = h("p", {
      class: "hidden-text",
      testid: `announcer-${role}`,
      attributes: { role },
    });
  }

  announce(text: string, key?: string): void {
    this.#announcements.add(text, key);
    this.#next ??= setTimeout(
      () => this.#announce(),
      Math.max(ALERT_MS, this.#announcedAt + this.intervalMs - performance.now()),
    );
  }

  #announce(): void {
    this.#next = undefined;
    this.#announcedAt = performance.now();
    this.element.textContent = this.#announcements.take();
    clearTimeout(this.#clear);
    this.#clear = setTimeout(() => void (this.element.textContent = ""), CLEAR_MS);
  }
}
