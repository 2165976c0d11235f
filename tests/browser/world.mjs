// One test's world: its own database, the shipped binary behind a proxy that can fail, and merchants. DATABASE_URL
// and AMQP_URL name real services. `scripts/test browser` provides them and the browser.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:net";
import { basename } from "node:path";
import { chromium } from "playwright-core";
import { Proxy } from "./proxy.mjs";

/** Bound for each wait on a loaded machine, in milliseconds. */
export const PATIENCE_MS = 30_000;
/** Short, so that a dead connection is noticed soon. */
const HEARTBEAT_SECONDS = 2;
const SHOPBELL = required("SHOPBELL");

/** The browser that all tests of a file share. */
export async function browser() {
  return chromium.launch({ executablePath: required("CHROMIUM"), args: ["--no-sandbox"] });
}

export class World {
  #environment;
  #database;
  #server;
  #helpers = new Set();
  #pages = [];
  #demo;
  /** The output of `shopbell demo`. */
  demoUrl;
  /** In front of the service. Pages know no other address. */
  proxy;
  /** A merchant that no other test has. */
  merchant;

  /** Ends with its test. */
  static async create(test, { demo = false } = {}) {
    const world = new World();
    world.#demo = demo;
    test.after(() => world.#finish());
    const name = randomBytes(6).toString("hex");
    world.#database = `shopbell_browser_${name}`;
    world.merchant = `merchant-${name}`;
    await run(
      "psql",
      [required("DATABASE_URL"), "-qc", `create database ${world.#database}`],
      process.env,
    );
    const [listen, operations] = [await freePort(), await freePort()];
    const url = new URL(required("DATABASE_URL"));
    url.pathname = `/${world.#database}`;
    world.#environment = {
      PATH: process.env.PATH,
      DATABASE_URL: url.href,
      AMQP_URL: required("AMQP_URL"),
      // All worlds of a file use the same prefix, one after the other, so nothing collects in RabbitMQ. If a run
      // was interrupted, its rest takes no events of other files.
      SHOPBELL_AMQP_PREFIX: `shopbell-browser-${basename(process.argv[1], ".test.mjs")}`,
      SHOPBELL_JWT_HS256_SECRET: randomBytes(32).toString("hex"),
      SHOPBELL_LISTEN: `127.0.0.1:${listen}`,
      SHOPBELL_OPS_LISTEN: `127.0.0.1:${operations}`,
      SHOPBELL_DASHBOARD: "true",
      SHOPBELL_HEARTBEAT_SECONDS: String(HEARTBEAT_SECONDS),
      SHOPBELL_DRAIN_SECONDS: "1",
    };
    await world.shopbell("migrate");
    await world.start();
    world.proxy = await Proxy.before(listen);
    return world;
  }

  /** Starts the service, or starts it again. */
  async start() {
    const args = this.#demo ? ["demo", "--recipient", this.merchant] : ["serve"];
    this.#server = spawn(SHOPBELL, args, {
      env: this.#environment,
      stdio: ["ignore", "pipe", "inherit"],
    });
    this.#server.stdout.on("data", (line) => (this.demoUrl = String(line).trim()));
    await until("the service is ready", async () => (await this.#operations("/readyz")).ok);
  }

  /** Ends the service: with SIGTERM like an update, with SIGKILL like a crash. */
  async stop(signal = "SIGTERM") {
    const server = this.#server;
    this.#server = undefined;
    if (server === undefined || server.exitCode !== null) return;
    const exit = once(server, "exit");
    server.kill(signal);
    await exit;
  }

  /** Runs a command of the binary to its end, and returns its output. */
  async shopbell(...args) {
    return run(SHOPBELL, args, this.#environment);
  }

  /** Publishes events over AMQP, each confirmed. The default is sample orders. */
  async publish(...args) {
    await this.shopbell("publish", "--recipient", this.merchant, ...args);
  }

  /** The same, in the background. */
  publishing(...args) {
    const publishing = this.publish(...args);
    this.#helpers.add(publishing);
    return publishing;
  }

  /** A new token of the merchant. */
  async token(seconds = 3600) {
    return (
      await this.shopbell("token", "--subscriber", this.merchant, "--ttl-seconds", String(seconds))
    ).trim();
  }

  /** A metric, summed over its labels. */
  async metric(name) {
    const text = await (await this.#operations("/metrics")).text();
    const samples = text
      .split("\n")
      .filter((line) => line.startsWith(name) && " {".includes(line[name.length]));
    return samples.reduce((sum, line) => sum + Number(line.split(" ").at(-1)), 0);
  }

  /** One value from the database. */
  async sql(query) {
    return (
      await run("psql", [this.#environment.DATABASE_URL, "-Atqc", query], process.env)
    ).trim();
  }

  /** Another person's computer or browser: its own cookies, storage and tabs, with new tokens for its pages. */
  async profile(browser, { tokenSeconds = () => 3600, ...options } = {}) {
    const context = await browser.newContext(options);
    context.setDefaultTimeout(PATIENCE_MS);
    await context.route(
      (url) => url.pathname === "/test/token",
      async (route) => {
        const token = await this.token(tokenSeconds());
        await route.fulfill({ body: token, contentType: "text/plain" }).catch(() => {});
      },
    );
    return context;
  }

  /** The dashboard in a tab of that profile, after it has caught up. If it logs an error, the test fails at its
   * end. */
  async open(profile, url = `${this.proxy.url}/?token-url=/test/token`) {
    const page = await profile.newPage();
    page.faults = [];
    page.sockets = 0;
    page.on("websocket", () => (page.sockets += 1));
    page.on("pageerror", (error) => page.faults.push(String(error)));
    page.on("console", (message) => {
      // The browser logs a network cut as an error, but it is no fault of the page.
      const isNetwork = /Failed to load resource|WebSocket connection|net::ERR/.test(
        message.text(),
      );
      const isFault = message.type() === "error" || /protocol_fault/.test(message.text());
      if (isFault && !isNetwork) page.faults.push(message.text());
    });
    this.#pages.push(page);
    await page.goto(url);
    await live(page);
    return page;
  }

  /** Ends everything. Only the data of the services stays. */
  async #finish() {
    // Every page of every test, at its end.
    const faults = this.#pages.flatMap((page) => page.faults);
    await Promise.allSettled(this.#helpers);
    await this.stop();
    this.proxy?.close();
    await run(
      "psql",
      [required("DATABASE_URL"), "-qc", `drop database ${this.#database} with (force)`],
      process.env,
    );
    assert.deepEqual(faults, [], "errors of the pages");
  }

  async #operations(path) {
    return fetch(`http://${this.#environment.SHOPBELL_OPS_LISTEN}${path}`);
  }
}

/** Waits until the page shows that it is live. */
export async function live(page) {
  await page
    .locator('[data-testid="connection"][data-state="live"]')
    .waitFor({ state: "attached" });
}

/** Waits for a condition. If it never holds, the error has the last value. */
export async function until(what, holds, patienceMs = PATIENCE_MS) {
  const deadline = Date.now() + patienceMs;
  let seen;
  while (Date.now() < deadline) {
    try {
      seen = await holds();
      if (seen === true) return;
    } catch (error) {
      seen = error;
    }
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  throw new Error(`${what}: it does not come; seen last: ${seen}`);
}

async function run(command, args, env) {
  const child = spawn(command, args, { env, stdio: ["ignore", "pipe", "pipe"] });
  const [out, err] = [[], []];
  child.stdout.on("data", (data) => out.push(data));
  child.stderr.on("data", (data) => err.push(data));
  const [status] = await once(child, "close");
  if (status !== 0)
    throw new Error(`${command} ${args.join(" ")} ended with ${status}: ${Buffer.concat(err)}`);
  return Buffer.concat(out).toString();
}

async function freePort() {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  return port;
}

function required(name) {
  const value = process.env[name];
  if (!value)
    throw new Error(`${name} is not set: run these tests with scripts/test browser`);
  return value;
}
