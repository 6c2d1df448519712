/**
 * Everybody who follows something on one socket, and what each message means to whom. [core]
 *
 * Messages about a run name the run, not the subscription, so all of them pass by all followers.
 */

import { ErrorCode, MAX_CLIENT_FRAME_BYTES, MAX_SUBSCRIPTIONS } from "./codes.ts";
import { type RunwireError, SubscriptionError, subscriptionError } from "./errors.ts";
import { mayShare, type Plan } from "./plan.ts";
import { HeldRuns } from "./runs.ts";
import { bytesOf } from "./streams.ts";
import * as subscription from "./subscription.ts";
import type { Updates } from "./updates.ts";
import type {
  ErrorMessage,
  Heartbeat,
  Patch,
  Pong,
  Ready,
  ServerMessage,
  StreamMessage,
  Subscribe,
  SubscriptionMessage,
  TokenExpiring,
  WireRun,
} from "./wire.ts";

/** What is for the followers; the rest is about the connection. */
export type FollowersMessage = Exclude<ServerMessage, Ready | TokenExpiring | Heartbeat | Pong>;

export interface Verdict {
  /** The run that must come whole: what is held of it is not what the server takes it for. */
  readonly refetch?: string;
  /** The server broke a promise: hang up and resume. */
  readonly isBroken?: boolean;
  /** Something could not be taken for now, for the so-manieth time (from 0): ask again later. */
  readonly again?: number;
}

interface Follower {
  readonly updates: Updates;
  state: subscription.Subscription;
  /** How often in a row the server could not take it, and since when. */
  refused: { times: number; since: number } | null;
}

/** What the server cannot do now it may do later. */
const PASSING: ReadonlySet<string> = new Set([
  ErrorCode.UNAVAILABLE,
  ErrorCode.INTERNAL,
  ErrorCode.RATE_LIMITED,
]);

const NOTHING: Verdict = {};

export class Followers {
  readonly #runs = new HeldRuns();
  readonly #followers = new Map<string, Follower>();
  #epoch: string | null = null;
  #isStale = false;

  get size(): number {
    return this.#followers.size;
  }

  /** Whether the server has lost its database. */
  get isStale(): boolean {
    return this.#isStale;
  }

  haveRoomFor(plan: Plan): boolean {
    const shares = this.#all().every(({ state }) => mayShare(state.plan, plan));
    return shares && this.size < MAX_SUBSCRIPTIONS;
  }

  add(plan: Plan, updates: Updates): void {
    this.#followers.set(plan.sub, { updates, state: subscription.begin(plan), refused: null });
  }

  /** Returns whether the server knows of it. */
  remove(sub: string): boolean {
    const follower = this.#followers.get(sub);
    if (!follower) return false;
    this.#drop(follower);
    return follower.state.freshness !== "connecting";
  }

  /** End them all. */
  end(error: RunwireError | null): void {
    const followers = this.#all();
    this.#followers.clear();
    this.#runs.keep(() => false);
    for (const { updates } of followers) updates.finish(error, error !== null);
  }

  /**
   * What to ask for on a socket that has not been asked for it yet. What is too large for a frame
   * ends here: the server would close the socket under all the others. `room` is for all of them.
   */
  requests(room = Infinity): Subscribe[] {
    const requests: Subscribe[] = [];
    let left = room;
    // Those that want each revision first: what others are told of a run would be no news then.
    const isEvery = ({ state }: Follower) => Number(state.plan.mode === "every");
    for (const follower of this.#all().sort((a, b) => isEvery(b) - isEvery(a))) {
      if (follower.state.freshness !== "connecting") continue;
      const request = subscription.request(follower.state);
      const size = bytesOf(request);
      const most = Math.min(MAX_CLIENT_FRAME_BYTES, left);
      if (size > most) {
        const message = `what is asked for takes ${size} bytes, over ${most}`;
        this.#drop(follower);
        follower.updates.finish(subscriptionError(ErrorCode.TOO_LARGE, message));
        continue;
      }
      // And the comma after it.
      left -= size + 1;
      this.#take(follower, subscription.turn(follower.state, "sent"));
      requests.push(request);
    }
    return requests;
  }

  /** The socket is gone. */
  lose(): void {
    this.#isStale = false;
    this.#runs.disconnect();
    for (const follower of this.#all()) this.#take(follower, subscription.lose(follower.state));
  }

  /**
   * Learn whether the server's history is still the one that was read so far. Returns whether
   * something was asked for already by what that history said.
   */
  meet(epoch: string): boolean {
    const before = this.#epoch;
    this.#epoch = epoch;
    if (before === null || before === epoch) return false;
    this.#runs.keep(() => false);
    let isAsked = false;
    for (const follower of this.#all()) {
      isAsked ||= follower.state.freshness !== "connecting";
      this.#take(follower, subscription.beginAgain(follower.state));
    }
    return isAsked;
  }

  /** Have the next requests bring this run whole. */
  askWhole(run: string): void {
    for (const follower of this.#all()) {
      if (follower.state.members.has(run)) follower.state = subscription.forget(follower.state);
    }
  }

  /** End those that the server could not take since that time or longer. */
  giveUp(since: number, error: RunwireError): void {
    for (const follower of this.#all()) {
      if (!follower.refused || follower.refused.since > since) continue;
      this.#drop(follower);
      follower.updates.finish(error);
    }
  }

  receive(message: FollowersMessage, now: number): Verdict {
    switch (message.type) {
      case "run":
        return this.#put(message.run);
      case "patch":
        return this.#patch(message);
      case "chunks":
      case "text":
      case "attempt":
      case "end":
      case "eof":
        return this.#stream(message);
      case "state":
        return this.#turn(message.state === "stale");
      case "error":
        return this.#refused(message, now);
      case "snapshot":
      case "base":
      case "live":
      case "joined":
      case "removed":
      case "cursor":
      case "gap":
      case "done":
        return this.#subscription(message);
      default:
        // A newer server may say more.
        message satisfies never;
        return NOTHING;
    }
  }

  #put(run: WireRun): Verdict {
    if (this.#runs.put(run)) this.#tell(run);
    return NOTHING;
  }

  #patch(patch: Patch): Verdict {
    const outcome = this.#runs.patch(patch);
    if (outcome === "refetch") return { refetch: patch.run };
    const run = outcome === "news" && this.#runs.get(patch.run);
    if (run) this.#tell(run);
    return NOTHING;
  }

  #tell(run: WireRun): void {
    for (const follower of this.#all()) {
      this.#take(follower, subscription.tell(follower.state, run));
    }
  }

  #stream(message: StreamMessage): Verdict {
    let isBroken = false;
    for (const follower of this.#all()) {
      let outcome: subscription.Outcome;
      try {
        outcome = subscription.receiveStream(follower.state, message);
      } catch (error) {
        // The application's own `toText`.
        const about = { code: "value", cause: error };
        follower.updates.fail(new SubscriptionError("a chunk could not be made text", about));
        continue;
      }
      isBroken ||= outcome.isBroken === true;
      this.#take(follower, outcome);
    }
    return { isBroken };
  }

  #turn(isStale: boolean): Verdict {
    this.#isStale = isStale;
    for (const follower of this.#all()) {
      this.#take(follower, subscription.turn(follower.state, isStale ? "stale" : "fresh"));
    }
    return NOTHING;
  }

  #subscription(message: SubscriptionMessage): Verdict {
    const follower = this.#followers.get(message.sub);
    if (!follower) return NOTHING;
    if (message.type === "gap" && message.stream === undefined) {
      const doubtful = message.run === undefined ? follower.state.members.keys() : [message.run];
      for (const id of doubtful) this.#runs.doubt(id);
    }
    if (message.type === "base") this.#runs.put(message.run);
    if (message.type === "snapshot") {
      for (const run of message.runs) this.#put(run);
    }
    this.#take(
      follower,
      subscription.receive(follower.state, message, (id) => this.#runs.get(id), this.#isStale),
    );
    if (message.type === "live") follower.refused = null;
    if (message.type === "joined" && !this.#runs.get(message.run)) return { refetch: message.run };
    if (message.type === "removed") this.#runs.keep((id) => this.#isFollowed(id));
    if (message.type === "done") {
      this.#drop(follower);
      follower.updates.finish(null);
    }
    return NOTHING;
  }

  #refused({ sub, code, message }: ErrorMessage, now: number): Verdict {
    const follower = sub === undefined ? undefined : this.#followers.get(sub);
    // Without a subscription it is about something that was not understood: the socket lives on.
    if (!follower) return NOTHING;
    if (PASSING.has(code)) {
      const { times, since } = follower.refused ?? { times: 0, since: now };
      follower.refused = { times: times + 1, since };
      this.#take(follower, subscription.lose(follower.state));
      return { again: times };
    }
    this.#drop(follower);
    follower.updates.finish(subscriptionError(code, message));
    return NOTHING;
  }

  #take(follower: Follower, { state, events }: subscription.Outcome): void {
    follower.state = state;
    if (events.length) follower.updates.deliver(events);
  }

  #drop(follower: Follower): void {
    this.#followers.delete(follower.state.plan.sub);
    this.#runs.keep((id) => this.#isFollowed(id));
  }

  #isFollowed(run: string): boolean {
    return this.#all().some(({ state }) => state.members.has(run));
  }

  /** A copy, because whoever is told something may come or go. */
  #all(): Follower[] {
    return [...this.#followers.values()];
  }
}
