import { fileURLToPath } from "node:url";

import { defineConfig } from "vitest/config";

const client = fileURLToPath(new URL("client/src/index.ts", import.meta.url));

export default defineConfig({
  resolve: { alias: { "@runwire/client": client } },
  test: {
    include: ["*/test/**/*.test.ts"],
    environment: "node",
    // Anything that rejects without a catch fails the run: the client promises that it never does.
    dangerouslyIgnoreUnhandledErrors: false,
  },
});
