/** What a chunk adds to a text. [core] */

import type { Json } from "./wire.ts";

/**
 * A string adds itself, a chunk of a chat or text completion (as `openai` streams them) what it
 * says, and any other value its JSON on a line.
 */
export function chunkText(chunk: Json): string {
  if (typeof chunk === "string") return chunk;
  return completionText(chunk) ?? `${JSON.stringify(chunk)}\n`;
}

function completionText(chunk: Json): string | null {
  const choices = member(chunk, "choices");
  // The last chunk of a completion may hold the usage only.
  if (!Array.isArray(choices)) return null;
  const first = choices[0] ?? null;
  const said = member(member(first, "delta"), "content") ?? member(first, "text");
  return typeof said === "string" ? said : "";
}

function member(value: Json | undefined, name: string): Json | undefined {
  if (typeof value !== "object" || value === null || Array.isArray(value)) return undefined;
  return Object.hasOwn(value, name) ? value[name] : undefined;
}
