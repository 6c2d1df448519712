import { expect, test } from "vitest";

import { fieldsOf, skeletonOf } from "../src/skeleton.ts";

const SCHEMA = {
  $defs: {
    Mood: { type: "string", enum: ["calm", "wild"] },
    Node: { type: "object", properties: { next: { $ref: "#/$defs/Node" } } },
    Loop: { type: "object", required: ["next"], properties: { next: { $ref: "#/$defs/Loop" } } },
  },
  type: "object",
  required: ["topic", "mood", "length", "parts", "node"],
  properties: {
    topic: { type: "string", description: "What about" },
    mood: { $ref: "#/$defs/Mood" },
    words: { anyOf: [{ type: "integer" }, { type: "null" }], default: null },
    length: { anyOf: [{ type: "null" }, { type: "number", minimum: 3 }] },
    parts: { type: "array", items: { type: "string" } },
    flag: { type: "boolean" },
    node: { $ref: "#/$defs/Node" },
  },
};

test("a skeleton has the fields that are needed or have a default, and no other", () => {
  expect(skeletonOf(SCHEMA)).toEqual({
    topic: "",
    mood: "calm",
    words: null,
    length: 3,
    parts: [],
    node: {},
  });
});

test("a schema that refers to itself comes to an end", () => {
  const loop = { ...SCHEMA, required: ["loop"], properties: { loop: { $ref: "#/$defs/Loop" } } };
  expect(JSON.stringify(skeletonOf(loop)).length).toBeLessThan(500);
  expect(skeletonOf({ $ref: "#" })).toEqual({});
});

test("without a schema there is an empty object to begin with", () => {
  expect(skeletonOf(null)).toEqual({});
  expect(fieldsOf(null)).toEqual([]);
});

test("fields are told with their type and whether they must be there", () => {
  expect(fieldsOf(SCHEMA).slice(0, 3)).toEqual([
    { name: "topic", type: "string", isRequired: true, description: "What about" },
    { name: "mood", type: '"calm" | "wild"', isRequired: true, description: "" },
    { name: "words", type: "integer or null", isRequired: false, description: "" },
  ]);
});
