// Checks the download size of `.`: bundled, minified and gzipped.
import { build } from "esbuild";
import { gzipSync } from "node:zlib";

const BYTES_MAX = 10_000;

const { outputFiles } = await build({
  entryPoints: ["dist/index.js"],
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  write: false,
});
const bytes = gzipSync(outputFiles[0].contents, { level: 9 }).length;
console.log(
  `dist/index.js: ${outputFiles[0].contents.length} bytes minified, ${bytes} gzipped (at most ${BYTES_MAX})`,
);
if (bytes > BYTES_MAX) process.exit(1);
