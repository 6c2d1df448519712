/**
 * Chance is fixed in every test, so that a back-off is as long in each run: half of its most.
 *
 * With a number near 0 a retry falls due in the very moment in which a test looks at what comes
 * before it. A test whose subject is chance, or the longest wait, says its own.
 */

import { beforeEach, vi } from "vitest";

beforeEach(() => void vi.spyOn(Math, "random").mockReturnValue(0.5));
