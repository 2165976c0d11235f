// News in the corner, a few at once; a storm is one sentence. Routine is told when there is time (`status`), what failed at once
// (`alert`): by the page's persistent lines, so the toasts themselves have the role but stay silent.

import type { Announcer } from "./announcer.js";
import { bdi, button, h, icon, setText, type Icon } from "./dom.js";
import { money } from "./format.js";
import { FAILURES_MAX, type Item, type Order } from "./model.js";
import { texts } from "./texts.js";
import type { Toast } from "./toast-plan.js";

const TOASTS_MAX = 3;
const ROUTINE_MS = 8_000;
const ALERT_MS = 20_000;
/** A text that a screen reader says again at each change is changed no more often. */
const UPDATE_MS = 2_000;

interface Shown {
  element: HTMLElement;
  remaining: number;
  /** Whether everything that it is about has been seen. */
  isSettled: () => boolean;
  failed?: { key: string; count: () => number; text: HTMLElement; told: number; items: Item[] };
}

export class Toasts {
  #shown: Shown[] = [];
  #more = 0;
  #moreRemaining = 0;
  /** A person looks at them, or is among them. */
  #hovered = false;
  #focused = false;
  #tickedAt = 0;
  readonly #list = h("div", { class: "toast-list" });
  readonly #moreText = h("p", { class: "toast-more", testid: "toast-more" });

  constructor(
    root: HTMLElement,
    private readonly announcer: Announcer,
    private readonly accept: (items: Item[]) => void,
    /** How many items of an import have failed by now. */
    private readonly failedOf: (feed: string, id: string) => number,
  ) {
    root.replaceChildren(this.#list, this.#moreText);
    this.#showMore();
    root.addEventListener("pointerenter", () => void (this.#hovered = true));
    for (const event of ["pointerleave", "pointercancel"])
      root.addEventListener(event, () => void (this.#hovered = false));
    root.addEventListener("focusin", () => void (this.#focused = true));
    root.addEventListener(
      "focusout",
      (event) => void (this.#focused = root.contains(event.relatedTarget as Node | null)),
    );
    root.addEventListener("keydown", (event) => {
      const at = this.#shown.findIndex(({ element }) => element.contains(event.target as Node));
      if (event.key === "Escape" && at >= 0) this.#close(this.#shown[at] as Shown);
    });
    setInterval(() => this.#tick(performance.now()), 250);
  }

  show(toasts: Toast[]): void {
    for (const toast of toasts) {
      if (toast.kind === "failed" && this.#grow(toast)) continue;
      if (toast.kind === "finished") this.#closeFailed(toast.item);
      if (this.#shown.length >= TOASTS_MAX) {
        // What failed is not lost among orders: it takes the place of the oldest routine one.
        const routine = isAlert(toast) ? this.#shown.find(({ failed }) => !failed) : undefined;
        this.#more++;
        this.#moreRemaining = ROUTINE_MS;
        if (!routine) continue;
        this.#close(routine);
      }
      this.#put(this.#make(toast));
    }
    this.#showMore();
    if (this.#more > 0 && toasts.length > 0)
      this.announcer.say("status", texts.toastMore(this.#more), "more");
  }

  /** Something about the whole page, in the words of `texts`. */
  say(text: string): void {
    const element = this.#frame("alert", "alert", text, undefined);
    this.#add({ element, remaining: ALERT_MS, isSettled: () => false });
  }

  /** What somebody has seen or accepted meanwhile, here or elsewhere, is no news any more. */
  settle(): void {
    for (const one of [...this.#shown]) if (one.isSettled()) this.#close(one);
  }

  #add(shown: Shown): void {
    if (this.#shown.length >= TOASTS_MAX) this.#close(this.#shown[0] as Shown);
    this.#put(shown);
  }

  #put(shown: Shown): void {
    this.#shown.push(shown);
    this.#list.append(shown.element);
    const words = [...shown.element.querySelectorAll(".toast-body p")].map(
      ({ textContent }) => textContent,
    );
    this.announcer.say(shown.element.getAttribute("role") as "status" | "alert", words.join(", "));
  }

  #tick(now: number): void {
    const passed = now - (this.#tickedAt || now);
    this.#tickedAt = now;
    if (this.#hovered || this.#focused || document.hidden) return;
    for (const one of [...this.#shown]) {
      one.remaining -= passed;
      const { failed } = one;
      if (failed && failed.told > UPDATE_MS) {
        setText(failed.text, texts.toastFailed(failed.count()));
        failed.told = 0;
      } else if (failed) failed.told += passed;
      if (one.remaining <= 0) this.#close(one);
    }
    this.#moreRemaining -= passed;
    if (this.#more > 0 && (this.#moreRemaining <= 0 || this.#shown.length === 0)) {
      this.#more = 0;
      this.#showMore();
    }
  }

  #showMore(): void {
    this.#moreText.hidden = this.#more === 0;
    setText(this.#moreText, this.#more > 0 ? texts.toastMore(this.#more) : "");
  }

  #close(one: Shown): void {
    this.#shown = this.#shown.filter((other) => other !== one);
    const hadFocus = one.element.contains(document.activeElement);
    one.element.remove();
    // What is removed under the pointer, or with the focus, tells nobody that it was left.
    if (this.#shown.length === 0) this.#hovered = false;
    if (!hadFocus) return;
    this.#focused = false;
    (
      this.#shown.at(-1)?.element.querySelector("button") ??
      document.querySelector<HTMLElement>('[data-testid="bell"]')
    )?.focus();
  }

  /** Failures of one import are one toast. */
  #grow(toast: Extract<Toast, { kind: "failed" }>): boolean {
    const one = this.#shown.find(({ failed }) => failed?.key === `${toast.feed}/${toast.id}`);
    if (!one?.failed) return false;
    one.failed.items = [...one.failed.items, ...toast.items].slice(-FAILURES_MAX);
    one.remaining = ALERT_MS;
    return true;
  }

  /** An import's result says how many failed, too. */
  #closeFailed({ feed, notification }: Item): void {
    const key = `${feed}/${(notification.data as { import_id: string }).import_id}`;
    const one = this.#shown.find(({ failed }) => failed?.key === key);
    if (one) this.#close(one);
  }

  #make(toast: Toast): Shown {
    const isSeen = ({ facts, gone }: Item) =>
      gone === true || facts.handled_at !== undefined || facts.read_at !== undefined;
    switch (toast.kind) {
      case "order": {
        const { item } = toast;
        const order = item.notification.data as Order;
        const text = h("span", {}, texts.toastOrder, " ", bdi(order.order_id));
        const detail = h(
          "span",
          {},
          h("strong", {}, money(order.total, order.currency)),
          ` · ${texts.items(Number(order.items))}`,
        );
        const element = this.#frame("bell", "status", text, detail, item);
        const accept = button(
          texts.accept,
          { class: "primary small", testid: "toast-accept" },
          () => this.accept([item]),
        );
        element.querySelector(".toast-body")?.after(accept);
        return { element, remaining: ROUTINE_MS, isSettled: () => isSeen(item) };
      }
      case "failed": {
        const { items, feed, id } = toast;
        const count = () => Math.max(failed.items.length, this.failedOf(feed, id));
        const text = h(
          "span",
          {},
          texts.toastFailed(Math.max(items.length, this.failedOf(feed, id))),
        );
        const element = this.#frame("alert", "alert", text, bdi(id), items[0]);
        const failed = { key: `${feed}/${id}`, count, text, told: 0, items };
        return {
          element,
          remaining: ALERT_MS,
          isSettled: () => failed.items.every(isSeen),
          failed,
        };
      }
      case "finished": {
        const { notification } = toast.item;
        const data = notification.data as { import_id: string; status: string };
        const { done = 0, failed = 0 } = notification.progress ?? {};
        const aborted = data.status === "aborted";
        const bad = isAlert(toast);
        const detail = h(
          "span",
          {},
          bdi(data.import_id),
          `: ${texts.tally(done - failed, failed)}`,
        );
        const element = this.#frame(
          bad ? "alert" : "check",
          bad ? "alert" : "status",
          aborted ? texts.toastAborted : texts.toastFinished,
          detail,
          toast.item,
        );
        return {
          element,
          remaining: bad ? ALERT_MS : ROUTINE_MS,
          isSettled: () => isSeen(toast.item),
        };
      }
      case "other":
        return {
          element: this.#frame(
            "bell",
            "status",
            bdi(toast.item.notification.event),
            undefined,
            toast.item,
          ),
          remaining: ROUTINE_MS,
          isSettled: () => isSeen(toast.item),
        };
      case "away": {
        const parts = [
          toast.orders > 0 && texts.orders(toast.orders),
          toast.failed > 0 && texts.awayFailed(toast.failed),
          toast.imports > 0 && texts.awayImports(toast.imports),
          toast.others > 0 && texts.awayOthers(toast.others),
        ].filter((part) => part !== false);
        const element = this.#frame(
          "away",
          toast.failed > 0 ? "alert" : "status",
          texts.missed(parts),
          undefined,
        );
        element.dataset["kind"] = "summary";
        return { element, remaining: ALERT_MS, isSettled: () => toast.items.every(isSeen) };
      }
    }
  }

  #frame(
    name: Icon,
    role: "status" | "alert",
    text: Node | string,
    detail: Node | undefined,
    item?: Item,
  ): HTMLElement {
    const close = button(
      icon("close"),
      {
        class: "quiet icon-button",
        testid: "toast-close",
        attributes: { "aria-label": texts.close },
      },
      () => {
        const one = this.#shown.find((shown) => shown.element === element);
        if (one) this.#close(one);
      },
    );
    const body = h(
      "div",
      { class: "toast-body" },
      h("p", { class: "toast-title" }, text),
      detail && h("p", { class: "toast-detail" }, detail),
    );
    const element = h(
      "div",
      {
        class: "toast",
        testid: "toast",
        attributes: { role, "aria-live": "off", "data-kind": name },
      },
      icon(name),
      body,
      close,
    );
    if (item) element.dataset["seq"] = String(item.seq);
    return element;
  }
}

/** What needs a person although nothing rings for it. */
function isAlert(toast: Toast): boolean {
  if (toast.kind !== "finished") return toast.kind === "failed";
  const { data, progress } = toast.item.notification;
  return (data as { status: string }).status === "aborted" || (progress?.failed ?? 0) > 0;
}
