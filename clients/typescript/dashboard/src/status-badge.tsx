import type { RunStatus } from "@runwire/client";

/** How a status looks: what it means for the reader, not each its own colour. */
const TONES: Record<RunStatus, "waiting" | "working" | "good" | "bad" | "ended"> = {
  PENDING_VERSION: "waiting",
  DELAYED: "waiting",
  QUEUED: "waiting",
  DEQUEUED: "working",
  EXECUTING: "working",
  WAITING: "waiting",
  COMPLETED: "good",
  CANCELED: "ended",
  FAILED: "bad",
  CRASHED: "bad",
  SYSTEM_FAILURE: "bad",
  EXPIRED: "ended",
  TIMED_OUT: "bad",
};

export function StatusBadge({ status }: { status: RunStatus }) {
  return (
    <span className="status" data-tone={TONES[status]}>
      {statusText(status)}
    </span>
  );
}

export function statusText(status: RunStatus): string {
  const words = status.toLowerCase().replaceAll("_", " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}
