// Builds the dashboard. `node build.mjs FOLDER` writes it, `--check` compares it with dist/,
// `--tests` bundles the tests. The output depends only on the sources and the lock file.

import { createHash } from "node:crypto";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { gunzipSync, gzipSync } from "node:zlib";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const BROWSERS = ["chrome111", "firefox128", "safari16.4"];

async function buildInto(folder) {
  const { outputFiles } = await build({
    absWorkingDir: here,
    entryPoints: { app: "src/main.ts", style: "src/styles/index.css" },
    bundle: true,
    minify: true,
    format: "esm",
    target: BROWSERS,
    // Keeps the licences of bundled packages.
    legalComments: "eof",
    outdir: "out",
    write: false,
    nodePaths: [join(here, "node_modules")],
  });
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  let page = readFileSync(join(here, "src/index.html"), "utf8");
  const assets = [];
  for (const { path, contents } of outputFiles) {
    const [, stem, extension] = /([^/\\]+)\.(js|css)$/.exec(path);
    const hash = createHash("sha256").update(contents).digest("hex").slice(0, 12);
    const name = `${stem}-${hash}.${extension}`;
    page = page.replace(`/assets/${stem}.${extension}`, `/assets/${name}`);
    writeFileSync(join(folder, name), contents);
    writeFileSync(join(folder, `${name}.gz`), gzipSync(contents, { level: 9 }));
    assets.push(name);
  }
  writeFileSync(join(folder, "index.html"), page);
  const rows = assets
    .sort()
    .map(
      (name) =>
        `        (${JSON.stringify(name)}, include_bytes!("${name}"), include_bytes!("${name}.gz")),\n`,
    );
  const tag = createHash("sha256").update(page).digest("hex").slice(0, 12);
  // An expression for `include!`. File names contain a hash, so that browsers may cache them for
  // ever.
  const embedded = `Embedded {\n    page: include_str!("index.html"),\n    page_tag: "\\"${tag}\\"",\n    assets: &[\n${rows.join("")}    ],\n}\n`;
  writeFileSync(join(folder, "embedded.rs"), embedded);
}

function differences(built, committed) {
  const names = new Set([...readdirSync(built), ...readdirSync(committed)]);
  const content = (folder, name) => {
    try {
      const bytes = readFileSync(join(folder, name));
      // The output of zlib depends on the processor; its content does not.
      return (name.endsWith(".gz") ? gunzipSync(bytes) : bytes).toString("base64");
    } catch {
      return undefined;
    }
  };
  return [...names].filter((name) => content(built, name) !== content(committed, name));
}

const [target = "dist"] = process.argv.slice(2);
if (target === "--check") {
  const folder = mkdtempSync(join(tmpdir(), "dashboard-"));
  await buildInto(folder);
  const different = differences(folder, join(here, "dist"));
  rmSync(folder, { recursive: true });
  if (different.length > 0) {
    console.error(
      `dist/ is not up to date (${different.join(", ")}): run npm run build and commit it`,
    );
    process.exit(1);
  }
} else if (target === "--tests") {
  rmSync(join(here, ".test"), { recursive: true, force: true });
  const tests = readdirSync(join(here, "test")).filter((name) => name.endsWith(".test.ts"));
  await build({
    absWorkingDir: here,
    entryPoints: tests.map((name) => `test/${name}`),
    bundle: true,
    platform: "node",
    format: "esm",
    outdir: ".test",
    outExtension: { ".js": ".mjs" },
    logLevel: "warning",
  });
} else {
  await buildInto(join(here, target));
}
