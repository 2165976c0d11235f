// One card for each import: progress, failed items, result.

import { arrange, bdi, button, h, icon, setAttribute, setData, setText, whole } from "./dom.js";
import { ago, clip, exact } from "./format.js";
import { failures, type Import, type Item } from "./model.js";
import { texts } from "./texts.js";

const CARDS_STEP = 6;
const FAILURES_FIRST = 5;
const FAILURES_STEP = 50;

export interface ImportActions {
  /** Marks the import as handled. */
  dismiss(one: Import): void;
  read(items: Item[]): void;
}

export class Imports {
  #cards = new Map<string, Card>();
  #shown = CARDS_STEP;
  #imports: Import[] = [];
  readonly #list = h("div", { class: "cards" });
  readonly #empty = h(
    "div",
    { class: "card empty" },
    icon("box"),
    h("p", { class: "strong" }, texts.noImports),
    h("p", { class: "muted" }, texts.noImportsHint),
  );
  readonly #more: HTMLButtonElement;

  constructor(
    root: HTMLElement,
    private readonly actions: ImportActions,
  ) {
    this.#more = button("", { class: "secondary", testid: "more-imports" }, () => {
      this.#shown += CARDS_STEP;
      this.render(this.#imports);
    });
    root.replaceChildren(
      h(
        "div",
        { class: "heading" },
        h("h2", { attributes: { id: "imports-heading" } }, texts.importsHeading),
      ),
      this.#list,
      this.#empty,
      h("div", { class: "older" }, this.#more),
    );
  }

  render(imports: Import[]): void {
    this.#imports = imports;
    const part = imports.slice(0, this.#shown);
    const keys = new Set(part.map(({ key }) => key));
    for (const key of this.#cards.keys()) if (!keys.has(key)) this.#cards.delete(key);
    const now = Date.now();
    const cards = part.map((one) => {
      let card = this.#cards.get(one.key);
      if (!card) {
        card = new Card(one, this.actions);
        this.#cards.set(one.key, card);
      }
      card.render(one, now);
      return card.element;
    });
    arrange(this.#list, cards);
    this.#empty.hidden = imports.length > 0;
    this.#more.hidden = imports.length <= this.#shown;
    setText(this.#more, texts.moreImports(imports.length - this.#shown));
  }

  tick(now: number): void {
    for (const card of this.#cards.values()) card.tick(now);
  }
}

class Card {
  readonly element: HTMLElement;
  readonly #status = h("span", { class: "status" });
  readonly #time = h("time");
  readonly #bar = new ProgressBar();
  readonly #progress = h("span", { class: "progress" });
  readonly #failed = h("span", { class: "failed-count" });
  readonly #failures = h("details", { class: "failures" });
  readonly #summary = h("summary");
  readonly #rows = h("ul", { class: "failure-rows" });
  readonly #more: HTMLButtonElement;
  readonly #beyond = h("p", { class: "muted small" });
  readonly #dismiss: HTMLButtonElement;
  #shown = FAILURES_FIRST;
  /** Rows of failed items by number. */
  #made = new Map<number, { element: HTMLElement; item: Item }>();
  #failuresAt = "";

  constructor(
    private one: Import,
    private readonly actions: ImportActions,
  ) {
    this.#bar.label(texts.importProgress(clip(one.id, 60)));
    this.#more = button("", { class: "secondary small", testid: "more-failures" }, () => {
      this.#shown += FAILURES_STEP;
      this.#failuresAt = "";
      this.render(this.one, Date.now());
    });
    this.#dismiss = button(
      texts.dismiss,
      { class: "secondary small", testid: "dismiss-import" },
      () => this.actions.dismiss(this.one),
    );
    this.#failures.append(this.#summary, this.#rows, this.#more, this.#beyond);
    this.#failures.addEventListener("toggle", () => {
      const unread = [...this.one.items.values()].filter(
        ({ marks }) => marks.read_at === undefined,
      );
      if (this.#failures.open && unread.length > 0) this.actions.read(unread);
    });
    this.element = h(
      "article",
      { class: "card import", testid: "import" },
      h(
        "header",
        {},
        h("h3", {}, h("span", { class: "hidden-text" }, texts.importPrefix), bdi(one.id)),
        this.#status,
      ),
      this.#bar.element,
      h("p", { class: "numbers" }, this.#progress, this.#failed, this.#time),
      this.#failures,
      h("footer", {}, this.#dismiss),
    );
    this.element.dataset["importId"] = one.id;
    this.element.dataset["feed"] = one.feed;
  }

  render(one: Import, now: number): void {
    this.one = one;
    const { status, done, failed, total } = one;
    setData(this.element, "status", status);
    setData(this.element, "done", String(done));
    setData(this.element, "failed", String(failed));
    setData(this.element, "total", total === undefined ? "" : String(total));
    const words = {
      running: texts.importRunning,
      finished: texts.importFinished,
      aborted: texts.importAborted,
    };
    setText(this.#status, words[status]);
    setData(this.#status, "status", status);
    this.#bar.render(status, done, failed, total);
    setText(
      this.#progress,
      status === "running"
        ? texts.progress(done, total)
        : total !== undefined && done < total
          ? `${texts.progress(done, total)}: ${texts.tally(done - failed, failed)}`
          : texts.tally(done - failed, failed),
    );
    setText(this.#failed, failed > 0 && status === "running" ? texts.failed(failed) : "");
    this.#time.dateTime = new Date(one.at).toISOString();
    this.#time.title = exact(one.at);
    this.tick(now);
    this.#renderFailures();
    const unhandled = [...one.items.values()].some(({ marks }) => marks.handled_at === undefined);
    this.#dismiss.hidden = status === "running" || !unhandled;
    setData(this.element, "unhandled", String(unhandled));
    if (this.#dismiss.hidden && this.#dismiss === document.activeElement) this.#summary.focus();
  }

  tick(now: number): void {
    setText(this.#time, ago(this.one.at, now));
  }

  #renderFailures(): void {
    const { failed, changes, overflowed } = this.one;
    this.#failures.hidden = failed === 0;
    const at = `${changes}/${failed}`;
    if (failed === 0 || at === this.#failuresAt) return;
    this.#failuresAt = at;
    const known = failures(this.one);
    setText(this.#summary, texts.failures(Math.max(failed, known.length)));
    const part = known.slice(0, this.#shown);
    const seqs = new Set(part.map(({ seq }) => seq));
    for (const seq of this.#made.keys()) if (!seqs.has(seq)) this.#made.delete(seq);
    arrange(
      this.#rows,
      part.map((item) => {
        const made = this.#made.get(item.seq);
        const row = made?.item === item ? made : { element: failureRow(item), item };
        this.#made.set(item.seq, row);
        return row.element;
      }),
    );
    this.#more.hidden = known.length <= this.#shown;
    setText(this.#more, texts.moreFailures(Math.min(FAILURES_STEP, known.length - this.#shown)));
    const beyond = failed - known.length;
    setText(
      this.#beyond,
      beyond > 0 && known.length <= this.#shown
        ? (overflowed ? texts.failuresNotKept : texts.olderFailures)(beyond)
        : "",
    );
  }
}

/** A bar whose failed part has a colour of its own. */
class ProgressBar {
  readonly element: HTMLElement;
  readonly #fill = h("div", { class: "progress-fill" });

  constructor() {
    const attributes = { role: "progressbar", "aria-valuemin": "0", "aria-valuemax": "100" };
    this.element = h("div", { class: "progress-bar", attributes }, this.#fill);
  }

  label(text: string): void {
    setAttribute(this.element, "aria-label", text);
  }

  render(status: Import["status"], done: number, failed: number, total: number | undefined): void {
    // ARIA: a bar without a value is indeterminate.
    if (total === undefined && status === "running") this.element.removeAttribute("aria-valuenow");
    else setAttribute(this.element, "aria-valuenow", String(percentage(done, total)));
    const good = done === 0 ? 100 : ((done - failed) / done) * 100;
    this.#fill.style.setProperty("--done", `${percentage(done, total)}%`);
    this.#fill.style.setProperty("--good", `${good}%`);
  }
}

/** Rounded down to a tenth, so that 9,999 of 10,000 is not shown as full. */
function percentage(done: number, total: number | undefined): number {
  if (total === undefined || total === 0) return 100;
  return Math.floor((Math.min(done, total) / total) * 1_000) / 10;
}

function failureRow(item: Item): HTMLElement {
  const { index, sku, error } = item.notification.data as {
    index: number;
    sku: string;
    error?: string;
  };
  return h(
    "li",
    {
      testid: "failure",
      attributes: { "data-seq": String(item.seq), "data-index": String(index) },
    },
    h("span", { class: "sku" }, `#${index} `, bdi(sku)),
    h("span", { class: "error" }, whole(error ?? "")),
  );
}
