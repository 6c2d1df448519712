"""The runs held on one socket, each at a revision: what a patch applies to. [core]"""

from collections.abc import Set
from typing import cast

from runwire._metadata import apply
from runwire.wire import Json, JsonObject


class Views:
    """Every run as the server last sent it; several subscriptions share one."""

    def __init__(self) -> None:
        self._held: dict[str, JsonObject] = {}

    def get(self, run: str) -> JsonObject | None:
        return self._held.get(run)

    def hold(self, document: JsonObject) -> None:
        """Hold a whole run, unless a newer one is held."""
        held = self._held.get(document["id"])
        if held is None or held["revision"] <= document["revision"]:
            self._held[document["id"]] = document

    def patch(self, patch: JsonObject) -> frozenset[str] | None:
        """Apply a patch to its base. Return the fields it touched; None when it does not apply."""
        held = self._held.get(patch["run"])
        if held is None or held["revision"] != patch["from"] or patch["revision"] <= patch["from"]:
            return None
        changes: JsonObject = patch["set"]
        document = {**held, **changes, "revision": patch["revision"]}
        touched = set(changes)
        operations: list[JsonObject] = patch.get("metadata") or []
        if operations:
            touched.add("metadata")
            document["metadata"] = _changed(document.get("metadata"), operations)
        self._held[patch["run"]] = {
            name: value for name, value in document.items() if value is not None
        }
        return frozenset(touched)

    def is_behind(self, patch: JsonObject) -> bool:
        """Say whether a patch that does not apply is news, so that the run must be fetched."""
        held = self._held.get(patch["run"])
        return held is None or held["revision"] < patch["revision"]

    def drop(self, run: str) -> None:
        self._held.pop(run, None)

    def keep(self, runs: Set[str]) -> None:
        self._held = {run: held for run, held in self._held.items() if run in runs}

    def clear(self) -> None:
        self._held.clear()


def _changed(metadata: Json, operations: list[JsonObject]) -> Json:
    document = cast(JsonObject, metadata or {})
    # A value too large for the feed is fetched when touched; there is nothing here to change.
    return document if "$large" in document else apply(document, operations)
