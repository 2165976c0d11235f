// Random events in random order. Each notification must ring in order: at least once, and exactly once if no tab dies in a handler. No notification is acked before it rings. At the end all tabs have the server's state.

import assert from "node:assert/strict";
import { test } from "node:test";
import { World, type Tab } from "./world.js";

const SEEDS = Number(process.env.SEEDS ?? 200);
const FIRST_SEED = Number(process.env.SEED ?? 1);

/** One run: random steps, then the checks at the end. */
class Run {
  readonly #world: World;
  readonly #context: string;
  readonly #rung = new Map<string, number[]>([
    ["m", []],
    ["all", []],
  ]);
  readonly #lists = new Map<Tab, number[]>();
  readonly #marks: Promise<unknown>[] = [];
  #published = 0;

  constructor(
    seed: number,
    private readonly deadly: boolean,
  ) {
    this.#world = new World(seed);
    this.#context = `seed ${seed}`;
    this.#server.window = 8;
    this.#server.feed("all", true);
  }

  async run(): Promise<void> {
    const world = this.#world;
    this.#open();
    for (let step = 0; step < 60; step++) {
      await this.#step();
      for (const one of this.#rung) {
        const acked = this.#server.cursor(one[0]);
        const message = `acked ${acked} before it rang, ${this.#context}`;
        assert.ok(acked <= lastRung(one, this.#server), message);
      }
      await world.pass(this.#random(400));
    }
    this.#server.up = true;
    for (const tab of world.tabs) {
      await tab.thaw();
      tab.page("resume");
    }
    this.#any()?.look(true);
    await world.pass(180_000);
    assert.deepEqual(this.#server.violations, [], this.#context);
    for (const [feed, seqs] of this.#rung) this.#checkFeed(feed, seqs);
    this.#checkTabs();
    if (!this.deadly) await Promise.all(this.#marks);
  }

  get #server(): World["server"] {
    return this.#world.server;
  }

  #random(below: number): number {
    return Math.floor(this.#world.random() * below);
  }

  #open(): void {
    const world = this.#world;
    const tab = world.open({}, { visible: world.random() < 0.5 });
    const list: number[] = [];
    this.#lists.set(tab, list);
    tab.client.on("*", ({ feed, seq }) => void (feed === "m" && list.push(seq)));
    let failures = this.#random(3);
    tab.client.ring("*", async ({ feed, seq }) => {
      if (world.random() < 0.5) await tab.sleep(this.#random(300));
      if (failures-- > 0) throw new Error("not yet");
      this.#rung.get(feed)?.push(seq);
    });
    tab.client.watch("error", () => {});
  }

  #living(): Tab[] {
    return this.#world.tabs.filter((tab) => tab.alive && tab.client.status.state !== "closed");
  }

  #any(): Tab | undefined {
    const living = this.#living();
    return living[this.#random(living.length)];
  }

  async #step(): Promise<void> {
    const [world, server] = [this.#world, this.#server];
    const tab = this.#any();
    const dice = this.#random(this.deadly ? 14 : 11);
    if (dice < 4) this.#publish();
    else if (dice === 4 && world.tabs.length < 8) this.#open();
    else if (dice === 5) server.dropAll([1006, 1012, 4408, 4409][this.#random(4)]);
    else if (dice === 6) tab?.look(world.random() < 0.5);
    else if (dice === 7) server.up = world.random() < 0.7;
    else if (dice === 8) this.#mark(tab);
    else if (dice === 9) {
      const seqs = [1 + this.#random(9)].filter((seq) => seq <= server.counts("m").last);
      server.mark("m", "read", seqs, "x");
    } else if (dice === 10) {
      for (const socket of server.sockets) socket.dead ||= world.random() < 0.1;
    } else if (dice === 11 && this.#living().length > 1) tab?.crash();
    else if (dice === 12 && this.#living().length > 1) tab?.page("suspend");
    else if (dice === 13) {
      const sleeper = world.tabs.find(({ frozen }) => frozen);
      if (sleeper) await sleeper.thaw();
      else tab?.freeze();
    }
  }

  #publish(): void {
    const key = this.#world.random() < 0.3 ? { collapse_key: "k" } : {};
    for (let n = this.#random(6); n >= 0; n--) {
      this.#server.publish("x", this.#world.random() < 0.8 ? "m" : "all", key);
      this.#published++;
    }
  }

  #mark(tab: Tab | undefined): void {
    const { last } = this.#server.counts("m");
    if (last === 0) return;
    const seqs = [1 + this.#random(last)];
    if (!tab) return;
    const isRead = this.#world.random() < 0.5;
    const mark = isRead ? tab.client.read("m", { seqs }) : tab.client.handle("m", seqs);
    mark.catch(() => {});
    this.#marks.push(mark);
  }

  #checkFeed(feed: string, seqs: number[]): void {
    const { last } = this.#server.counts(feed);
    assert.equal(this.#server.cursor(feed), last, `all of ${feed} acked, ${this.#context}`);
    const firsts = [...new Set(seqs)];
    const { notifications } = this.#server.feed(feed);
    const mayBeSkipped = (seq: number) => notifications[seq - 1]?.collapse_key !== undefined;
    // A frozen tab completes its handler when it thaws; other tabs may have skipped the number.
    const ordered = firsts.filter((seq) => !this.deadly || !mayBeSkipped(seq));
    assert.deepEqual(ordered, sorted(ordered), `order, ${this.#context}`);
    for (let seq = 1; seq <= last; seq++) {
      const message = `${feed}/${seq} of ${this.#published} never rang, ${this.#context}`;
      assert.ok(firsts.includes(seq) || mayBeSkipped(seq), message);
    }
    const message = `${feed} rang twice, ${this.#context}`;
    if (!this.deadly) assert.equal(seqs.length, firsts.length, message);
  }

  #checkTabs(): void {
    const { unread, unhandled } = this.#server.counts("m");
    for (const tab of this.#living()) {
      assert.equal(tab.client.status.state, "live", this.#context);
      const { total } = tab.client.counts;
      assert.deepEqual(total, { unread, unhandled }, `counts, ${this.#context}`);
      const list = this.#lists.get(tab) ?? [];
      assert.deepEqual(list, sorted([...new Set(list)]), `order of a list, ${this.#context}`);
    }
    // The server ends sessions of dead networks later.
    const sessions = [...this.#server.sessions].filter(({ socket }) => !socket.dead);
    assert.equal(sessions.length, 1, `one socket, ${this.#context}`);
  }
}

function sorted(seqs: number[]): number[] {
  return [...seqs].sort((a, b) => a - b);
}

/** The highest number up to which all have rung or may be collapsed. */
function lastRung([feed, seqs]: [string, number[]], server: World["server"]): number {
  const { notifications } = server.feed(feed);
  let last = 0;
  while (
    notifications[last] &&
    (seqs.includes(last + 1) || notifications[last]?.collapse_key !== undefined)
  )
    last++;
  return last;
}

test("each notification rings once and in order while tabs change", async () => {
  for (let seed = FIRST_SEED; seed < FIRST_SEED + SEEDS; seed++) await new Run(seed, false).run();
});

test("seeds that failed once pass", async () => {
  // 276: a thawed leader sent 18 and 19 to tabs that had received 29.
  for (const seed of [276]) await new Run(seed, true).run();
});

test("each notification rings in order while tabs crash and freeze", async () => {
  for (let seed = FIRST_SEED; seed < FIRST_SEED + SEEDS; seed++) await new Run(seed, true).run();
});

test("no notification is acked before it rings during random restores", async () => {
  for (let seed = FIRST_SEED; seed < FIRST_SEED + SEEDS; seed++) await runRestores(seed);
});

async function runRestores(seed: number): Promise<void> {
  const world = new World(seed);
  const { server } = world;
  server.window = 8;
  const random = (below: number) => Math.floor(world.random() * below);
  const rung = new Set<string>();
  let published = 0;
  const open = () => {
    const tab = world.open({}, { visible: world.random() < 0.5 });
    tab.client.ring("*", async ({ id }) => {
      if (world.random() < 0.5) await tab.sleep(random(900));
      rung.add(id);
    });
    tab.client.watch("error", () => {});
  };
  const check = () => {
    const acked = server.feed("m").notifications.slice(0, server.cursor());
    for (const { id } of acked) assert.ok(rung.has(id), `acked ${id} before it rang, seed ${seed}`);
  };
  open();
  for (let step = 0; step < 50; step++) {
    const dice = random(12);
    if (dice < 5)
      for (let n = random(6); n >= 0; n--) server.publish("x", "m", { id: `n${published++}` });
    else if (dice === 5 && world.tabs.length < 5) open();
    else if (dice === 6) server.dropAll();
    else if (dice === 7) world.tabs[random(world.tabs.length)]?.look(world.random() < 0.5);
    else if (dice === 8) world.tabs[random(world.tabs.length)]?.freeze();
    else if (dice === 9) await world.tabs.find(({ frozen }) => frozen)?.thaw();
    else if (dice > 9) {
      server.restore(random(server.counts("m").last + 1));
      for (let n = random(6); n > 0; n--) server.publish("x", "m", { id: `n${published++}` });
    }
    check();
    await world.pass(random(400));
  }
  for (const tab of world.tabs) await tab.thaw();
  world.tabs[0]?.look(true);
  await world.pass(180_000);
  check();
  assert.deepEqual(server.violations, [], `seed ${seed}`);
  assert.equal(server.cursor(), server.counts("m").last, `all acked, seed ${seed}`);
}
