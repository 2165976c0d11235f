// A TCP proxy that simulates network failures: it closes connections, or drops all data.

import { once } from "node:events";
import { connect, createServer } from "node:net";

export class Proxy {
  #server;
  #target;
  #pairs = new Set();
  #down = false;
  url;

  /** Starts a proxy for a local port. */
  static async before(target) {
    const proxy = new Proxy();
    proxy.#target = target;
    proxy.#server = createServer((client) => proxy.#admit(client)).listen(0, "127.0.0.1");
    await once(proxy.#server, "listening");
    proxy.url = `http://127.0.0.1:${proxy.#server.address().port}`;
    return proxy;
  }

  /** Closes every connection, and refuses new ones until `mend`. */
  cut() {
    this.#down = true;
    this.#end();
  }

  /** Drops all data without closing connections, and refuses new ones until `mend`. */
  stall() {
    this.#down = true;
    for (const { client, service } of this.#pairs) {
      client.unpipe(service);
      service.unpipe(client);
      client.resume();
      service.destroy();
    }
  }

  /** Accepts new connections again; old ones stay broken. */
  mend() {
    this.#down = false;
  }

  close() {
    this.#server.close();
    this.#end();
  }

  #end() {
    for (const { client, service } of this.#pairs) {
      client.destroy();
      service.destroy();
    }
  }

  #admit(client) {
    if (this.#down) return client.destroy();
    const service = connect(this.#target, "127.0.0.1");
    const pair = { client, service };
    this.#pairs.add(pair);
    client.setNoDelay();
    service.setNoDelay();
    client.pipe(service);
    service.pipe(client);
    for (const [one, other] of [
      [client, service],
      [service, client],
    ]) {
      one.on("error", () => {});
      one.on("close", () => {
        if (one === client || !this.#down) {
          other.destroy();
          this.#pairs.delete(pair);
        }
      });
    }
  }
}
