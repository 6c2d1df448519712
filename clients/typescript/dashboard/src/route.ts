/** Where in the dashboard the reader is: kept in the URL's fragment, which no server sees. */

import { useSyncExternalStore } from "react";

export type Route =
  | { page: "runs"; filter: RunsFilter }
  | { page: "run"; id: string }
  | { page: "schedules" }
  | { page: "trigger"; task: string | null };

export interface RunsFilter {
  status: string;
  task: string;
  tag: string;
}

export const NO_FILTER: RunsFilter = { status: "", task: "", tag: "" };

export function parseRoute(fragment: string): Route {
  const [path = "", query = ""] = fragment.replace(/^#/, "").split("?");
  const search = new URLSearchParams(query);
  const [, first, second] = path.split("/");
  if (first === "runs" && second) return { page: "run", id: decoded(second) };
  if (first === "schedules") return { page: "schedules" };
  if (first === "trigger") return { page: "trigger", task: second ? decoded(second) : null };
  return {
    page: "runs",
    filter: {
      status: search.get("status") ?? "",
      task: search.get("task") ?? "",
      tag: search.get("tag") ?? "",
    },
  };
}

export function runsLink(filter: Partial<RunsFilter> = {}): string {
  const given = Object.entries(filter).filter(([, value]) => value);
  return given.length ? `#/?${new URLSearchParams(given)}` : "#/";
}

export function runLink(id: string): string {
  return `#/runs/${encodeURIComponent(id)}`;
}

export function schedulesLink(): string {
  return "#/schedules";
}

export function triggerLink(task?: string): string {
  return task ? `#/trigger/${encodeURIComponent(task)}` : "#/trigger";
}

export function go(link: string): void {
  location.hash = link;
}

export function useFragment(): string {
  return useSyncExternalStore(onFragment, () => location.hash);
}

function onFragment(changed: () => void): () => void {
  addEventListener("hashchange", changed);
  return () => removeEventListener("hashchange", changed);
}

function decoded(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}
