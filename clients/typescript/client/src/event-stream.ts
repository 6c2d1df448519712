/**
 * What a `text/event-stream` says, byte by byte as it comes. [core]
 *
 * Events have data; what else they have (`id`, `event`, `retry`) and comments are skipped.
 */

import { MAX_MESSAGE_BYTES } from "./codes.ts";

/** A frame that is one message of the greatest size; some room for its array and a newer server. */
const MAX_EVENT_CHARACTERS = 2 * MAX_MESSAGE_BYTES;

export class EventStreamParser {
  readonly #decoder = new TextDecoder();
  /** The line that is not complete yet. */
  #line = "";
  /** A line ended with CR: an LF that comes next belongs to that end. */
  #isAfterReturn = false;
  #data: string[] = [];
  #size = 0;

  /** Take bytes, return the data of every event that is complete. Throws on one without an end. */
  push(bytes: Uint8Array): string[] {
    const events: string[] = [];
    const lines = (this.#line + this.#decoded(bytes)).split(/\r\n|\n|\r/);
    this.#line = lines.pop() ?? "";
    for (const line of lines) {
      if (line) this.#take(line);
      else if (this.#data.length) events.push(this.#dispatch());
    }
    if (this.#size + this.#line.length > MAX_EVENT_CHARACTERS) {
      throw new RangeError("an event is too large");
    }
    return events;
  }

  #decoded(bytes: Uint8Array): string {
    const text = this.#decoder.decode(bytes, { stream: true });
    if (!text) return "";
    const isSecondHalf = this.#isAfterReturn && text.startsWith("\n");
    this.#isAfterReturn = text.endsWith("\r");
    return isSecondHalf ? text.slice(1) : text;
  }

  #take(line: string): void {
    const [, name, value = ""] = /^([^:]*)(?:: ?)?(.*)$/s.exec(line) ?? [];
    if (name !== "data") return;
    this.#data.push(value);
    this.#size += value.length;
  }

  #dispatch(): string {
    const data = this.#data.join("\n");
    this.#data = [];
    this.#size = 0;
    return data;
  }
}
