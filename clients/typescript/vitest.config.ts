import { fileURLToPath } from "node:url";

import { defineConfig } from "vitest/config";

const client = fileURLToPath(new URL("client/src/index.ts", import.meta.url));

export default defineConfig({
  resolve: { alias: { "@runwire/client": client } },
  test: {
    include: ["*/test/**/*.test.ts"],
    setupFiles: ["client/test/support/chance.ts"],
    environment: "node",
    // What hangs, not what a busy machine makes slow.
    testTimeout: 60_000,
    // Anything that rejects without a catch fails the run: the client promises that it never does.
    dangerouslyIgnoreUnhandledErrors: false,
  },
});
