"""Digest a folder: one child run per file, progress on the parent.

The parent starts a batch of child runs and follows it until every one is over; the children count
themselves on the parent's metadata, whose operations commute however many run at once.
"""

import hashlib
from pathlib import Path

from anyio import to_thread
from pydantic import BaseModel, Field

from runwire import AbortTaskRunError, metadata, runs, task

MAX_FILES = 1000  # what one batch holds


class Folder(BaseModel):
    """Which files of which folder, on the worker's machine."""

    path: str = "docs"
    pattern: str = "**/*.md"
    limit: int = Field(default=200, ge=1, le=MAX_FILES)


class File(BaseModel):
    path: str = Field(min_length=1)


class FileDigest(BaseModel):
    path: str
    bytes: int
    lines: int
    sha256: str


class FolderDigest(BaseModel):
    files: int
    failed: int
    bytes: int
    lines: int
    # Of the files' digests in the order of their paths: changes when any file does.
    sha256: str


@task(id="digest-file", queue={"concurrency_limit": 8})
def digest_file(payload: File) -> FileDigest:
    """Digest one file, and count it on the parent."""
    path = Path(payload.path)
    if not path.is_file():
        raise AbortTaskRunError(f"there is no file {path}")  # another attempt would find none
    content = path.read_bytes()
    metadata.parent.increment("filesDone").increment("bytesDone", len(content))
    return FileDigest(
        path=payload.path,
        bytes=len(content),
        lines=content.count(b"\n"),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def combined(digests: list[FileDigest], failed: int) -> FolderDigest:
    """Return the digest of a folder from those of its files."""
    ordered = sorted(digests, key=lambda digest: digest.path)
    total = hashlib.sha256("".join(f"{d.sha256} {d.path}\n" for d in ordered).encode())
    return FolderDigest(
        files=len(ordered),
        failed=failed,
        bytes=sum(d.bytes for d in ordered),
        lines=sum(d.lines for d in ordered),
        sha256=total.hexdigest(),
    )


def files_of(folder: Folder) -> list[Path]:
    """Return the files to digest, in order. Aborts the run when there is no such folder."""
    path = Path(folder.path)
    if not path.is_dir():
        raise AbortTaskRunError(f"there is no folder {folder.path}")
    return sorted(file for file in path.glob(folder.pattern) if file.is_file())[: folder.limit]


@task(id="digest-folder", retry={"max_attempts": 1})
async def digest_folder(payload: Folder) -> FolderDigest:
    """Digest every file of a folder, each in a run of its own."""
    files = await to_thread.run_sync(files_of, payload)
    metadata.set("files", len(files)).set("filesDone", 0).set("bytesDone", 0)
    await metadata.flush()  # before the children count on it
    handle = await digest_file.batch_trigger([{"payload": File(path=str(path))} for path in files])
    digests: dict[str, FileDigest] = {}
    failed: set[str] = set()
    async for run in runs.subscribe_to_batch(handle.batch_id):
        if run.is_success:
            digests[run.id] = FileDigest.model_validate(run.output)
        elif run.is_completed:
            failed.add(run.id)
    return combined(list(digests.values()), len(failed))
