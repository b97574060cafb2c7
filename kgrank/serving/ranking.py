"""The batch job: lists for many users as Parquet parts, resumable, each row exactly once.

    out/
      part-00000.parquet    user_id, item_id (string), score (float32), rank (int32, from 1); a task
                            but "rank" adds probability or rating (float64) after the score;
                            reasons add text, paths (string: what `explain --json` has of them)
      …
      manifest.json         the job, and the users, rows and sha256 of every finished part

A part appears under its name only when it is whole, and counts only once the manifest lists it. So
a job that was killed at any moment goes on with `resume=True` where it stopped. While a job runs it
holds a lock on the folder, which the system takes back when its process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields, is_dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp
import torch

from kgrank.errors import ConfigError, DataError, Fault
from kgrank.files import sync
from kgrank.fusion.model import Repeats, Task
from kgrank.kg.reading import read_file
from kgrank.progress import Progress, silent
from kgrank.serving.checks import task_head
from kgrank.serving.reasons import Asked, Reasons, on_all_cores
from kgrank.serving.recommender import Recommender

if TYPE_CHECKING:
    from hashlib import _Hash

SCHEMA = pa.schema(
    {"user_id": pa.string(), "item_id": pa.string(), "score": pa.float32(), "rank": pa.int32()}
)
"""The columns of every part; a task but "rank" has one more, see `schema_of`."""

_MANIFEST, _TEMPORARY = "manifest.json", ".tmp"
_MEND = "Name a new folder, or remove this one and begin again."
_TABLES = (".parquet", ".csv", ".csv.gz", ".jsonl", ".jsonl.gz")


def read_user_ids(path: Path) -> tuple[str, ...]:
    """The users named in a file, each once, in the order of their first mention.

    Args:
        path: a table (.parquet, .csv, .jsonl, the latter two also .gz) with a column `user_id`; any
            other file is UTF-8 text with one id a line. Ids are kept to the letter.

    Raises:
        DataError: the file cannot be read, or names no user.
    """
    if path.name.endswith(_TABLES):
        ids = _column(path)
    else:
        try:
            lines = path.read_bytes().decode("utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise _file_fault(path, str(error), "UTF-8 text, one user id a line") from None
        ids = [line.removesuffix("\r") for line in lines if line.strip()]
    if not ids:
        raise _file_fault(path, "no user", "at least one user id")
    return tuple(dict.fromkeys(ids))


def _column(path: Path) -> list[str]:
    raw, faults = read_file("users", path)
    if faults or raw is None:
        raise DataError(faults)
    if "user_id" not in raw.frame:
        found = "the columns " + ", ".join(map(str, raw.frame.columns))
        raise _file_fault(path, found, "a column user_id")
    column = raw.frame["user_id"]
    empty = column.isna() | (column == "")
    if empty.any():
        row, count = int(column.index[empty][0]), int(empty.sum())
        mend = "Fill it in, or remove the row."
        raise DataError([Fault(path.name, row, "user_id", "nothing", "a user id", mend, count)])
    return [str(id_) for id_ in column]


def _file_fault(path: Path, found: str, allowed: str) -> DataError:
    return DataError([Fault(path.name, None, None, found, allowed, "Correct the file.")])


def schema_of(task: Task, with_reasons: bool = False) -> pa.Schema:
    """The columns of the parts of a task, with reasons or without."""
    schema = SCHEMA
    if task != "rank":
        name = "rating" if task == "rating" else "probability"
        schema = schema.insert(3, pa.field(name, pa.float64()))
    if with_reasons:
        for name in ("text", "paths"):
            schema = schema.append(pa.field(name, pa.string()))
    return schema


def rank_partition(
    recommender: Recommender,
    user_ids: Sequence[str],
    n: int,
    repeats: Repeats,
    task: Task = "rank",
    reasons: Reasons | None = None,
) -> pd.DataFrame:
    """The lists of some users: `user_id`, `item_id`, `score` (float32), `rank` (int32, from 1).

    A task but "rank" adds `probability` or `rating` (float64), reasons add `text`, and `paths` as
    JSON. It reads nothing but the bundle, so partitions may be ranked in any order, anywhere.

    Raises:
        UnknownIdError: a user that the bundle does not know.
    """
    lists = recommender.recommend(user_ids, n=n, repeats=repeats, task=task)
    lists = lists.astype({"score": np.float32, "rank": np.int32})
    if reasons is None:
        return lists
    return Asked(recommender, n, repeats, task, reasons).beside(lists)


def rank_users(
    recommender: Recommender,
    out: Path,
    *,
    n: int = 20,
    user_ids: Sequence[str] | None = None,
    repeats: Repeats = "exclude",
    task: Task = "rank",
    unknown: Literal["error", "skip"] = "error",
    resume: bool = False,
    part_users: int = 4096,
    reasons: Reasons | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Rank for many users and write the lists as Parquet; nothing is written before all is checked.

    Args:
        recommender: a bundle at work.
        out: a new or empty folder, or with `resume` one that this job was writing into.
        n: length of each list; shorter where fewer items may be listed.
        user_ids: for whom, each listed once; all users of the bundle if None.
        repeats, task: as in `Recommender.recommend`.
        unknown: what a user does that the bundle does not know: "error" refuses the job, "skip"
            leaves the user out and counts it.
        resume: keep the finished parts that are in `out`, and go on after them.
        part_users: users a part.
        reasons: write why beside each row, worked out by a process a core; if None, none are.
        progress: told ("ranking", users done, users).

    Returns:
        the manifest: `bundle` (a hash of everything that lists depend on), `n`, `repeats`, `task`,
        `reasons` (null, or what is written of them), `users`, `users_sha256`, `skipped_users`,
        `rows`, `parts` and `complete`; and `rules`, the names of those in force when the job began,
        where there are any.

    Raises:
        ConfigError: a setting is out of range, `out` holds something else, or another job is
            writing there.
        ModelError: the bundle has no head for the task; or a process has ended that worked out
            reasons.
        UnknownIdError: a user is unknown and `unknown` is "error".
    """
    for name, value in (("n", n), ("part_users", part_users)):
        if value < 1:
            raise ConfigError(f"{name}: found {value}; allowed: 1 or more. Correct it.")
    if repeats not in ("exclude", "allow", "only"):
        raise ConfigError(f"repeats: found {repeats!r}; allowed: exclude, allow, only.")
    if unknown not in ("error", "skip"):
        raise ConfigError(f"unknown: found {unknown!r}; allowed: error, skip.")
    task_head(recommender.bundle, task, repeats)  # refuses what there is no head for
    recommender = recommender.fixed()
    known, skipped = _known(recommender, user_ids, unknown)
    job: dict[str, Any] = {
        "bundle": fingerprint(recommender),
        "n": n,
        "repeats": repeats,
        "reasons": None if reasons is None else asdict(reasons),
        "task": task,
        "users": len(known),
        "users_sha256": sha256(json.dumps(known).encode()).hexdigest(),
        "skipped_users": skipped,
    }
    if len(recommender.ruling.rules):
        job["rules"] = list(recommender.ruling.in_force())
    _begun(out, job, resume)  # refuses before anything is written
    _make(out)
    with ExitStack() as stack:
        stack.enter_context(_alone_in(out))
        if reasons is not None:
            asked = Asked(recommender, n, repeats, task, reasons)
            with_reasons = stack.enter_context(on_all_cores(asked))
        parts = _begun(out, job, resume)  # another job may have been here in between
        done = sum(part["users"] for part in parts)
        manifest = _write_manifest(out, job, parts, complete=done == len(known))
        progress("ranking", done, len(known))
        while done < len(known):
            users = known[done : done + part_users]
            lists = rank_partition(recommender, users, n, repeats, task)
            lists = lists if reasons is None else with_reasons(lists)
            schema = schema_of(task, reasons is not None)
            table = pa.Table.from_pandas(lists, schema, preserve_index=False)
            parts.append(_write_part(out, len(parts), table, len(users)))
            done += len(users)
            manifest = _write_manifest(out, job, parts, complete=done == len(known))
            progress("ranking", done, len(known))
    return manifest


@contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """Keep other jobs out of the folder."""
    folder = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{out}: found another job that is writing here; allowed: one at a time. "
                "Wait until it has ended, or name another folder."
            ) from None
        yield
    finally:
        os.close(folder)


def _known(
    recommender: Recommender, user_ids: Sequence[str] | None, unknown: str
) -> tuple[list[str], int]:
    """The users to rank for, each once, and how many others there are."""
    users = recommender.bundle.users
    if user_ids is None:
        return users.ids().tolist(), 0
    asked = list(dict.fromkeys(user_ids))
    numbers = users.numbers(asked, missing="error" if unknown == "error" else "negative")
    known = [id_ for id_, number in zip(asked, numbers, strict=True) if number >= 0]
    return known, len(asked) - len(known)


def fingerprint(recommender: Recommender) -> str:
    """A hash of everything that lists depend on: ids, histories, the model's numbers, rules."""
    digest, bundle = sha256(), recommender.bundle
    if len(recommender.ruling.rules):
        digest.update(recommender.ruling.fingerprint.encode())
    _feed(digest, (bundle.model, bundle.histories))
    for vocabulary in (bundle.users, bundle.items):
        digest.update(json.dumps(vocabulary.ids().tolist()).encode())
    return digest.hexdigest()


def _feed(digest: _Hash, value: object) -> None:
    """Hash a value through all its parts."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        digest.update(f"{value.dtype}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).data)
    elif sp.issparse(value):
        csr = sp.csr_matrix(value)
        for part in (csr.indptr, csr.indices, csr.data):
            _feed(digest, part)
    elif is_dataclass(value):
        digest.update(type(value).__name__.encode())
        for field in fields(value):
            _feed(digest, getattr(value, field.name))
    elif isinstance(value, Mapping):
        for key in sorted(value):
            _feed(digest, (key, value[key]))
    elif isinstance(value, tuple):
        digest.update(f"({len(value)}".encode())
        for part in value:
            _feed(digest, part)
    else:
        digest.update(f"{value!r};".encode())


def _begun(out: Path, job: Mapping[str, Any], resume: bool) -> list[dict[str, Any]]:
    """The parts to go on after."""
    return _finished(out, job) if resume else _nothing_in(out)


def _nothing_in(out: Path) -> list[dict[str, Any]]:
    """No parts; refuses a place where something is."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: found a file; allowed: a new folder. Name another.")
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(
            f"{out}: found a folder that is not empty; allowed: a new folder. Name another, or "
            "go on with the job that was writing here (--resume)."
        )
    return []


def _finished(out: Path, job: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The parts of this job that are whole; anything that is not of this job is refused."""
    was, parts = job_in(out)
    for key, value in job.items() if was else ():
        if was.get(key) != value:
            found = f"a job with {key} = {was.get(key)!r}"
            raise ConfigError(f"{out}: found {found}; allowed: {value!r}, as asked now. {_MEND}")
    for part in parts:
        path = out / part["file"]
        if not path.is_file() or _sha256(path) != part["sha256"]:
            found = "other content" if path.is_file() else "no file"
            allowed = f"the part that {_MANIFEST} lists"
            raise ConfigError(f"{path}: found {found}; allowed: {allowed}. {_MEND}")
    return parts


def job_in(out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the manifest in a folder says of a ranking job, and its parts; nothing if there is none.

    Raises:
        ConfigError: the folder holds something else than such a job.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: found a file; allowed: a folder. {_MEND}")
    names = {path.name for path in out.iterdir()} if out.is_dir() else set[str]()
    if not names - {_MANIFEST + _TEMPORARY}:
        return {}, []  # it was killed before the first manifest, or never begun
    if _MANIFEST not in names:
        raise ConfigError(f"{out}: found no {_MANIFEST}; allowed: the folder of a job. {_MEND}")
    was, parts = _listed(out)
    ours = {_name(number) for number in range(len(parts) + 1)}  # +1: not yet listed
    ours |= {name + _TEMPORARY for name in (*ours, _MANIFEST)} | {_MANIFEST}
    if foreign := sorted(names - ours):
        found = ", ".join(foreign[:5])
        raise ConfigError(f"{out}: found {found}; allowed: parts of this job. {_MEND}")
    return was, parts


def _listed(out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the manifest says of the job, and its parts; a part can only have its due name."""
    keys: dict[str, type] = {"file": str, "users": int, "rows": int, "sha256": str}
    try:
        values = json.loads((out / _MANIFEST).read_bytes())
        parts = [{key: kind(part[key]) for key, kind in keys.items()} for part in values["parts"]]
        if [part["file"] for part in parts] != [_name(number) for number in range(len(parts))]:
            raise ValueError("parts that are not in order")
    except (ValueError, KeyError, TypeError) as error:
        found, allowed = f"something else ({error!r})", "what a ranking job writes"
        raise ConfigError(
            f"{out / _MANIFEST}: found {found}; allowed: {allowed}. {_MEND}"
        ) from None
    return values, parts


def _name(number: int) -> str:
    return f"part-{number:05d}.parquet"


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        allowed = "a folder that can be made"
        raise ConfigError(f"{out}: found {error.strerror}; allowed: {allowed}.") from None


def _write_part(out: Path, number: int, lists: pa.Table, users: int) -> dict[str, Any]:
    path = out / _name(number)
    temporary = path.with_name(path.name + _TEMPORARY)
    try:
        pq.write_table(lists, temporary)
        digest = _sha256(temporary)
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(out)
    return {"file": path.name, "users": users, "rows": len(lists), "sha256": digest}


def _write_manifest(
    out: Path, job: Mapping[str, Any], parts: Sequence[Mapping[str, Any]], *, complete: bool
) -> dict[str, Any]:
    """Write the manifest: at every moment it is the old one or the new one."""
    rows = sum(part["rows"] for part in parts)
    manifest = {**job, "rows": rows, "parts": list(parts), "complete": complete}
    path = out / _MANIFEST
    temporary = path.with_name(_MANIFEST + _TEMPORARY)
    try:
        temporary.write_text(json.dumps(manifest, indent=1, ensure_ascii=False), "utf-8")
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(out)
    return manifest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
