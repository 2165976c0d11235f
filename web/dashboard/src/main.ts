// Gets a token and runs the dashboard with it. If the token is refused, shows the form with the
// reason.

import { connect, type Client } from "../../client/src/index.js";
import { Dashboard } from "./dashboard.js";
import { showDemo } from "./demo.js";
import { byId } from "./dom.js";
import { showSignIn } from "./sign-in.js";
import { texts } from "./texts.js";
import { asToken, asReason, claims, fragmentOf, readAddress, type Reason } from "./token.js";

const KEY = "shopbell.dashboard.token";
const REASON_KEY = "shopbell.dashboard.reason";

/** Memory of the tab. Without storage it lasts until the page is reloaded. */
const memory = {
  read: (key: string): string | undefined => {
    try {
      return sessionStorage.getItem(key) ?? undefined;
    } catch {
      return undefined;
    }
  },
  /** Returns whether the value is stored. */
  write: (key: string, value: string | undefined): boolean => {
    try {
      if (value === undefined) sessionStorage.removeItem(key);
      else sessionStorage.setItem(key, value);
      return true;
    } catch {
      // Storage is forbidden.
      return false;
    }
  },
};

const REASONS: Record<Reason, string> = {
  expired: texts.tokenExpired,
  refused: texts.tokenRefused,
  no_feed: texts.tokenNoFeed,
  changed: texts.tokenChanged,
};

const address = readAddress(location.search, location.hash);
let ownToken = address.token;
if (ownToken !== undefined) memory.write(KEY, ownToken);
if (ownToken !== undefined || address.reason !== undefined) {
  // Keeps the token out of the address bar, the history and bookmarks.
  history.replaceState(null, "", location.pathname + location.search + address.fragment);
}
ownToken ??= memory.read(KEY);
// A link inside the page must not replace the fragment.
document.querySelector(".skip")?.addEventListener("click", (event) => {
  event.preventDefault();
  byId("orders").focus();
});
addEventListener("hashchange", () => {
  const { token } = readAddress("", location.hash);
  if (token === undefined) return;
  reload({ token });
});

const reason = asReason(memory.read(REASON_KEY)) ?? address.reason;
memory.write(REASON_KEY, undefined);
if (ownToken !== undefined && isExpired(ownToken)) askForToken("expired");
else if (ownToken === undefined && (address.tokenUrl === undefined || reason !== undefined))
  askForToken(reason);
else start();

function start(): void {
  let dashboard: Dashboard | undefined;
  const token = async (): Promise<string> => {
    const fresh = ownToken ?? (await fetchToken(address.tokenUrl as string));
    if (ownToken !== undefined && isExpired(ownToken)) {
      // Only the user can enter a new one.
      endSession(client, "expired");
      throw new Error("the token has expired");
    }
    dashboard?.showMerchant(merchantOf(fresh));
    return fresh;
  };
  const client: Client = connect({ url: "/", token });
  dashboard = new Dashboard(client, {
    ended: ({ error }) => {
      if (error?.code === "token_refused") endSession(client, "refused");
      else if (error?.code === "no_feed") endSession(client, "no_feed");
      else if (error?.code === "subscriber_changed") endSession(client, "changed");
    },
    signOut: () => endSession(client, undefined),
  });
  if (ownToken !== undefined) dashboard.showMerchant(merchantOf(ownToken));
  if (address.demo) showDemo(byId("demo"), token, (message) => dashboard?.toasts.showText(message));
  byId("app").hidden = false;
}

/** Closes the client and reloads the page, with the form. */
function endSession(client: Client, reason: Reason | undefined): void {
  client.close();
  memory.write(KEY, undefined);
  // Reloads, so that nothing of this subscriber stays for the next one.
  if (address.tokenUrl !== undefined && reason === undefined)
    location.replace(location.pathname + location.hash);
  else reload({ reason: reason });
}

/**
 * Reloads the page. Token and reason are passed in the tab's storage, or in the fragment if storage
 * is forbidden.
 */
function reload({ token, reason }: { token?: string; reason?: Reason | undefined }): void {
  const keptToken = token === undefined || memory.write(KEY, token);
  const keptReason = reason === undefined || memory.write(REASON_KEY, reason);
  const fragment = fragmentOf({
    demo: address.demo,
    token: keptToken ? undefined : token,
    reason: keptReason ? undefined : reason,
  });
  history.replaceState(null, "", location.pathname + location.search + fragment);
  location.reload();
}

function askForToken(reason: Reason | undefined): void {
  showSignIn(byId("sign-in"), reason && REASONS[reason], (token) => reload({ token }));
}

async function fetchToken(url: string): Promise<string> {
  const response = await fetch(url, {
    credentials: "same-origin",
    cache: "no-store",
    redirect: "error",
  });
  if (!response.ok) throw new Error(`${response.status} ${response.statusText}`.trim());
  const text = await response.text();
  const token = asToken(text) ?? asToken(tokenIn(text));
  if (token === undefined) throw new Error("the response contains no token");
  return token;
}

/** `{"token":"…"}` */
function tokenIn(text: string): string {
  try {
    return String((JSON.parse(text) as { token?: unknown }).token ?? "");
  } catch {
    return "";
  }
}

function isExpired(token: string): boolean {
  const { exp } = claims(token);
  return exp !== undefined && exp * 1_000 <= Date.now();
}

function merchantOf(token: string): string {
  const { sub, name, feeds } = claims(token);
  return name ?? (feeds && feeds.length > 0 ? feeds.join(", ") : (sub ?? ""));
}
