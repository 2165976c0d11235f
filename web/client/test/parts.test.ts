import assert from "node:assert/strict";
import { test } from "node:test";
import { BACKOFF_BASE_MS, BACKOFF_CAP_MS, backoff } from "../src/backoff.js";
import { ShopbellError } from "../src/errors.js";
import { matches } from "../src/events.js";
import { addresses } from "../src/addresses.js";
import { fetchHistory } from "../src/history.js";
import { browser, type Platform } from "../src/platform.js";
import { closeMeaning, parseFrame } from "../src/protocol.js";
import { Requests } from "../src/requests.js";
import { CompletedSeqs } from "../src/completed.js";
import { claims, identity } from "../src/token.js";
import { jwt } from "./server.js";

const welcome = (version = 0) => ({
  type: "welcome" as const,
  session: "s",
  subscriber: "me",
  device: "",
  window: 256,
  heartbeat_seconds: 25,
  token_expires_in: 60,
  feeds: [{ feed: "m", cursor: 0, last: 9, unread: 0, unhandled: 0, version }],
});

test("a wait is between zero and the doubled base, up to the cap", () => {
  assert.equal(backoff(0, 0), 0);
  assert.equal(backoff(0, 1), BACKOFF_BASE_MS);
  assert.equal(backoff(3, 0.5), BACKOFF_BASE_MS * 4);
  assert.equal(backoff(2000, 1), BACKOFF_CAP_MS);
});

test("final close codes have an error, others mean reconnect", () => {
  for (const code of [
    1000, 1001, 1005, 1006, 1011, 1012, 1013, 3000, 4000, 4401, 4408, 4409, 4429, 4499,
  ]) {
    assert.equal(closeMeaning(code, "").error, undefined, `${code} means reconnect`);
  }
  for (const code of [1002, 1003, 1007, 1009, 4500, 4501, 4502, 4503, 4999]) {
    assert.equal(closeMeaning(code, "").error?.closeCode, code, `${code} is final`);
  }
  assert.equal(closeMeaning(4501, "").error?.code, "token_refused");
  assert.equal(closeMeaning(4777, '{"code":"new_one"}').error?.code, "new_one");
  assert.equal(closeMeaning(1012, '{"code":"going_away","retry_after_ms":700}').retryAfterMs, 700);
  for (const reason of [
    "proxy says no",
    "null",
    "[]",
    '{"retry_after_ms":-1}',
    '{"retry_after_ms":"1"}',
  ]) {
    assert.equal(closeMeaning(1012, reason).retryAfterMs, undefined);
  }
});

test("unknown frames are ignored, invalid ones are protocol faults", () => {
  assert.equal(parseFrame('{"type":"tomorrow"}'), undefined);
  assert.equal(parseFrame('{"type":"constructor"}'), undefined);
  assert.deepEqual(parseFrame('{"type":"pong","new":1}'), { type: "pong", new: 1 });
  const broken = [
    "",
    "[]",
    "null",
    '{"feed":"m"}',
    '{"type":"notification","feed":"m","seq":0,"event":"x"}',
    '{"type":"notification","feed":"m","seq":1.5,"event":"x"}',
    '{"type":"skipped","feed":"m","from":3,"through":2}',
    '{"type":"state","feed":"m","unread":1,"unhandled":1,"last":1}',
    '{"type":"goaway"}',
    '{"type":"welcome","subscriber":"s","device":"","window":1,"heartbeat_seconds":1,"token_expires_in":1,"feeds":[{}]}',
  ];
  for (const text of broken)
    assert.throws(() => parseFrame(text), { code: "protocol_fault" }, text);
  assert.throws(() => parseFrame(new ArrayBuffer(1)), { code: "protocol_fault" });
});

test("a pattern matches a type, a prefix, or everything", () => {
  assert.ok(matches("*", "anything") && matches("import.*", "import.item") && matches("a", "a"));
  assert.ok(
    !matches("import.*", "import") && !matches("import.*", "important.item") && !matches("a", "ab"),
  );
});

test("the identity of a token contains its subject and rights", () => {
  assert.equal(claims(jwt({ sub: "Žofie 🛎" })).sub, "Žofie 🛎");
  assert.deepEqual(claims("opaque"), {});
  assert.equal(identity("opaque"), undefined);
  assert.equal(identity(jwt({ exp: 1 })), undefined);
  assert.equal(
    identity(jwt({ sub: "a", exp: 1, feeds: ["x", "y"] })),
    identity(jwt({ sub: "a", exp: 2, feeds: ["y", "x"] })),
  );
  assert.notEqual(identity(jwt({ sub: "a" })), identity(jwt({ sub: "b" })));
  assert.notEqual(identity(jwt({ sub: "a" })), identity(jwt({ sub: "a", feeds: ["x"] })));
});

test("addresses are computed from any form of the URL", () => {
  const page = "https://shop.example/orders?x#y";
  const ws = (url: string) => addresses(url, page, undefined).ws;
  assert.equal(ws("/"), "wss://shop.example/v1/ws");
  assert.equal(ws("http://h:1/bell/"), "ws://h:1/bell/v1/ws");
  assert.equal(ws("wss://h/bell/v1/ws"), "wss://h/bell/v1/ws");
  assert.equal(addresses("wss://h/bell/v1/ws", page, "a b").ws, "wss://h/bell/v1/ws?device=a+b");
  assert.equal(addresses("wss://h/bell/v1/ws", page, "d").http, "https://h/bell");
  assert.throws(() => ws("ftp://h"), TypeError);
  assert.throws(() => addresses("/", undefined, undefined), TypeError);
});

test("numbers stay in memory if the store throws", () => {
  const broken = () => {
    throw new Error("private");
  };
  const completed = new CompletedSeqs({ getItem: broken, setItem: broken }, "u");
  const owner = { subscriber: "s", device: "", feeds: [] };
  assert.equal(completed.read(owner, "m"), 0);
  completed.write(owner, "m", 7);
  assert.equal(completed.read(owner, "m"), 7);
  assert.equal(completed.read({ ...owner, device: "other" }, "m"), 0);
  const full = new CompletedSeqs({ getItem: () => "3", setItem: broken }, "u");
  full.write(owner, "m", 8);
  assert.equal(full.read(owner, "m"), 8, "memory wins over the full store");
  const odd = new CompletedSeqs({ getItem: () => "1e400", setItem: () => {} }, "u");
  assert.equal(odd.read(owner, "m"), 0);
});

test("requests of a feed are sent one at a time and repeated", () => {
  const sent: unknown[] = [];
  const later: (() => void)[] = [];
  const outcomes: unknown[] = [];
  const it = new Requests(
    (frame) => sent.push(frame),
    (_, fn) => later.push(fn),
  );
  const state = { type: "state" as const, feed: "m", unread: 0, unhandled: 0, last: 9 };
  it.add({ type: "read", feed: "m", seqs: [1, 2] }, (outcome) => outcomes.push(outcome));
  it.add({ type: "handle", feed: "m", seqs: [2] }, (outcome) => outcomes.push(outcome));
  it.add({ type: "read", feed: "m", through: 5 }, (outcome) => outcomes.push(outcome));
  assert.equal(sent.length, 1);
  it.onWelcome(welcome(), false);
  assert.equal(sent.length, 2, "again, after a reconnect");
  it.onState({ ...state, seqs: [2], read_at: "t", version: 1 });
  it.onState({ ...state, seqs: [1], handled_at: "t", version: 2 });
  assert.equal(outcomes.length, 0, "1 is not read yet");
  it.onWelcome(welcome(), false);
  assert.deepEqual(sent.pop(), { type: "read", feed: "m", seqs: [1] }, "the rest, again");
  it.onError("ack_not_sent", "", "m");
  it.onState({ ...state, seqs: [1], read_at: "t" });
  assert.equal((outcomes[0] as unknown[]).length, 2);
  it.onError("busy", "", "m");
  assert.equal(sent.length, 3);
  later[0]?.();
  assert.deepEqual(sent[3], { type: "handle", feed: "m", seqs: [2] });
  it.onError("unknown_seq", "no", "m");
  assert.deepEqual(outcomes[1], { code: "unknown_seq", message: "no" });
  it.onState({ ...state, through: 4, read_at: "t", version: 3 });
  assert.equal(outcomes.length, 2);
  it.onState({ ...state, through: 6, read_at: "t", version: 4 });
  assert.equal(outcomes.length, 3);
});

test("a partly confirmed request is not sent again", () => {
  const sent: unknown[] = [];
  const later: (() => void)[] = [];
  const it = new Requests(
    (frame) => sent.push(frame),
    (_, fn) => later.push(fn),
  );
  const pass = () => later.splice(0).forEach((fn) => fn());
  it.add({ type: "read", feed: "m", seqs: [1, 99] }, () => {});
  it.onState({
    type: "state",
    feed: "m",
    seqs: [1],
    read_at: "t",
    version: 1,
    unread: 0,
    unhandled: 0,
    last: 9,
  });
  pass();
  assert.equal(sent.length, 1, "another frame confirms the rest");
  it.onError("busy", "", "m");
  it.onWelcome(welcome(), false);
  pass();
  assert.equal(sent.length, 2, "the new session has sent it already");
  it.onError("busy", "", "m");
  pass();
  assert.deepEqual(sent[2], { type: "read", feed: "m", seqs: [99] });
});

test("read through is settled by a new frame that covers the feed", () => {
  const outcomes: unknown[] = [];
  const it = new Requests(
    () => {},
    () => {},
  );
  const state = { type: "state" as const, feed: "m", unread: 0, unhandled: 0, last: 5, through: 5 };
  const ask = () =>
    it.add({ type: "read", feed: "m", through: 9 }, (outcome) => outcomes.push(outcome));
  it.onWelcome(welcome(7), false);
  ask();
  it.onState({ ...state, read_at: "t", version: 7 });
  it.onState({ ...state, handled_at: "t", version: 8 });
  it.onState({ ...state, last: 8, read_at: "t", version: 9 });
  it.onState({ type: "state", feed: "m", unread: 0, unhandled: 0, last: 0, seqs: [] });
  assert.equal(outcomes.length, 0, "a replay, a handle, a step, counts");
  it.onState({ ...state, read_at: "t", version: 10 });
  ask();
  it.onState({ ...state, last: 12, through: 9 });
  ask();
  it.onState({ ...state, last: 0, through: 0 });
  assert.equal(outcomes.length, 3);
});

test("history retries once after 401 and then rejects with the problem", async (context) => {
  // Browsers of early 2023 do not support `size`.
  context.mock.getter(URLSearchParams.prototype, "size", () => undefined);
  const requests: [string, string][] = [];
  const responses: Response[] = [];
  const platform = {
    fetch: async (url: string, init: RequestInit) => {
      requests.push([url, (init.headers as Record<string, string>).authorization ?? ""]);
      return responses.shift() ?? Response.error();
    },
  } as unknown as Platform;
  let tokens = 0;
  const history = (query = {}) =>
    fetchHistory(platform, "https://h", async () => `t${++tokens}`, "a/b", query, ShopbellError);
  const refusal = (status: number) =>
    new Response('{"title":"No","detail":"not yours"}', {
      status,
      headers: { "content-type": "application/problem+json" },
    });

  responses.push(refusal(401), new Response('{"feed":"a/b","notifications":[],"next":null}'));
  assert.equal((await history({ before: 9, unread: true, limit: undefined })).next, null);
  assert.deepEqual(requests[1], [
    "https://h/v1/feeds/a%2Fb/notifications?before=9&unread=true",
    "Bearer t2",
  ]);
  responses.push(Response.json({ next: null }));
  await history({ limit: 5 });
  assert.match(requests[2]?.[0] ?? "", /\?limit=5$/);
  responses.push(Response.json({ next: null }));
  await history();
  assert.match(requests[3]?.[0] ?? "", /notifications$/);
  responses.push(refusal(401), refusal(401));
  await assert.rejects(history(), {
    code: "http_failed",
    status: 401,
    problem: { title: "No", detail: "not yours" },
  });
  assert.equal(tokens, 6);
  responses.push(new Response("<html>", { status: 502 }));
  await assert.rejects(
    history(),
    (error: ShopbellError) => error.status === 502 && error.problem === undefined,
  );
});

test("a timer of more than 31 bits does not fire at once", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout"] });
  let fired = 0;
  browser().after(2 ** 31 + 5, () => fired++);
  context.mock.timers.tick(2 ** 31 - 1);
  assert.equal(fired, 0);
  context.mock.timers.tick(6);
  assert.equal(fired, 1);
  const cancel = browser().after(2 ** 32, () => fired++);
  context.mock.timers.tick(2 ** 31);
  cancel();
  context.mock.timers.tick(2 ** 31);
  context.mock.timers.tick(2 ** 31);
  assert.equal(fired, 1);
});
