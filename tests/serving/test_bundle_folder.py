"""A bundle is whole and unchanged, or it is refused by name."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from kgrank import files
from kgrank.errors import BundleError
from kgrank.serving import bundle_folder as bundles
from kgrank.serving.bundle_folder import find_bundle, open_bundle, write_bundle

FILES = {
    "weights.safetensors": bytes(range(256)) * 3,
    "graph/nodes.parquet": b"PAR1 nodes PAR1",
    "empty.txt": b"",
}


def fill(folder: Path) -> None:
    for name, content in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def bundle(models: Path) -> Path:
    return write_bundle(models, fill, {"config": {"fit": {"seed": 0}}, "rows": 12})


def refusal(path: Path) -> str:
    with pytest.raises(BundleError) as caught:
        open_bundle(path)
    return str(caught.value)


def resealed(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest as somebody who computes its hash again."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_bytes())
    change(manifest)
    content = json.dumps(manifest).encode()
    path.write_bytes(content)
    (bundle / "manifest.sha256").write_text(f"{sha256(content).hexdigest()}  manifest.json\n")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_layout_on_disk(models, bundle):
    content = (bundle / "manifest.json").read_bytes()
    digest = sha256(content).hexdigest()
    assert re.fullmatch(r"\d{8}T\d{6}Z-" + digest[:8], bundle.name)
    assert (bundle / "manifest.sha256").read_text() == f"{digest}  manifest.json\n"
    assert (models / "current").read_text() == f"{bundle.name}\n"
    assert sorted(path.name for path in models.iterdir()) == sorted([bundle.name, "current"])
    assert set(snapshot(bundle)) == {*FILES, "manifest.json", "manifest.sha256"}

    manifest = json.loads(content)
    assert manifest["format"] == 1
    assert manifest["kgrank"] == version("kgrank")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+\+00:00", manifest["created"])
    assert (manifest["config"], manifest["rows"]) == ({"fit": {"seed": 0}}, 12)
    assert manifest["files"] == {
        name: {"sha256": sha256(content).hexdigest(), "bytes": len(content)}
        for name, content in FILES.items()
    }


def test_a_bundle_opens_by_its_folder_by_its_models_and_under_another_name(models, bundle):
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    assert find_bundle(bundle) == find_bundle(models) == bundle
    assert open_bundle(bundle) == open_bundle(models) == (bundle, manifest)
    copy = models.parent / "copy of it"
    shutil.copytree(bundle, copy)
    assert open_bundle(copy) == (copy, manifest)


def test_any_byte_changed_in_any_file_is_refused_by_the_files_name(bundle):
    """Each bit of a byte counts: 0x01 makes 1 of 0, and 0x20 makes A of a."""
    tried = 0
    for path in [path for path in bundle.rglob("*") if path.is_file()]:
        sound = path.read_bytes()
        for position in sorted({0, 1, len(sound) // 2, len(sound) - 2, len(sound) - 1}):
            for bit in (0x01, 0x20, 0x80):
                if not sound:
                    continue
                damaged = bytearray(sound)
                damaged[position] ^= bit
                path.write_bytes(damaged)
                said = refusal(bundle)
                assert path.name in said, (path, position, bit, said)
                assert "Train again, or restore the folder" in said
                tried += 1
        path.write_bytes(sound)
    assert tried == 4 * 5 * 3  # two files, the manifest and its hash; the empty one has no bytes
    open_bundle(bundle)


@pytest.mark.parametrize("name", [*FILES, "manifest.json", "manifest.sha256"])
def test_a_missing_file_is_named(models, bundle, name):
    (bundle / name).unlink()
    for path in (bundle, models):
        assert refusal(path).startswith(f"{bundle / name}: found no such file; allowed: ")


@pytest.mark.parametrize("name", ["weights.safetensors", "manifest.json", "manifest.sha256"])
def test_a_file_cut_short_or_grown_is_named(bundle, name):
    sound = (bundle / name).read_bytes()
    for content in (sound[:-1], b"", sound + b"\n"):
        (bundle / name).write_bytes(content)
        assert name in refusal(bundle)


@pytest.mark.parametrize("name", ["extra.py", "graph/edges.parquet", "deep/er/x", ".hidden"])
def test_an_extra_file_is_named(bundle, name):
    (bundle / name).parent.mkdir(parents=True, exist_ok=True)
    (bundle / name).touch()
    assert refusal(bundle).startswith(f"{bundle / name}: found an extra file; allowed: ")


@pytest.mark.parametrize("name", ["weights.safetensors", "graph", "manifest.json"])
def test_a_link_is_refused_though_it_leads_to_the_right_bytes(bundle, name, tmp_path):
    moved = tmp_path / "elsewhere"
    (bundle / name).rename(moved)
    (bundle / name).symlink_to(moved)
    assert refusal(bundle).startswith(f"{bundle / name}: found ")


def test_a_pipe_is_refused_without_waiting_for_it(bundle):
    (bundle / "weights.safetensors").unlink()
    os.mkfifo(bundle / "weights.safetensors")
    assert "weights.safetensors: found a link or device" in refusal(bundle)


@pytest.mark.parametrize("number", [2, 0, True, "1", 1.0, None])
def test_another_format_is_refused_by_its_number(bundle, number):
    resealed(bundle, lambda manifest: manifest.update(format=number))
    said = refusal(bundle)
    assert f"manifest.json: found bundle format {number!r}; allowed: bundle format 1." in said
    assert "a newer one" in said


@pytest.mark.parametrize(
    "name",
    ["../outside", "/etc/hostname", "graph/../../outside", "", ".", "a//b", "..\\x", "C:x", "a\0"],
)
def test_a_name_that_leads_out_of_the_bundle_is_refused(bundle, name):
    (bundle.parent / "outside").touch()
    entry = {"sha256": sha256(b"").hexdigest(), "bytes": 0}
    resealed(bundle, lambda manifest: manifest["files"].update({name: entry}))
    assert f"manifest.json: found the file name {name!r}; allowed: " in refusal(bundle)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.pop("files"), "files = None"),
        (lambda m: m.update(files=["weights.safetensors"]), "files = ['weights.safetensors']"),
        (lambda m: m["files"].update({"empty.txt": 0}), "'empty.txt': 0"),
        (lambda m: m["files"]["empty.txt"].pop("bytes"), "'empty.txt': {'sha256'"),
    ],
)
def test_a_manifest_of_another_shape_is_refused(bundle, change, said):
    resealed(bundle, change)
    assert f"manifest.json: found {said}" in refusal(bundle)


@pytest.mark.parametrize("content", [b"[1]", b"{", b"\xff", b"[" * 100_000])
def test_a_manifest_that_is_no_json_object_is_refused(bundle, content):
    (bundle / "manifest.json").write_bytes(content)
    (bundle / "manifest.sha256").write_text(f"{sha256(content).hexdigest()}  manifest.json\n")
    assert re.search(r"manifest\.json: found (no )?JSON", refusal(bundle))


@pytest.mark.parametrize(
    ("bound", "value", "said"),
    [
        ("MAX_FILES", 3, "found more files; allowed: at most 3 files and folders"),
        ("MAX_FILE_BYTES", 767, "weights.safetensors: found 768 bytes; allowed: at most 767"),
        ("MAX_MANIFEST_BYTES", 100, "manifest.json: found "),
    ],
)
def test_the_same_bounds_hold_for_reading_and_writing(
    models, bundle, monkeypatch, bound, value, said
):
    """Three files and one folder make four; the greatest file has 3 · 256 = 768 bytes."""
    monkeypatch.setattr(bundles, bound, value)
    assert said in refusal(bundle)
    before = snapshot(models)
    with pytest.raises(BundleError) as caught:
        write_bundle(models, fill, {})
    assert said in str(caught.value)
    assert snapshot(models) == before


def test_a_bundle_at_the_bound_of_files_can_be_read_again(models, monkeypatch):
    monkeypatch.setattr(bundles, "MAX_FILES", 4)
    open_bundle(write_bundle(models, fill, {}))


@pytest.mark.parametrize(
    "line", ["absent\n", "", "\n", "..\n", ".\n", "/etc\n", "../models\n", "x" * 300, b"\xff" * 300]
)
def test_a_current_that_names_no_folder_beside_it_is_refused(models, bundle, line):
    (models / "current").write_bytes(line if isinstance(line, bytes) else line.encode())
    assert refusal(models).startswith(f"{models / 'current'}: found ")


def test_what_is_no_bundle_is_told_with_what_it_is(tmp_path):
    allowed = r"allowed: a bundle's folder \(with manifest.json\) or a models folder"
    (tmp_path / "shop").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "shop" / "events.csv").touch()
    for name, found in {
        "shop": "a folder with events.csv",
        "shop/events.csv": "a file",
        "empty": "an empty folder",
        "absent": "nothing of this name",
    }.items():
        with pytest.raises(BundleError, match=f"{name}: found {found}; {allowed}"):
            find_bundle(tmp_path / name)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, SystemExit])
def test_an_interrupted_write_leaves_nothing_and_keeps_current(models, bundle, error):
    before = snapshot(models)

    def interrupted(folder: Path) -> None:
        assert folder.parent == models
        assert folder.name.startswith(".tmp-")
        fill(folder)
        raise error("stop")

    with pytest.raises(error, match="stop"):
        write_bundle(models, interrupted, {})
    assert snapshot(models) == before
    assert sorted(path.name for path in models.iterdir()) == sorted([bundle.name, "current"])
    assert open_bundle(models)[0] == bundle


def test_a_failure_while_current_is_switched_keeps_the_old_one(models, bundle, monkeypatch):
    def fails(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(models, fill, {"rows": 13})
    assert open_bundle(models)[0] == bundle
    assert not list(models.glob(".tmp-*"))


def test_a_second_bundle_becomes_current_and_the_first_stays(models, bundle):
    first = snapshot(bundle)
    second = write_bundle(models, fill, {"rows": 13})
    assert second != bundle
    assert open_bundle(models) == open_bundle(second)
    assert open_bundle(models)[1]["rows"] == 13
    assert snapshot(bundle) == first
    assert open_bundle(bundle)[1]["rows"] == 12


def test_everything_is_on_disk_before_it_gets_its_name(models, monkeypatch):
    """A power cut after the rename must not find a folder whose files are still in memory."""
    done: list[str] = []
    sync, rename, replace = files.sync, Path.rename, Path.replace

    def logged(what: str, path: Path) -> None:
        done.append(f"{what} {'.tmp' if path.name.startswith('.tmp-') else path.name}")

    for module in (bundles, files):
        monkeypatch.setattr(module, "sync", lambda p: (sync(p), logged("sync", p)))
    monkeypatch.setattr(Path, "rename", lambda p, to: (rename(p, to), logged("rename", p)))
    monkeypatch.setattr(Path, "replace", lambda p, to: (replace(p, to), logged("replace", p)))
    write_bundle(models, fill, {})
    start = done.index("rename .tmp")
    names = ["empty.txt", "graph", "manifest.json", "manifest.sha256", "nodes.parquet"]
    assert sorted(done[:start]) == sorted(
        ["sync .tmp", *(f"sync {name}" for name in [*names, "weights.safetensors"])]
    )
    assert done[start:] == [
        "rename .tmp",
        "sync models",
        "sync .tmp",
        "replace .tmp",
        "sync models",
    ]


def test_names_that_the_bundle_uses_itself_are_refused(models):
    with pytest.raises(ValueError, match=r"manifest entries \['files'\]"):
        write_bundle(models, fill, {"files": {}})
    with pytest.raises(ValueError, match=r"files \['manifest\.json'\]"):
        write_bundle(models, lambda folder: (folder / "manifest.json").touch(), {})
    with pytest.raises(ValueError, match="JSON"):
        write_bundle(models, fill, {"recall": float("nan")})
    assert list(models.iterdir()) == []


def test_a_link_or_an_odd_name_is_refused_before_it_is_a_bundle(models, tmp_path):
    (tmp_path / "secret").touch()
    with pytest.raises(BundleError, match="found a link or device"):
        write_bundle(models, lambda folder: (folder / "x").symlink_to(tmp_path / "secret"), {})
    with pytest.raises(BundleError, match="without a backslash or colon"):
        write_bundle(models, lambda folder: (folder / "a\\b").touch(), {})
    assert list(models.iterdir()) == []


def test_a_bundle_is_not_written_into_a_bundle_or_a_file(bundle):
    for path, found in ((bundle, "a bundle"), (bundle / "empty.txt", "a file")):
        with pytest.raises(BundleError, match=f"found {found}; allowed: a folder to hold bundles"):
            write_bundle(path, fill, {})
    open_bundle(bundle)
