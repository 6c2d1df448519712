import { describe, expect, test } from "vitest";

import { InvalidValueError } from "../src/errors.ts";
import { applyMetadata } from "../src/metadata.ts";
import type { JsonObject } from "../src/wire.ts";
import { vectors } from "./support/samples.ts";

interface Vector {
  name: string;
  document: JsonObject;
  operations: JsonObject[];
  result?: JsonObject;
  error?: string;
}

describe("metadata operations do what the Python twin does", () => {
  test.each(vectors<Vector[]>("metadata.json"))("$name", (vector) => {
    const before = structuredClone(vector.document);
    if (vector.error === undefined) {
      expect(applyMetadata(vector.document, vector.operations)).toEqual(vector.result);
    } else {
      expect(codeOf(() => applyMetadata(vector.document, vector.operations))).toBe(vector.error);
    }
    expect(vector.document).toEqual(before);
  });
});

function codeOf(apply: () => unknown): string | undefined {
  try {
    apply();
  } catch (error) {
    if (error instanceof InvalidValueError) return error.code;
    throw error;
  }
  return undefined;
}
