/** Builds `dist/`: the program, and the status page beside it, for browsers. */
import { copyFile, rm } from "node:fs/promises";
import { build } from "esbuild";
import { bundleProgram, ROOT } from "./bundle-program.ts";

await rm(new URL("../dist", import.meta.url), { recursive: true, force: true });
await bundleProgram("dist");
await build({
  absWorkingDir: ROOT,
  entryPoints: [
    { in: "page/page.ts", out: "page" },
    { in: "page/page.css", out: "page" },
  ],
  outdir: "dist/page",
  bundle: true,
  minify: true,
  format: "esm",
  platform: "browser",
  target: "es2022",
  legalComments: "inline",
  logLevel: "warning",
});
await copyFile(new URL("../page/page.html", import.meta.url), new URL("../dist/page/index.html", import.meta.url));
await copyFile(new URL("../page/icon.svg", import.meta.url), new URL("../dist/page/icon.svg", import.meta.url));
