import { fileURLToPath } from "node:url";

import { defineConfig } from "vite";

const server = process.env["RUNWIRE_API_URL"] ?? "http://127.0.0.1:8420";

export default defineConfig({
  // Relative, because the hub may be mounted below a path.
  base: "./",
  resolve: { conditions: ["runwire-source", "module", "browser", "development|production"] },
  build: {
    outDir: fileURLToPath(new URL("../../../realtime/runwire_realtime/dashboard", import.meta.url)),
    emptyOutDir: true,
    // An inlined asset would be a data: URL, which the page's policy refuses for fonts and scripts.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
  },
  server: {
    proxy: {
      "/api": { target: server },
      "/realtime": { target: server, ws: true },
    },
  },
});
