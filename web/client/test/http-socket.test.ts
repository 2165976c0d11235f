// A session over HTTP as bytes: events and their end, polls that continue, posted frames.

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  HttpSocket,
  POLL_SECONDS,
  STREAM_TIMEOUT_MS,
  UPGRADE_MS,
  type HttpHooks,
} from "../src/http-socket.js";
import type { Platform, SocketLike } from "../src/platform.js";
import { World, settle } from "./world.js";

const WELCOME = { type: "welcome", feeds: [{ feed: "m", epoch: "e1" }], heartbeat_seconds: 25 };
const URL_ = "wss://h/v1/ws?device=till&state=m%3A4%3Ae1";

interface Request {
  method: string;
  path: string;
  body: unknown;
  signal: AbortSignal | undefined;
  respond(body: BodyInit | null, status?: number): void;
  fail(): void;
}

/** A server by hand. */
class Network {
  world = new World();
  requests: Request[] = [];
  frames: unknown[] = [];
  closes: { code: number; reason: string }[] = [];
  websockets: SocketLike[] = [];
  adopted: unknown[] = [];
  socket: HttpSocket;

  constructor(hooks: Partial<HttpHooks> = {}) {
    const { world } = this;
    const platform = {
      now: () => world.now,
      random: () => 1,
      after: (ms: number, fn: () => void) => world.after(ms, fn),
      fetch: (url: string, init: RequestInit) =>
        new Promise<Response>((resolve, reject) => {
          init.signal?.addEventListener("abort", () => reject(new Error("aborted")));
          this.requests.push({
            method: init.method ?? "GET",
            path: url.replace("https://h", ""),
            body: init.body && JSON.parse(init.body as string),
            signal: init.signal ?? undefined,
            respond: (body, status = 200) => resolve(new Response(body, { status })),
            fail: () => reject(new TypeError("failed to fetch")),
          });
        }),
    } as unknown as Platform;
    this.socket = new HttpSocket(platform, URL_, "t", {
      after: () => new URLSearchParams({ after: "m:7:e1", state: "m:5:e1" }),
      open: async () => {
        const socket = { onmessage: null, onclose: null, send() {}, close() {} };
        this.websockets.push(socket);
        return { socket, token: "t2", query: "" };
      },
      adopt: (_, data) => this.adopted.push(data),
      ...hooks,
    });
    this.socket.onmessage = ({ data }) => this.frames.push(JSON.parse(data as string));
    this.socket.onclose = ({ code, reason }) => this.closes.push({ code, reason });
  }

  get last(): Request {
    return this.requests.at(-1) as Request;
  }
}

/** A body that is written piece by piece. */
function pipe() {
  const { readable, writable } = new TransformStream<Uint8Array>();
  const writer = writable.getWriter();
  const encoder = new TextEncoder();
  return {
    readable,
    write: async (text: string) => {
      await writer.write(encoder.encode(text));
      await settle();
      await settle();
    },
    end: async () => {
      await writer.close();
      await settle();
      await settle();
    },
  };
}

const event = (frame: object) => `data: ${JSON.stringify(frame)}\n\n`;

test("events may be cut anywhere, and a close ends the session", async () => {
  const network = new Network();
  assert.equal(network.last.path, "/v1/stream?device=till&state=m%3A4%3Ae1");
  const body = pipe();
  network.last.respond(body.readable);
  const text = `id: 1:e1\ndata: {"type":\ndata: "notification","name":"Zoë"}\n\n`;
  await body.write(event(WELCOME) + text.slice(0, 20));
  await body.write(text.slice(20, 50));
  await body.write(text.slice(50) + 'retry: 850\ndata: {"type":"close",');
  assert.deepEqual(network.frames, [WELCOME, { type: "notification", name: "Zoë" }]);
  await body.write('"code":1012,"reason":{"code":"going_away"}}\n\n');
  assert.deepEqual(network.closes, [{ code: 1012, reason: '{"code":"going_away"}' }]);
});

test("a stream without a close ends like a lost connection", async () => {
  const network = new Network();
  const body = pipe();
  network.last.respond(body.readable);
  await body.write(event(WELCOME));
  await body.end();
  assert.deepEqual(network.closes, [{ code: 1006, reason: "" }]);
});

test("a refusal has the close code of the problem", async () => {
  const network = new Network();
  network.last.respond(
    JSON.stringify({ close_code: 4429, reason: "too_many", detail: "d", retry_after_ms: 5 }),
    429,
  );
  await settle();
  assert.equal(network.closes[0]?.code, 4429);
  const reason = JSON.parse(network.closes[0]?.reason ?? "");
  assert.deepEqual(reason, { code: "too_many", message: "d", retry_after_ms: 5 });
});

test("posts have the frames that waited, each ack once, and are repeated", async () => {
  const network = new Network();
  const body = pipe();
  network.last.respond(body.readable);
  await body.write(event(WELCOME));
  const send = (frame: object) => network.socket.send(JSON.stringify(frame));
  send({ type: "ack", feed: "m", seq: 1 });
  send({ type: "ack", feed: "m", seq: 2 });
  send({ type: "handle", feed: "m", seqs: [2] });
  send({ type: "ack", feed: "m", seq: 3 });
  send({ type: "auth", token: "t2" });
  await settle();
  assert.equal(network.last.path, "/v1/frames?device=till&epoch=e1");
  assert.deepEqual(network.last.body, [{ type: "ack", feed: "m", seq: 1 }]);
  network.last.respond('[{"type":"pong"}]');
  await settle();
  const rest = [
    { type: "handle", feed: "m", seqs: [2] },
    { type: "ack", feed: "m", seq: 3 },
  ];
  assert.deepEqual(network.last.body, rest);
  assert.deepEqual(network.frames.at(-1), { type: "pong" });
  const before = network.requests.length;
  network.last.fail();
  await network.world.pass(5_000);
  assert.equal(network.requests.length, before + 1);
  assert.deepEqual(network.last.body, rest);
  network.last.respond("{}", 409);
  await settle();
  assert.equal(network.closes[0]?.code, 4410, "the epoch changed");
});

test("a stream that stays silent becomes polls that continue", async () => {
  const network = new Network();
  assert.equal(network.socket.transport, "stream");
  await network.world.pass(STREAM_TIMEOUT_MS);
  assert.equal(network.socket.transport, "poll");
  assert.equal(network.last.path, "/v1/stream?device=till&state=m%3A4%3Ae1&wait=0");
  network.last.respond(JSON.stringify([WELCOME, { type: "caught_up" }]));
  await settle();
  const next = `/v1/stream?device=till&after=m%3A7%3Ae1&state=m%3A5%3Ae1&wait=${POLL_SECONDS}`;
  assert.equal(network.last.path, next);
  network.last.respond(JSON.stringify([WELCOME, { type: "notification", seq: 8 }]));
  await settle();
  assert.deepEqual(
    network.frames.map((frame) => (frame as { type: string }).type),
    ["welcome", "caught_up", "notification"],
    "one welcome",
  );
  const renewed = { ...WELCOME, feeds: [{ feed: "m", epoch: "e2" }] };
  network.last.respond(JSON.stringify([renewed, { type: "notification", seq: 1 }]));
  await settle();
  assert.deepEqual([network.frames.length, network.closes[0]?.code], [3, 4410]);
  assert.equal(new Network().socket.transport, "poll", "the page remembers it");
});

test("WebSockets are tried beside the session until one works", async () => {
  const network = new Network();
  await network.world.pass(UPGRADE_MS);
  assert.equal(network.websockets.length, 1);
  network.websockets[0]?.onclose?.({} as CloseEvent);
  await network.world.pass(UPGRADE_MS);
  assert.equal(network.websockets.length, 1, "the wait doubles");
  await network.world.pass(UPGRADE_MS);
  assert.equal(network.websockets.length, 2);
  network.socket.hurry();
  await settle();
  network.websockets[2]?.onmessage?.({ data: "first" } as MessageEvent);
  assert.deepEqual([network.adopted, network.closes], [["first"], []]);
  network.socket.close();
  await network.world.pass(1_000_000);
  assert.equal(network.websockets.length, 3);
});
