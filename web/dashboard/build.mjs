// Builds the dashboard: `node build.mjs FOLDER` writes it, `--check` compares with dist/ what the sources build, `--tests`
// bundles the tests. The output depends on the sources and the lock file alone.

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
    // Licences of what is bundled stay with it.
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
  // An expression for `include!`: names change with the content, so that browsers may keep what they have for good.
  const embedded = `Embedded {\n    page: include_str!("index.html"),\n    page_tag: "\\"${tag}\\"",\n    assets: &[\n${rows.join("")}    ],\n}\n`;
  writeFileSync(join(folder, "embedded.rs"), embedded);
}

function differences(built, committed) {
  const names = new Set([...readdirSync(built), ...readdirSync(committed)]);
  const content = (folder, name) => {
    try {
      const bytes = readFileSync(join(folder, name));
      // zlib's output differs from one processor to another; what is in it does not.
      return (name.endsWith(".gz") ? gunzipSync(bytes) : bytes).toString("base64");
    } catch {
      return undefined;
    }
  };
  return [...names].filter((name) => content(built, name) !== content(committed, name));
}

const [what = "dist"] = process.argv.slice(2);
if (what === "--check") {
  const folder = mkdtempSync(join(tmpdir(), "dashboard-"));
  await buildInto(folder);
  const different = differences(folder, join(here, "dist"));
  rmSync(folder, { recursive: true });
  if (different.length > 0) {
    console.error(
      `dist/ is not what the sources build (${different.join(", ")}): npm run build, and commit it`,
    );
    process.exit(1);
  }
} else if (what === "--tests") {
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
  await buildInto(join(here, what));
}
