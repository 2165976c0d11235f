// Finds a token, then runs the dashboard with it; where it is refused, says why and asks for another.

import "@awesome.me/webawesome/dist/components/progress-bar/progress-bar.js";
import { connect, type Client } from "../../client/src/index.js";
import { Dashboard } from "./dashboard.js";
import { showDemo } from "./demo.js";
import { byId } from "./dom.js";
import { showSignIn } from "./sign-in.js";
import { texts } from "./texts.js";
import { asToken, claims, readAddress } from "./token.js";

const KEY = "shopbell.dashboard.token";
const WHY_KEY = "shopbell.dashboard.why";

/** What a tab remembers until it is closed; where storage is forbidden, until it is loaded anew. */
const memory = {
  read: (key: string): string | undefined => {
    try {
      return sessionStorage.getItem(key) ?? undefined;
    } catch {
      return undefined;
    }
  },
  write: (key: string, value: string | undefined): void => {
    try {
      if (value === undefined) sessionStorage.removeItem(key);
      else sessionStorage.setItem(key, value);
    } catch {
      // The token lives in this page only.
    }
  },
};

const address = readAddress(location.search, location.hash);
let given = address.token;
if (given !== undefined) {
  memory.write(KEY, given);
  // Not in the address bar, the history or a bookmark.
  history.replaceState(null, "", location.pathname + location.search + address.fragment);
}
given ??= memory.read(KEY);
// A link inside the page must not take the place of what the fragment says.
document.querySelector(".skip")?.addEventListener("click", (event) => {
  event.preventDefault();
  byId("orders").focus();
});
addEventListener("hashchange", () => {
  const { token } = readAddress("", location.hash);
  if (token === undefined) return;
  memory.write(KEY, token);
  history.replaceState(null, "", location.pathname + location.search + address.fragment);
  location.reload();
});

const why = memory.read(WHY_KEY);
memory.write(WHY_KEY, undefined);
if (given !== undefined && isExpired(given)) askForToken(texts.tokenExpired);
else if (given === undefined && (address.tokenUrl === undefined || why !== undefined)) askForToken(why);
else start();

function start(): void {
  let dashboard: Dashboard | undefined;
  const token = async (): Promise<string> => {
    const fresh = given ?? (await fetchToken(address.tokenUrl as string));
    if (given !== undefined && isExpired(given)) {
      // Nobody but a person can give a new one.
      over(client, texts.tokenExpired);
      throw new Error("the token has expired");
    }
    dashboard?.showMerchant(merchantOf(fresh));
    return fresh;
  };
  const client: Client = connect({ url: "/", token });
  dashboard = new Dashboard(client, {
    ended: ({ error }) => {
      if (error?.code === "token_refused") over(client, texts.tokenRefused);
      else if (error?.code === "no_feed") over(client, texts.tokenNoFeed);
      else if (error?.code === "subscriber_changed") over(client, texts.tokenChanged);
    },
    signOut: () => over(client, undefined),
  });
  if (given !== undefined) dashboard.showMerchant(merchantOf(given));
  if (address.demo) showDemo(byId("demo"), token, (what) => dashboard?.toasts.say(what));
  byId("app").hidden = false;
}

/** Ends this page's client and begins anew, with the form. */
function over(client: Client, reason: string | undefined): void {
  client.close();
  memory.write(KEY, undefined);
  if (reason !== undefined) memory.write(WHY_KEY, reason);
  // What the page shows is one subscriber's: nothing of it may stay for the next.
  if (address.tokenUrl !== undefined && reason === undefined) location.replace(location.pathname + location.hash);
  else location.reload();
}

function askForToken(reason: string | undefined): void {
  showSignIn(byId("sign-in"), reason, (token) => {
    memory.write(KEY, token);
    location.reload();
  });
}

async function fetchToken(url: string): Promise<string> {
  const answer = await fetch(url, { credentials: "same-origin", cache: "no-store", redirect: "error" });
  if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`.trim());
  const text = await answer.text();
  const token = asToken(text) ?? asToken(tokenIn(text));
  if (token === undefined) throw new Error("the answer is no token");
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
