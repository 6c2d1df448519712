/** The HTTP API: trigger, retrieve, list, cancel, replay, input, wait tokens. */

import { backoff } from "./backoff.ts";
import type { RunStatus } from "./codes.ts";
import { apiError, ConfigurationError, RunwireError, UnauthorizedError } from "./errors.ts";
import { type Run, runOf } from "./runs.ts";
import type { TokenSource } from "./socket.ts";
import type { Json, JsonObject, WireRun } from "./wire.ts";

/** How a run is triggered. Durations are seconds or text like "1h30m"; times are ISO 8601. */
export interface TriggerOptions {
  tags?: string | string[];
  metadata?: JsonObject;
  delay?: string | number;
  ttl?: string | number;
  idempotencyKey?: string;
  idempotencyKeyTTL?: string | number;
  queue?: string | { name: string; concurrencyLimit?: number };
  concurrencyKey?: string;
  maxAttempts?: number;
  maxDuration?: number;
  priority?: number;
  test?: boolean;
}

export interface Triggered {
  readonly id: string;
  /** An earlier run with the same idempotency key was found. */
  readonly isCached: boolean;
  /** Reads just that run. */
  readonly publicAccessToken: string | null;
}

export interface ListQuery {
  status?: readonly RunStatus[];
  task?: readonly string[];
  tag?: readonly string[];
  /** The run that triggered them. */
  parent?: string;
  /** ISO times, ends included. */
  createdFrom?: string;
  createdTo?: string;
  size?: number;
  after?: string;
  before?: string;
}

export interface RunPage {
  readonly runs: readonly Run[];
  readonly next: string | null;
  readonly previous: string | null;
}

export interface RequestOptions {
  method?: "GET" | "POST" | "PUT" | "DELETE";
  body?: unknown;
  headers?: Record<string, string>;
}

/** Tries of one call: what fails on the way, or with 429 or 5xx, is repeated. */
const TRIES = 3;

export class Http {
  readonly #url: string;
  readonly #token: TokenSource;
  readonly #fetch: typeof fetch;

  constructor(url: string, token: TokenSource, fetcher: typeof fetch | undefined) {
    if (!fetcher) throw new ConfigurationError("there is no fetch here: pass one as an option");
    this.#url = url;
    this.#token = token;
    this.#fetch = fetcher;
  }

  /** Start a run of a task. */
  async trigger(task: string, payload?: Json, options: TriggerOptions = {}): Promise<Triggered> {
    const text = payload === undefined ? {} : { payload: JSON.stringify(payload) };
    const { answer, headers } = await this.#call(`/api/v1/tasks/${encodeURIComponent(task)}/trigger`, {
      method: "POST",
      body: { ...text, options },
      // The same for every try, so that a repeated request starts one run.
      headers: { "x-trigger-request-idempotency-key": requestKey() },
    });
    const { id, isCached } = answer as { id: string; isCached?: boolean };
    return { id, isCached: isCached ?? false, publicAccessToken: headers.get("x-trigger-jwt") };
  }

  async retrieve(id: string): Promise<Run> {
    return runOf((await this.request(`/api/v3/runs/${encodeURIComponent(id)}`)) as WireRun);
  }

  /** One page of runs, newest first. */
  async list(query: ListQuery = {}): Promise<RunPage> {
    const search = new URLSearchParams();
    if (query.status?.length) search.set("filter[status]", query.status.join(","));
    if (query.task?.length) search.set("filter[taskIdentifier]", query.task.join(","));
    if (query.tag?.length) search.set("filter[tag]", query.tag.join(","));
    if (query.parent) search.set("filter[parent]", query.parent);
    if (query.createdFrom) search.set("filter[createdAt][from]", query.createdFrom);
    if (query.createdTo) search.set("filter[createdAt][to]", query.createdTo);
    if (query.size) search.set("page[size]", String(query.size));
    if (query.after) search.set("page[after]", query.after);
    if (query.before) search.set("page[before]", query.before);
    const { data, pagination } = (await this.request(`/api/v1/runs?${search}`)) as {
      data: WireRun[];
      pagination: { next?: string; previous?: string };
    };
    return {
      runs: data.map(runOf),
      next: pagination.next ?? null,
      previous: pagination.previous ?? null,
    };
  }

  async cancel(id: string): Promise<void> {
    await this.request(`/api/v2/runs/${encodeURIComponent(id)}/cancel`, { method: "POST" });
  }

  /** Start a new run with the same payload. */
  async replay(id: string): Promise<{ id: string }> {
    const path = `/api/v1/runs/${encodeURIComponent(id)}/replay`;
    return (await this.request(path, { method: "POST" })) as { id: string };
  }

  /** Send a value to an input stream of a run; its repeats are one. */
  async sendInput(runId: string, stream: string, data: Json): Promise<void> {
    const path = `/realtime/v1/streams/${encodeURIComponent(runId)}/input/${encodeURIComponent(stream)}`;
    const headers = { "x-part-id": requestKey() };
    await this.request(path, { method: "POST", body: { data }, headers });
  }

  /** Complete a wait token: runs that wait for it go on with the value. The first one counts. */
  async completeToken(id: string, data: Json = null): Promise<void> {
    const path = `/api/v1/waitpoints/tokens/${encodeURIComponent(id)}/complete`;
    await this.request(path, { method: "POST", body: { data } });
  }

  /** Any other request. Throws an ApiError, or a RunwireError when the server is not reached. */
  async request(path: string, options: RequestOptions = {}): Promise<unknown> {
    return (await this.#call(path, options)).answer;
  }

  async #call(
    path: string,
    options: RequestOptions,
  ): Promise<{ answer: unknown; headers: Headers }> {
    let refreshed = false;
    for (let tried = 1; ; tried += 1) {
      try {
        return await this.#once(path, options, refreshed);
      } catch (error) {
        const isStale = error instanceof UnauthorizedError && typeof this.#token === "function";
        if (isStale && !refreshed) {
          // The token may have ended on its way here; the next one is fresh.
          refreshed = true;
          continue;
        }
        if (tried >= TRIES || !mayRepeat(error)) throw error;
        await new Promise((done) => setTimeout(done, backoff(tried, Math.random())));
      }
    }
  }

  async #once(path: string, { method, body, headers }: RequestOptions, fresh: boolean) {
    const token = typeof this.#token === "function" ? await this.#token(fresh) : this.#token;
    let response: Response;
    try {
      response = await this.#fetch.call(globalThis, this.#url + path, {
        method: method ?? "GET",
        headers: {
          authorization: `Bearer ${token}`,
          ...(body !== undefined && { "content-type": "application/json" }),
          ...headers,
        },
        ...(body !== undefined && { body: JSON.stringify(body) }),
      });
    } catch (error) {
      throw new RunwireError("the server could not be reached", { cause: error });
    }
    if (!response.ok) throw await refusal(response);
    const answer: unknown = response.status === 204 ? null : await response.json();
    return { answer, headers: response.headers };
  }
}

async function refusal(response: Response): Promise<RunwireError> {
  const told: unknown = await response.json().catch(() => null);
  const about = (told ?? {}) as { error?: unknown; code?: unknown };
  const message = typeof about.error === "string" ? about.error : `HTTP ${response.status}`;
  return apiError(response.status, message, typeof about.code === "string" ? about.code : "internal");
}

function mayRepeat(error: unknown): boolean {
  if (!(error instanceof RunwireError)) return false;
  const status = "status" in error ? Number(error.status) : 0;
  return error.name === "RunwireError" || status === 429 || status >= 500;
}

/** 128 random bits. Not randomUUID, which plain http:// pages do not have. */
function requestKey(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
