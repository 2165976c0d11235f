// An nginx in front of a service, like the proxy of a merchant's network.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { freePort, until } from "./world.mjs";

/** WebSockets pass. */
export const UPGRADES = `
  proxy_http_version 1.1;
  proxy_set_header Upgrade $http_upgrade;
  proxy_set_header Connection "upgrade";`;
/** The default: no upgrade, and HTTP/1.0 to the service. */
export const NO_UPGRADES = "";
/** Responses arrive only when they are complete. */
export const BUFFERS = `
  proxy_buffering on;
  proxy_buffers 16 64k;
  proxy_buffer_size 64k;
  proxy_ignore_headers X-Accel-Buffering;`;

export class Nginx {
  #folder = mkdtempSync(join(tmpdir(), "nginx-"));
  #target;
  #port;
  #process;
  url;

  /** Starts nginx in front of a URL; it ends with the test. */
  static async before(test, target, settings) {
    const nginx = new Nginx();
    nginx.#target = target;
    nginx.#port = await freePort();
    nginx.url = `http://127.0.0.1:${nginx.#port}`;
    nginx.#write(settings);
    const arguments_ = ["-p", nginx.#folder, "-c", "nginx.conf", "-e", "error.log"];
    nginx.#process = spawn("nginx", arguments_, {
      env: { PATH: `${process.env.PATH}:/usr/sbin` },
      stdio: ["ignore", "ignore", "inherit"],
    });
    test.after(() => nginx.#stop());
    await until("nginx answers", async () => (await fetch(nginx.url)).ok);
    return nginx;
  }

  /** Changes the settings. Connections that are open keep the old ones. */
  reload(settings) {
    this.#write(settings);
    this.#process.kill("SIGHUP");
  }

  #write(settings) {
    const user = process.getuid() === 0 ? "user root;" : "";
    const paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    writeFileSync(
      join(this.#folder, "nginx.conf"),
      `daemon off; ${user} pid nginx.pid; worker_processes 1; worker_shutdown_timeout 60s;
events {}
http {
  access_log off;
  ${paths.map((path) => `${path}_temp_path ${path};`).join(" ")}
  server {
    listen 127.0.0.1:${this.#port};
    location / {
      proxy_pass ${this.#target};
      proxy_set_header Host $http_host;
      ${settings}
    }
  }
}
`,
    );
  }

  async #stop() {
    if (this.#process.exitCode === null) {
      const exit = once(this.#process, "exit");
      this.#process.kill("SIGTERM");
      await exit;
    }
    rmSync(this.#folder, { recursive: true, force: true });
  }
}
