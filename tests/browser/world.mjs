// The world of a test: a database, the shipped binary behind a proxy that can fail, and a merchant.
// DATABASE_URL and AMQP_URL name the real services. `scripts/test browser` provides them and the
// browser.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:net";
import { basename } from "node:path";
import { chromium } from "playwright-core";
import { Proxy } from "./proxy.mjs";

/** Time limit of every wait, in milliseconds; long, because the machine may be loaded. */
export const PATIENCE_MS = 30_000;
/** Short, so that a dead connection is detected soon. */
const HEARTBEAT_SECONDS = 2;
const SHOPBELL = required("SHOPBELL");

/** Starts the browser that the tests of a file share. */
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
  /** The address that `shopbell demo` prints. */
  demoUrl;
  /** Proxy in front of the service; pages connect to it only. */
  proxy;
  /** The merchant of this test. */
  merchant;

  /** Creates a world that ends with its test. */
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

      // One prefix for each test file: few queues, and aborted runs of other files take no events.
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

  /** Starts or restarts the service. */
  async start() {
    const args = this.#demo ? ["demo", "--recipient", this.merchant] : ["serve"];
    this.#server = spawn(SHOPBELL, args, {
      env: this.#environment,
      stdio: ["ignore", "pipe", "inherit"],
    });
    this.#server.stdout.on("data", (line) => (this.demoUrl = String(line).trim()));
    await until("the service is ready", async () => (await this.#operations("/readyz")).ok);
  }

  /** Stops the service with SIGTERM (like an update) or SIGKILL (like a crash). */
  async stop(signal = "SIGTERM") {
    const server = this.#server;
    this.#server = undefined;
    if (server === undefined || server.exitCode !== null) return;
    const exit = once(server, "exit");
    server.kill(signal);
    await exit;
  }

  /** Runs a command of the binary; returns its output. */
  async shopbell(...args) {
    return run(SHOPBELL, args, this.#environment);
  }

  /** Publishes events over AMQP with confirms; sample orders by default. */
  async publish(...args) {
    await this.shopbell("publish", "--recipient", this.merchant, ...args);
  }

  /** Publishes in the background. */
  publishing(...args) {
    const publishing = this.publish(...args);
    this.#helpers.add(publishing);
    return publishing;
  }

  /** Returns a new token of the merchant. */
  async token(seconds = 3600) {
    return (
      await this.shopbell("token", "--subscriber", this.merchant, "--ttl-seconds", String(seconds))
    ).trim();
  }

  /** Returns the value of a metric, summed over its labels. */
  async metric(name) {
    const text = await (await this.#operations("/metrics")).text();
    const samples = text
      .split("\n")
      .filter((line) => line.startsWith(name) && " {".includes(line[name.length]));
    return samples.reduce((sum, line) => sum + Number(line.split(" ").at(-1)), 0);
  }

  /** Returns one value from the database. */
  async sql(query) {
    return (
      await run("psql", [this.#environment.DATABASE_URL, "-Atqc", query], process.env)
    ).trim();
  }

  /** Creates a browser profile: its own cookies, storage and tabs, and new tokens for its pages. */
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

  /**
   * Opens the dashboard in a tab and waits until it is live. An error in its log fails the test.
   */
  async open(profile, url = `${this.proxy.url}/?token-url=/test/token`) {
    const page = await profile.newPage();
    page.faults = [];
    page.sockets = 0;
    page.on("websocket", () => (page.sockets += 1));
    page.on("pageerror", (error) => page.faults.push(String(error)));
    page.on("console", (message) => {
      // The browser logs a cut network as an error; it is not an error of the page.
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

  /** Stops the service and removes its database. */
  async #finish() {
    const faults = this.#pages.flatMap((page) => page.faults);
    await Promise.allSettled(this.#helpers);
    await this.stop();
    this.proxy?.close();
    await run(
      "psql",
      [required("DATABASE_URL"), "-qc", `drop database ${this.#database} with (force)`],
      process.env,
    );
    assert.deepEqual(faults, [], "errors in the log of a page");
  }

  async #operations(path) {
    return fetch(`http://${this.#environment.SHOPBELL_OPS_LISTEN}${path}`);
  }
}

/** Waits until the page is live. */
export async function live(page) {
  await page
    .locator('[data-testid="connection"][data-state="live"]')
    .waitFor({ state: "attached" });
}

/** Waits until `holds` returns true; the error contains the last value. */
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
  throw new Error(`timed out waiting until ${what}; last value: ${seen}`);
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

export async function freePort() {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  return port;
}

function required(name) {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set: run the tests with scripts/test browser`);
  return value;
}
