import { describe, expect, test } from "vitest";

import {
  type Action,
  type Circumstances,
  type Connection,
  type Event,
  type EventName,
  IDLE,
  type Phase,
  step,
  TABLE,
} from "../src/connection.ts";
import { ApiError, apiError, RunwireError, UnreachableError } from "../src/errors.ts";
import { vectors } from "./support/samples.ts";

interface ErrorWord {
  code: string;
  status: number | null;
  after?: number;
}

interface Vector {
  name: string;
  connection: Partial<Connection>;
  event: {
    is: EventName;
    error?: ErrorWord;
    code?: number;
    slept?: number;
    final?: boolean;
    heartbeat?: number;
  };
  circumstances?: Partial<Told>;
  expect: {
    connection: Partial<Connection>;
    actions: { do: Action["do"]; carrier?: string; error?: ErrorWord }[];
  };
}

/** Circumstances in JSON, which has no Infinity. */
type Told = Omit<Circumstances, "patience"> & { patience: number | null };

interface Vectors {
  defaults: { connection: Connection; circumstances: Told };
  vectors: Vector[];
}

const FILE = vectors<Vectors>("connection.json");
const { defaults } = FILE;
const PHASES = Object.keys(TABLE) as Phase[];
const EVENTS = Object.keys(TABLE.idle) as EventName[];

describe("a connection does what every client does", () => {
  test.each(FILE.vectors)("$name", (vector) => {
    const before = { ...defaults.connection, ...vector.connection };
    const after = step(before, eventOf(vector.event), circumstancesOf(vector.circumstances));
    expect(after.connection).toEqual({ ...before, ...vector.expect.connection });
    expect(after.actions.map(worded)).toEqual(vector.expect.actions);
  });

  test.each(PHASES.flatMap((phase) => EVENTS.map((event) => [phase, event] as const)))(
    "and there is a vector for %s, when %s",
    (phase, event) => {
      const found = FILE.vectors.some(
        (vector) => vector.connection.phase === phase && vector.event.is === event,
      );
      expect(found).toBe(true);
    },
  );

  test("beginning with nothing", () => {
    expect(defaults.connection).toEqual(IDLE);
  });
});

test("wherever a walk leads, what is not there is not used, and every wait has an end", () => {
  const random = generator(7);
  const names = EVENTS.filter((name) => name !== "close");
  const carriers = new Set<string>();
  let connection = IDLE;
  let open: string | null = null;
  for (let now = 0; now < 40_000; now += 10) {
    const event = eventOf({ is: pick(names, random), code: pick([1006, 4001, 4003], random) });
    if (event.is === "lost") open = null;
    const before = connection;
    const { connection: after, actions } = step(before, event, {
      ...circumstancesOf({ now, random: random() }),
    });
    for (const action of actions) {
      if (action.do === "hang_up") open = null;
      if (action.do === "open") {
        expect(open).toBeNull();
        open = action.carrier;
        carriers.add(open);
      }
      if (["authenticate", "subscribe", "ping"].includes(action.do)) {
        expect(["authenticating", "ready"]).toContain(after.phase);
      }
      // Events take what is asked for once, with the request.
      if (action.do === "subscribe" && after.carrier === "events") expect(event.is).toBe("opened");
    }
    const isAtRest = after.phase === "idle" || after.phase === "closed";
    expect(after.deadline === null).toBe(isAtRest);
    if (isAtRest || after.phase === "waiting") expect(event.is === "lost" || open === null).toBe(true);
    connection = after;
  }
  expect(carriers).toEqual(new Set(["socket", "events"]));
});

function circumstancesOf(given: Partial<Told> | undefined): Circumstances {
  const told = { ...defaults.circumstances, ...given };
  return { ...told, patience: told.patience ?? Infinity };
}

function eventOf({ is, error, code, slept, final, heartbeat }: Vector["event"]): Event {
  switch (is) {
    case "token_failed": {
      const { status, code: word } = error ?? { status: 503, code: "unavailable" };
      return { is, error: apiError(status ?? 500, "no token", word), final: final ?? false };
    }
    case "lost":
      return { is, code: code ?? 1006, reason: "" };
    case "ready":
      return { is, heartbeat: heartbeat ?? 15_000 };
    case "wake":
      return { is, slept: slept ?? 0 };
    default:
      return { is };
  }
}

/** An action in the words of the vectors. */
function worded(action: Action): object {
  return action.do === "fail" ? { do: action.do, error: errorWord(action.error) } : action;
}

function errorWord(error: RunwireError): ErrorWord {
  if (error instanceof ApiError) return { code: error.code, status: error.status };
  if (error instanceof UnreachableError) {
    return { code: "unreachable", status: null, after: error.after * 1000 };
  }
  throw error;
}

function pick<T>(among: readonly T[], random: () => number): T {
  return among[Math.floor(random() * among.length)] as T;
}

/** Random numbers that are the same in every run (a linear congruential generator). */
function generator(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state * 1_664_525 + 1_013_904_223) % 2 ** 32;
    return state / 2 ** 32;
  };
}
