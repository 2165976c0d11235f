// The bar on top: bell, merchant, connection.

import type { Status } from "../../client/src/index.js";
import { button, h, icon, setAttribute, setData, setText } from "./dom.js";
import { ago, clip } from "./format.js";
import { texts } from "./texts.js";

export type ConnectionState =
  "connecting" | "catching_up" | "live" | "reconnecting" | "offline" | "ended";

export interface HeaderActions {
  showWaiting(): void;
  acceptAll(): void;
  setSound(on: boolean): void;
  signOut(): void;
}

export interface BellView {
  waiting: number;
  /** There may be more, because the page has not loaded all. */
  isAtLeast: boolean;
  /** The page searches for unhandled orders. */
  searching: boolean;
  oldestAt: number | undefined;
  /** The page has orders. */
  any: boolean;
  accepting: boolean;
}

export class Header {
  readonly #bell: HTMLButtonElement;
  readonly #headline = h("p", { class: "headline", testid: "headline" });
  readonly #merchant = h("bdi", { class: "merchant", testid: "merchant" });
  readonly #since = h("span", { class: "since" });
  #oldest = "";
  #isAway = false;
  readonly #connection = h("p", { class: "connection", testid: "connection" });
  readonly #word = h("span");
  readonly #acceptAll: HTMLButtonElement;
  readonly #sound: HTMLButtonElement;

  constructor(
    private readonly root: HTMLElement,
    sound: boolean,
    actions: HeaderActions,
  ) {
    this.#bell = button(icon("bell"), { class: "bell", testid: "bell" }, actions.showWaiting);
    this.#acceptAll = button(
      texts.acceptAll,
      { class: "primary accept-all", testid: "accept-all" },
      actions.acceptAll,
    );
    this.#sound = button(icon("mute"), { class: "quiet icon-button", testid: "sound" }, () => {
      const on = this.#sound.getAttribute("aria-pressed") !== "true";
      this.#showSound(on);
      actions.setSound(on);
    });
    this.#showSound(sound);
    this.#connection.append(h("span", { class: "dot" }), this.#word);
    const who = h("h1", { class: "who" }, h("span", {}, texts.product), this.#merchant);
    const signOut = button(
      icon("out"),
      {
        class: "quiet icon-button",
        testid: "sign-out",
        attributes: { "aria-label": texts.signOut, title: texts.signOut },
      },
      actions.signOut,
    );
    root.replaceChildren(
      h(
        "div",
        { class: "bar" },
        this.#bell,
        h(
          "div",
          { class: "bell-text" },
          this.#headline,
          h("div", { class: "below" }, who, this.#since),
        ),
        // Before the tools: they must not move under the pointer when this button disappears.
        this.#acceptAll,
        h("div", { class: "tools" }, this.#connection, this.#sound, signOut),
      ),
    );
  }

  showMerchant(name: string): void {
    setText(this.#merchant, clip(name, 80));
  }

  showBell(
    { waiting, isAtLeast, searching, oldestAt, any, accepting }: BellView,
    now: number,
  ): void {
    const rings = waiting > 0;
    setData(this.root, "ringing", String(rings));
    setData(this.#bell, "ringing", String(rings));
    setAttribute(
      this.#bell,
      "aria-label",
      rings ? texts.bellRings(waiting) : searching ? texts.searching : texts.bellQuiet,
    );
    setText(
      this.#headline,
      rings
        ? texts.ringing(waiting, isAtLeast)
        : searching
          ? texts.searching
          : any
            ? texts.quiet
            : texts.quietEmpty,
    );
    this.#oldest = oldestAt === undefined ? "" : texts.oldest(ago(oldestAt, now));
    this.#showSince();
    if (!rings && document.activeElement === this.#acceptAll) this.#bell.focus();
    this.#acceptAll.hidden = !rings;
    setText(this.#acceptAll, accepting ? texts.acceptingAll : texts.acceptAll);
    setAttribute(this.#acceptAll, "aria-disabled", String(accepting));
  }

  showConnection(state: ConnectionState, status: Status, now: number): void {
    const words: Record<ConnectionState, string> = {
      connecting: texts.connecting,
      catching_up: texts.catchingUp,
      live: texts.live,
      offline: texts.offline,
      reconnecting: texts.reconnectingIn(
        status.state === "waiting" ? Math.ceil((status.retryAt - now) / 1_000) : 0,
      ),
      ended: texts.ended(status.state === "closed" ? (status.error?.message ?? "") : ""),
    };
    setData(this.#connection, "state", state);
    setData(this.#connection, "transport", "transport" in status ? status.transport : "");
    setText(this.#word, words[state]);
    this.#isAway = state === "reconnecting" || state === "offline";
    setAttribute(
      this.#connection,
      "title",
      state === "live" || state === "catching_up" ? texts.liveHint : texts.awayHint,
    );
    this.#showSince();
  }

  /** Without a connection, the hint about it replaces the age. */
  #showSince(): void {
    setText(this.#since, this.#isAway ? texts.away : this.#oldest);
  }

  #showSound(on: boolean): void {
    setAttribute(this.#sound, "aria-pressed", String(on));
    setAttribute(this.#sound, "aria-label", texts.sound);
    setAttribute(this.#sound, "title", on ? texts.soundOn : texts.soundOff);
    this.#sound.replaceChildren(icon(on ? "sound" : "mute"));
  }
}

/** Decides when to announce a lost and a restored connection: once each. Pure. */
export class ConnectionNews {
  #wasLive = false;
  #isLost = false;

  next(state: ConnectionState): "lost" | "regained" | undefined {
    const isAway = state === "reconnecting" || state === "offline";
    if (isAway && this.#wasLive && !this.#isLost) {
      this.#isLost = true;
      return "lost";
    }
    if (state !== "live") return undefined;
    this.#wasLive = true;
    const regained = this.#isLost;
    this.#isLost = false;
    return regained ? "regained" : undefined;
  }
}

/** Combines the client's status with the state of the network. */
export function connectionState(status: Status, online: boolean): ConnectionState {
  switch (status.state) {
    case "closed":
      return "ended";
    case "waiting":
      return online ? "reconnecting" : "offline";
    default:
      return !online && status.state === "connecting" ? "offline" : status.state;
  }
}
