// Checks the download size of `.`: bundled, minified and gzipped. The parts for networks without
// WebSockets and for the history are files of their own, which pages load when they need them.
import { build } from "esbuild";
import { gzipSync } from "node:zlib";

const BYTES_MAX = 10_000;

const { outputFiles } = await build({
  entryPoints: ["dist/index.js"],
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  splitting: true,
  outdir: "out",
  write: false,
});
const sizes = outputFiles.map(({ path, contents }) => ({
  name: path.replace(/.*out\//, ""),
  bytes: contents.length,
  gzipped: gzipSync(contents, { level: 9 }).length,
  isLazy: /http-socket|history/.test(path),
}));
for (const { name, bytes, gzipped } of sizes)
  console.log(`${name}: ${bytes} bytes minified, ${gzipped} gzipped`);
const first = sizes.filter(({ isLazy }) => !isLazy).reduce((sum, { gzipped }) => sum + gzipped, 0);
console.log(`loaded at first: ${first} (at most ${BYTES_MAX})`);
if (first > BYTES_MAX) process.exit(1);
