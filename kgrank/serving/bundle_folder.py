"""A fitted model on disk: a folder that is whole and unchanged, or is refused.

    models/
      current                       one line: the name of the folder in use
      20260131T120000Z-0f3a9c21/    when it was made, and the first digits of its manifest's hash
        manifest.json               what it is, and the size and sha256 of every other file
        manifest.sha256             the manifest's own sha256, as `sha256sum -c` reads it
        …                           the model's files, which this module does not look into

Every future format keeps these two files, so that an older kgrank can say what it has met.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from hashlib import file_digest, sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kgrank.errors import BundleError
from kgrank.files import TEMPORARY, replacing, sync

FORMAT = 1
"""The number of the layout that is written, and the only one that is read."""

MAX_MANIFEST_BYTES = 16_000_000
MAX_FILE_BYTES = 64_000_000_000
MAX_FILES = 10_000

_MANIFEST, _SEAL, _CURRENT = "manifest.json", "manifest.sha256", "current"
_OWN_ENTRIES = ("format", "kgrank", "created", "files")
_MEND = "Train again, or restore the folder from a copy."


def write_bundle(
    models: Path, write: Callable[[Path], None], manifest: Mapping[str, object]
) -> Path:
    """Write a bundle into `models` and make it the current one, all or nothing.

    Whatever is raised on the way, an interruption too, leaves `current` as it was. A process that
    is killed leaves a folder `.tmp-…`, which nobody reads and anybody may remove.

    Args:
        models: the folder of all bundles; made if it is not there.
        write: puts the model's files into the empty folder it is given, in subfolders if it likes.
        manifest: what else the manifest says: values that JSON can hold, no NaN among them.

    Returns:
        The new bundle's folder.

    Raises:
        BundleError: `models` is a file or itself a bundle, or `write` left something that
            `open_bundle` would refuse (a link, a file beyond the bounds).
        ValueError: an entry of `manifest` or a file has a name that the bundle itself uses, or a
            value is none of JSON's.
    """
    if taken := [name for name in _OWN_ENTRIES if name in manifest]:
        raise ValueError(f"found manifest entries {taken}; the bundle writes these itself.")
    if (models.exists() and not models.is_dir()) or _is_bundle(models):
        found = "a bundle" if models.is_dir() else "a file"
        mend = "Name another folder."
        raise BundleError(f"{models}: found {found}; allowed: a folder to hold bundles. {mend}")
    models.mkdir(parents=True, exist_ok=True)
    temporary = models / f"{TEMPORARY}{uuid.uuid4().hex}"
    try:
        temporary.mkdir()
        write(temporary)
        created = datetime.now(UTC)
        about = {"format": FORMAT, "kgrank": version("kgrank"), "created": created.isoformat()}
        seal = _seal(temporary, {**about, **manifest})
        bundle = models / f"{created:%Y%m%dT%H%M%SZ}-{seal[:8]}"
        temporary.rename(bundle)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(models)
    _switch(models, bundle.name)
    return bundle


def find_bundle(path: Path) -> Path:
    """The bundle's folder that `path` means: itself, or the `current` of a models folder.

    Raises:
        BundleError: `path` is neither, or `current` names no folder beside it.
    """
    if _is_bundle(path):
        return path
    current = path / _CURRENT
    if not current.is_file():
        allowed = f"a bundle's folder (with {_MANIFEST}) or a models folder (with {_CURRENT})"
        raise BundleError(f"{path}: found {_found(path)}; allowed: {allowed}. Correct the path.")
    with current.open("rb") as file:
        name = file.read(256).decode("utf-8", "replace").strip()
    # os.path, because Path.is_dir raises where a name is too long for the file system.
    if not _is_plain(name) or "/" in name or not os.path.isdir(path / name):  # noqa: PTH112
        allowed = f"the name of a bundle's folder in {path}"
        raise BundleError(f"{current}: found {name!r}; allowed: {allowed}. Write one there.")
    return path / name


def open_bundle(path: Path) -> tuple[Path, dict[str, Any]]:
    """Find a bundle, and read every byte of it once to see that it is what was written.

    The hashes tell damage, not malice: who can write the folder can write the hashes too.

    Args:
        path: a bundle's folder, under whatever name, or a models folder.

    Returns:
        The bundle's folder, and its manifest: `format`, `kgrank`, `created`, `files` and the
        entries given to `write_bundle`.

    Raises:
        BundleError: there is no bundle, its format is unknown, or a file is damaged, missing, not
            of the bundle, unreadable, a link, or beyond the bounds of this module.
    """
    try:
        bundle = find_bundle(path)
        manifest = _read_manifest(bundle)
        _check_files(bundle, manifest["files"])
    except OSError as error:
        raise _damage(path, str(error), "files that can be read") from None
    return bundle, manifest


def _check_files(bundle: Path, files: dict[str, Any]) -> None:
    """Exactly the files of the manifest are there, byte for byte."""
    sizes = _sizes(bundle)
    del sizes[_MANIFEST], sizes[_SEAL]
    for name in files:
        if name not in sizes:
            raise _damage(bundle / name, "no such file", "the file that was written")
    for name, size in sizes.items():
        if name not in files:
            mend = "Remove it, if you know what it is; else train again."
            raise _damage(bundle / name, "an extra file", f"the files {_MANIFEST} lists", mend)
        if size != files[name]["bytes"]:
            raise _damage(bundle / name, f"{size} bytes", f"{files[name]['bytes']} bytes")
        if _digest(bundle / name) != files[name]["sha256"]:
            raise _damage(bundle / name, "other bytes", f"what {_MANIFEST} has the sha256 of")


def _is_bundle(path: Path) -> bool:
    return any(os.path.lexists(path / name) for name in (_MANIFEST, _SEAL))


def _found(path: Path) -> str:
    if not path.is_dir():
        return "a file" if path.exists() else "nothing of this name"
    names = sorted(entry.name for entry in path.iterdir())
    return f"a folder with {', '.join(names[:12])}" if names else "an empty folder"


def _damage(path: Path, found: str, allowed: str, mend: str = _MEND) -> BundleError:
    return BundleError(f"{path}: found {found}; allowed: {allowed}. {mend}")


def _is_plain(name: str) -> bool:
    """Whether the name leads to a place below the folder it is joined to, on any system."""
    parts = name.split("/")
    return not re.search(r"[\\:\0]", name) and not any(part in ("", ".", "..") for part in parts)


def _sizes(folder: Path) -> dict[str, int]:
    """Name and bytes of every file below the folder; no link or device is followed or opened."""
    sizes: dict[str, int] = {}
    folders, seen = [folder], 0
    while folders:
        for path in sorted(folders.pop().iterdir()):
            state = path.lstat()
            name = path.relative_to(folder).as_posix()
            seen += name not in (_MANIFEST, _SEAL)
            if seen > MAX_FILES:
                raise _damage(folder, "more files", f"at most {MAX_FILES:,} files and folders")
            if not _is_plain(name):
                raise _damage(path, "this name", "names without a backslash or colon")
            if stat.S_ISDIR(state.st_mode):
                folders.append(path)
            elif not stat.S_ISREG(state.st_mode):
                raise _damage(path, "a link or device", "plain files and folders")
            elif state.st_size > MAX_FILE_BYTES:
                raise _damage(path, f"{state.st_size:,} bytes", f"at most {MAX_FILE_BYTES:,}")
            else:
                sizes[name] = state.st_size
    return sizes


def _read_manifest(bundle: Path) -> dict[str, Any]:
    """The manifest, after its seal, its format number and its list of files were checked."""
    path, seal = bundle / _MANIFEST, bundle / _SEAL
    for file in (path, seal):
        if file.is_symlink() or not file.is_file():
            raise _damage(file, "no such file" if not file.exists() else "no plain file", "a file")
        if (size := file.stat().st_size) > MAX_MANIFEST_BYTES:
            raise _damage(file, f"{size:,} bytes", f"at most {MAX_MANIFEST_BYTES:,}")
    content = path.read_bytes()
    if seal.read_bytes() != _seal_line(sha256(content).hexdigest()):
        raise _damage(path, f"other bytes than {_SEAL} has the sha256 of", "the two as written")
    try:
        manifest: object = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _damage(path, f"no JSON ({error})", "JSON in UTF-8") from None
    if not isinstance(manifest, dict):
        raise _damage(path, f"JSON {manifest!r:.80}", "a JSON object")
    number = manifest.get("format")
    if type(number) is not int or number != FORMAT:
        mend = "Read it with the kgrank that wrote it or a newer one, or train again with this one."
        raise _damage(path, f"bundle format {number!r}", f"bundle format {FORMAT}", mend)
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise _damage(path, f"files = {files!r:.80}", "an object with an entry for each file")
    for name, entry in files.items():
        if not _is_plain(name) or name in (_MANIFEST, _SEAL):
            raise _damage(path, f"the file name {name!r}", "names below the folder, without ..")
        if not isinstance(entry, dict) or not {"sha256", "bytes"} <= entry.keys():
            raise _damage(path, f"{name!r}: {entry!r:.80}", "an object with sha256 and bytes")
    return manifest


def _seal(folder: Path, manifest: dict[str, object]) -> str:
    """Bring the folder to disk, with a manifest of what is in it; the sha256 of the manifest."""
    sizes = _sizes(folder)
    if taken := [name for name in (_MANIFEST, _SEAL) if name in sizes]:
        raise ValueError(f"found files {taken}; the bundle writes these itself.")
    entries = {
        name: {"sha256": _digest(folder / name), "bytes": sizes[name]} for name in sorted(sizes)
    }
    text = json.dumps({**manifest, "files": entries}, indent=1, allow_nan=False)
    content = f"{text}\n".encode()
    if len(content) > MAX_MANIFEST_BYTES:
        raise _damage(folder / _MANIFEST, f"{len(content):,} bytes", f"{MAX_MANIFEST_BYTES:,}")
    seal = sha256(content).hexdigest()
    (folder / _MANIFEST).write_bytes(content)
    (folder / _SEAL).write_bytes(_seal_line(seal))
    for path in (*folder.rglob("*"), folder):
        sync(path)
    return seal


def _seal_line(digest: str) -> bytes:
    return f"{digest}  {_MANIFEST}\n".encode()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _switch(models: Path, name: str) -> None:
    """Let `current` name this folder: at every moment it is the old line or the new one."""
    with replacing(models / _CURRENT) as temporary:
        temporary.write_text(f"{name}\n", "utf-8")
