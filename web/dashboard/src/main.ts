// Finds a token, then runs the dashboard with it; where it is refused, says why and asks for another.

import { connect, type Client } from "../../client/src/index.js";
import { Dashboard } from "./dashboard.js";
import { showDemo } from "./demo.js";
import { byId } from "./dom.js";
import { showSignIn } from "./sign-in.js";
import { texts } from "./texts.js";
import { asToken, asWhy, claims, fragmentOf, readAddress, type Why } from "./token.js";

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
  /** Gives whether it is remembered. */
  write: (key: string, value: string | undefined): boolean => {
    try {
      if (value === undefined) sessionStorage.removeItem(key);
      else sessionStorage.setItem(key, value);
      return true;
    } catch {
      // The token lives in this page only.
      return false;
    }
  },
};

const WHYS: Record<Why, string> = {
  expired: texts.tokenExpired,
  refused: texts.tokenRefused,
  no_feed: texts.tokenNoFeed,
  changed: texts.tokenChanged,
};

const address = readAddress(location.search, location.hash);
let given = address.token;
if (given !== undefined) memory.write(KEY, given);
if (given !== undefined || address.why !== undefined) {
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
  anew({ token });
});

const why = asWhy(memory.read(WHY_KEY)) ?? address.why;
memory.write(WHY_KEY, undefined);
if (given !== undefined && isExpired(given)) askForToken("expired");
else if (given === undefined && (address.tokenUrl === undefined || why !== undefined))
  askForToken(why);
else start();

function start(): void {
  let dashboard: Dashboard | undefined;
  const token = async (): Promise<string> => {
    const fresh = given ?? (await fetchToken(address.tokenUrl as string));
    if (given !== undefined && isExpired(given)) {
      // Nobody but a person can give a new one.
      over(client, "expired");
      throw new Error("the token has expired");
    }
    dashboard?.showMerchant(merchantOf(fresh));
    return fresh;
  };
  const client: Client = connect({ url: "/", token });
  dashboard = new Dashboard(client, {
    ended: ({ error }) => {
      if (error?.code === "token_refused") over(client, "refused");
      else if (error?.code === "no_feed") over(client, "no_feed");
      else if (error?.code === "subscriber_changed") over(client, "changed");
    },
    signOut: () => over(client, undefined),
  });
  if (given !== undefined) dashboard.showMerchant(merchantOf(given));
  if (address.demo) showDemo(byId("demo"), token, (what) => dashboard?.toasts.say(what));
  byId("app").hidden = false;
}

/** Ends this page's client and begins anew, with the form. */
function over(client: Client, reason: Why | undefined): void {
  client.close();
  memory.write(KEY, undefined);
  // What the page shows is one subscriber's: nothing of it may stay for the next.
  if (address.tokenUrl !== undefined && reason === undefined)
    location.replace(location.pathname + location.hash);
  else anew({ why: reason });
}

/** Loads the page anew with these: through the tab's storage, and where that is forbidden through the fragment, whence they go at once. */
function anew({ token, why }: { token?: string; why?: Why | undefined }): void {
  const keptToken = token === undefined || memory.write(KEY, token);
  const keptWhy = why === undefined || memory.write(WHY_KEY, why);
  const fragment = fragmentOf({
    demo: address.demo,
    token: keptToken ? undefined : token,
    why: keptWhy ? undefined : why,
  });
  history.replaceState(null, "", location.pathname + location.search + fragment);
  location.reload();
}

function askForToken(reason: Why | undefined): void {
  showSignIn(byId("sign-in"), reason && WHYS[reason], (token) => anew({ token }));
}

async function fetchToken(url: string): Promise<string> {
  const answer = await fetch(url, {
    credentials: "same-origin",
    cache: "no-store",
    redirect: "error",
  });
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
