/**
 * Who is looking. A one-time code (from the link that `runwire dev` prints) or an API key becomes a
 * session cookie that scripts cannot read; the page holds only the short token the session gives.
 */

import { ApiError, RunwireError, UnauthorizedError } from "@runwire/client";

/** A token this close to its end (milliseconds) is not used any more. */
const MARGIN_MS = 60_000;

export interface Credential {
  code?: string;
  apiKey?: string;
}

interface Answer {
  token: string;
  /** Unix seconds. */
  expiresAt: number;
}

export class Session {
  readonly #base: string;
  #answer: Answer | null = null;
  #renewal: Promise<string> | null = null;
  /** Told when the session has ended. */
  onEnded: () => void = () => undefined;

  /** `base` is where the server is, with its path. */
  constructor(base: string) {
    this.#base = base;
  }

  async signIn(credential: Credential): Promise<void> {
    this.#answer = await this.#post("sign-in", credential);
  }

  /** A token for the next request, from the session when the one at hand will not do. */
  async token(fresh = false): Promise<string> {
    const held = this.#answer;
    if (held && !fresh && held.expiresAt * 1000 - Date.now() > MARGIN_MS) return held.token;
    this.#renewal ??= this.#renew().finally(() => (this.#renewal = null));
    return this.#renewal;
  }

  async signOut(): Promise<void> {
    this.#answer = null;
    await this.#post("sign-out", {});
  }

  async #renew(): Promise<string> {
    try {
      this.#answer = await this.#post("session", {});
      return this.#answer.token;
    } catch (error) {
      if (error instanceof UnauthorizedError) this.onEnded();
      throw error;
    }
  }

  async #post(what: string, body: object): Promise<Answer> {
    let response: Response;
    try {
      response = await fetch(`${this.#base}/api/v1/auth/${what}`, {
        method: "POST",
        credentials: "same-origin",
        headers: { "content-type": "application/json" },
        body: JSON.stringify(body),
      });
    } catch (error) {
      throw new RunwireError("the server could not be reached", { cause: error });
    }
    const told = (await response.json().catch(() => ({}))) as Answer & {
      error?: string;
      code?: string;
    };
    if (response.ok) return told;
    const about = { status: response.status, code: told.code ?? "internal" };
    const message = told.error ?? `HTTP ${response.status}`;
    throw response.status === 401
      ? new UnauthorizedError(message, about)
      : new ApiError(message, about);
  }
}

/** What somebody pasted: a sign-in link, its code, or an API key. */
export function credentialOf(pasted: string): Credential {
  const text = pasted.trim();
  const code = /#sign-in=([^&\s]+)/.exec(text)?.[1];
  if (code) return { code };
  return /^tr_[a-z]+_sk_/.test(text) ? { apiKey: text } : { code: text };
}
