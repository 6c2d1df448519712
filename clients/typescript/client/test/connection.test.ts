import { expect, test } from "vitest";

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
import { RunwireError, UnauthorizedError, UnreachableError } from "../src/errors.ts";

const AT: Circumstances = { now: 1_000_000, random: 0.5, patience: Infinity, refreshable: true };
const EVENTS: { [N in EventName]: Extract<Event, { is: N }> } = {
  needed: { is: "needed" },
  unneeded: { is: "unneeded" },
  token: { is: "token" },
  token_failed: { is: "token_failed", error: new RunwireError("away"), final: false },
  token_expiring: { is: "token_expiring" },
  opened: { is: "opened" },
  ready: { is: "ready" },
  heard: { is: "heard" },
  lost: { is: "lost", code: 1006, reason: "" },
  deadline: { is: "deadline" },
  wake: { is: "wake" },
  close: { is: "close" },
};
const PHASES = Object.keys(TABLE) as Phase[];

/** Where each event leads from each phase; what is not named stays. */
const EXPECTED: { [P in Phase]: Partial<Record<EventName, Phase>> } = {
  idle: { needed: "token", close: "closed" },
  token: {
    unneeded: "idle",
    token: "connecting",
    token_failed: "waiting",
    deadline: "waiting",
    close: "closed",
  },
  connecting: {
    unneeded: "idle",
    opened: "authenticating",
    lost: "waiting",
    deadline: "waiting",
    close: "closed",
  },
  authenticating: {
    unneeded: "idle",
    ready: "ready",
    lost: "waiting",
    deadline: "waiting",
    close: "closed",
  },
  ready: { unneeded: "lingering", lost: "waiting", deadline: "waiting", close: "closed" },
  lingering: { needed: "ready", lost: "idle", deadline: "idle", close: "closed" },
  waiting: { unneeded: "idle", deadline: "token", wake: "token", close: "closed" },
  closed: {},
};

test.each(PHASES.flatMap((phase) => Object.values(EVENTS).map((event) => ({ phase, event }))))(
  "$phase, when $event.is",
  ({ phase, event }) => {
    const { connection } = step({ ...IDLE, phase }, event, AT);
    expect(connection.phase).toBe(EXPECTED[phase][event.is] ?? phase);
  },
);

test("a code that forbids to come back ends it, and says why", () => {
  for (const phase of ["connecting", "authenticating", "ready"] as const) {
    const taken = step({ ...IDLE, phase }, { is: "lost", code: 4401, reason: "wrong" }, AT);
    expect(taken.connection.phase).toBe("idle");
    expect(failure(taken.actions)).toBeInstanceOf(UnauthorizedError);
  }
});

test("an expired token is asked for again, where there is somebody to ask", () => {
  const expired: Event = { is: "lost", code: 4003, reason: "" };
  const ready: Connection = { ...IDLE, phase: "ready" };
  expect(step(ready, expired, AT).connection.phase).toBe("waiting");
  const { actions } = step(ready, expired, { ...AT, refreshable: false });
  expect(failure(actions)).toBeInstanceOf(UnauthorizedError);
});

test("waits grow with every try, with full jitter, up to thirty seconds", () => {
  const waits = [0, 1, 2, 3, 20].map((attempts) => {
    const connection: Connection = { ...IDLE, phase: "connecting", attempts, awaySince: AT.now };
    return (step(connection, EVENTS.lost, AT).connection.deadline ?? 0) - AT.now;
  });
  expect(waits).toEqual([250, 500, 1000, 2000, 15_000]);
});

test("a socket that was stable starts the waits again, a short-lived one does not", () => {
  const ready: Connection = { ...IDLE, phase: "ready", attempts: 5, readySince: AT.now - 61_000 };
  expect(step(ready, EVENTS.lost, AT).connection.attempts).toBe(1);
  const brief: Connection = { ...ready, readySince: AT.now - 1_000 };
  expect(step(brief, EVENTS.lost, AT).connection.attempts).toBe(6);
});

test("a server that stays away past the deadline is given up", () => {
  const at: Circumstances = { ...AT, patience: 5_000 };
  const away: Connection = { ...IDLE, phase: "waiting", attempts: 3, awaySince: AT.now - 5_000 };
  const given = failure(step(away, EVENTS.deadline, at).actions);
  expect(given).toBeInstanceOf(UnreachableError);
  expect((given as UnreachableError).after).toBe(5);
  // And no wait reaches beyond it.
  const soon: Connection = { ...away, attempts: 20, awaySince: AT.now - 4_000 };
  expect(step(soon, EVENTS.deadline, at).connection.deadline).toBe(AT.now + 1_000);
});

test("wherever a walk leads, a socket that is not there is not used", () => {
  const random = generator(7);
  const names = Object.keys(EVENTS).filter((name) => name !== "close") as EventName[];
  let connection = IDLE;
  let isOpen = false;
  for (let now = 0; now < 20_000; now += 10) {
    const event = EVENTS[names[Math.floor(random() * names.length)] ?? "needed"];
    if (event.is === "lost") isOpen = false;
    const taken = step(connection, event, { ...AT, now, random: random() });
    for (const action of taken.actions) {
      if (action.do === "open") {
        expect(isOpen).toBe(false);
        isOpen = true;
      }
      if (action.do === "hang_up") isOpen = false;
      if (["authenticate", "subscribe", "ping"].includes(action.do) && event.is !== "lost") {
        expect(["authenticating", "ready"]).toContain(taken.connection.phase);
      }
    }
    connection = taken.connection;
    const isAtRest = connection.phase === "idle" || connection.phase === "closed";
    // Whoever waits for something waits until some time.
    expect(connection.deadline === null).toBe(isAtRest);
    if (isAtRest || connection.phase === "waiting") expect(isOpen && event.is !== "lost").toBe(false);
  }
});

function failure(actions: readonly Action[]): RunwireError | null {
  const failed = actions.find((action) => action.do === "fail");
  return failed ? failed.error : null;
}

/** Random numbers that are the same in every run (a linear congruential generator). */
function generator(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state * 1_664_525 + 1_013_904_223) % 2 ** 32;
    return state / 2 ** 32;
  };
}
