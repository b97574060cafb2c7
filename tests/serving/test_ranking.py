"""A batch job that can be killed and taken up again, each row exactly once."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from kgrank.errors import ConfigError, DataError, KgrankError, ModelError
from kgrank.progress import silent
from kgrank.serving.bundle import Bundle
from kgrank.serving.ranking import (
    SCHEMA,
    fingerprint,
    rank_users,
    read_user_ids,
    schema_of,
)
from kgrank.serving.reasons import Reasons
from kgrank.serving.recommender import Recommender

USERS = ["u-ada", *(f"{n:04d}" for n in range(1, 20))]


def rows(folder: Path) -> pd.DataFrame:
    return pd.concat(map(pd.read_parquet, sorted(folder.glob("part-*.parquet"))), ignore_index=True)


def test_a_killed_job_is_finished_with_the_same_rows(
    recommender: Recommender, tmp_path: Path
) -> None:
    job = {"n": 3, "user_ids": USERS, "repeats": "exclude", "part_users": 6}
    rank_users(recommender, tmp_path / "whole", **job, progress=silent)  # type: ignore[arg-type]

    def killed(stage: str, done: int, total: int) -> None:
        if done >= 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rank_users(recommender, tmp_path / "cut", **job, progress=killed)  # type: ignore[arg-type]
    manifest = json.loads((tmp_path / "cut" / "manifest.json").read_text())
    assert manifest["complete"] is False
    kept = (tmp_path / "cut" / "part-00000.parquet").stat().st_mtime_ns
    done = rank_users(recommender, tmp_path / "cut", **job, resume=True, progress=silent)  # type: ignore[arg-type]
    assert done["complete"] is True
    assert (tmp_path / "cut" / "part-00000.parquet").stat().st_mtime_ns == kept
    pd.testing.assert_frame_equal(rows(tmp_path / "cut"), rows(tmp_path / "whole"))
    assert len(rows(tmp_path / "cut")) == 3 * len(USERS)


def test_another_job_is_not_taken_up(recommender: Recommender, tmp_path: Path) -> None:
    out = tmp_path / "lists"
    rank_users(recommender, out, n=3, user_ids=USERS, repeats="exclude", progress=silent)
    with pytest.raises(KgrankError):
        rank_users(
            recommender, out, n=4, user_ids=USERS, repeats="exclude", resume=True, progress=silent
        )
    with pytest.raises(KgrankError):
        rank_users(recommender, out, n=3, user_ids=USERS, repeats="exclude", progress=silent)


def test_the_parts_are_the_lists_of_the_recommender(
    recommender: Recommender, tmp_path: Path
) -> None:
    out = tmp_path / "lists"
    rank_users(
        recommender, out, n=4, user_ids=USERS, repeats="allow", part_users=7, progress=silent
    )
    direct = recommender.recommend(USERS, n=4, repeats="allow")
    assert rows(out)["item_id"].tolist() == direct["item_id"].tolist()
    assert rows(out)["score"].to_numpy() == pytest.approx(direct["score"].to_numpy(), abs=1e-5)


def test_reasons_beside_the_rows_are_those_of_explain(
    recommender: Recommender, tmp_path: Path
) -> None:
    reasons = Reasons(paths=2, language="zh")
    job = {"n": 3, "user_ids": USERS[:8], "part_users": 3, "reasons": reasons}

    def killed(stage: str, done: int, total: int) -> None:
        if done >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rank_users(recommender, tmp_path, **job, progress=killed)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="found a job with reasons"):
        rank_users(recommender, tmp_path, **{**job, "reasons": None}, resume=True)  # type: ignore[arg-type]
    done = rank_users(recommender, tmp_path, **job, resume=True)  # type: ignore[arg-type]
    assert done["complete"] is True
    assert done["reasons"] == {"paths": 2, "language": "zh", "anonymous": False}
    found = rows(tmp_path)
    plain = recommender.recommend(USERS[:8], n=3)
    assert found["item_id"].tolist() == plain["item_id"].tolist()
    for row in found.itertuples():
        why = recommender.explain(str(row.user_id), str(row.item_id), max_paths=2, language="zh")
        assert row.text == why.text
        assert json.loads(str(row.paths)) == json.loads(json.dumps(asdict(why)["paths"]))
    assert pq.read_schema(tmp_path / "part-00001.parquet").equals(schema_of("rank", True))


@pytest.fixture
def own_threads() -> Iterator[None]:
    """What a test makes of torch's number of threads ends with it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("own_threads")
def test_reasons_are_the_same_on_one_core_and_on_two(
    recommender: Recommender, tmp_path: Path
) -> None:
    """On two, other processes work them out: fifteen users after the first are two tasks."""
    made = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        out = tmp_path / str(threads)
        rank_users(recommender, out, n=3, user_ids=USERS[:16], part_users=11, reasons=Reasons())
        made.append(rows(out))
    pd.testing.assert_frame_equal(made[0], made[1])


OTHER = """
import sys
from pathlib import Path
from kgrank.serving.ranking import rank_users
from kgrank.serving.reasons import Reasons
from kgrank.serving.recommender import Recommender

def progress(stage, done, total):
    print(done, flush=True)
    sys.stdin.readline()

models, out, *users = sys.argv[1:]
recommender = Recommender.load(models, device="cpu")
rank_users(recommender, Path(out), n=3, user_ids=users, part_users=6, progress=progress)
"""


@contextmanager
def standing_after_a_part(script: str, *words: object) -> Iterator[subprocess.Popen[str]]:
    """Another process that has written its first part; it is killed at the end of the block."""
    call = [sys.executable, "-c", script, *map(str, words)]
    with subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "0\n"
        other.stdin.write("go on\n")
        other.stdin.flush()
        assert other.stdout.readline() == "6\n"
        yield other
        other.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no process is forked")
def test_a_killed_job_leaves_no_process_of_its_own(shop_models: Path, tmp_path: Path) -> None:
    """Not even those that worked out reasons: what held the folder is gone with them."""
    script = OTHER.replace("part_users=6", "part_users=6, reasons=Reasons()")
    script = "import torch; torch.set_num_threads(2)\n" + script
    with standing_after_a_part(script, shop_models, tmp_path, *USERS) as other:
        children = Path(f"/proc/{other.pid}/task/{other.pid}/children").read_text().split()
        assert len(children) == 2
    for _ in range(100):
        left = [child for child in children if Path(f"/proc/{child}/cmdline").exists()]
        left = [child for child in left if Path(f"/proc/{child}/cmdline").read_bytes()]
        if not left:
            break
        time.sleep(0.05)
    assert not left
    recommender = Recommender.load(shop_models, device="cpu")
    done = rank_users(
        recommender, tmp_path, n=3, user_ids=USERS, part_users=6, reasons=Reasons(), resume=True
    )
    assert done["complete"] is True


@pytest.mark.usefixtures("own_threads")
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no process is forked")
def test_a_worker_that_is_killed_is_told(recommender: Recommender, tmp_path: Path) -> None:
    def children() -> set[str]:
        return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())

    def kills(stage: str, done: int, total: int) -> None:
        for child in children() - others:
            os.kill(int(child), signal.SIGKILL)

    others = children()
    torch.set_num_threads(2)
    job = {"n": 3, "user_ids": USERS, "part_users": 6, "reasons": Reasons()}
    with pytest.raises(ModelError, match="Go on with resume"):
        rank_users(recommender, tmp_path, **job, progress=kills)  # type: ignore[arg-type]
    assert children() == others
    done = rank_users(recommender, tmp_path, **job, resume=True)  # type: ignore[arg-type]
    assert done["complete"] is True


def test_a_part_that_was_not_listed_yet_is_written_again(
    recommender: Recommender, tmp_path: Path
) -> None:
    """Killed between the part's rename and the manifest's: the part does not count twice."""
    whole = rank_users(recommender, tmp_path, n=3, user_ids=USERS, part_users=6)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    listed = {**manifest, "parts": manifest["parts"][:1], "complete": False}
    (tmp_path / "manifest.json").write_text(json.dumps(listed))
    (tmp_path / "part-00001.parquet").write_bytes(b"half a file")
    (tmp_path / "part-00001.parquet.tmp").write_bytes(b"less")
    (tmp_path / "part-00002.parquet").unlink()
    (tmp_path / "part-00003.parquet").unlink()
    again = rank_users(recommender, tmp_path, n=3, user_ids=USERS, part_users=6, resume=True)
    assert again == whole
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {"manifest.json", *(part["file"] for part in whole["parts"])}
    assert rows(tmp_path)["user_id"].drop_duplicates().tolist() == USERS
    assert sum(part["users"] for part in again["parts"]) == again["users"] == len(USERS)


def test_a_finished_job_taken_up_again_ranks_nothing(
    recommender: Recommender, tmp_path: Path
) -> None:
    done = rank_users(recommender, tmp_path, n=3, user_ids=USERS)
    told: list[tuple[str, int, int]] = []
    again = rank_users(
        recommender,
        tmp_path,
        n=3,
        user_ids=USERS,
        resume=True,
        progress=lambda *at: told.append(at),
    )
    assert again == done
    assert told == [("ranking", len(USERS), len(USERS))]


def test_two_jobs_at_once_do_not_write_into_one_folder(shop_models: Path, tmp_path: Path) -> None:
    """Another process stands after its first part; once it is killed, this one goes on."""
    recommender = Recommender.load(shop_models, device="cpu")
    job = {"n": 3, "user_ids": USERS, "part_users": 6, "resume": True}
    with standing_after_a_part(OTHER, shop_models, tmp_path, *USERS):
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(ConfigError, match="found another job that is writing here"):
            rank_users(recommender, tmp_path, **job)  # type: ignore[arg-type]
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    done = rank_users(recommender, tmp_path, **job)  # type: ignore[arg-type]
    assert done["complete"] is True
    assert rows(tmp_path)["user_id"].drop_duplicates().tolist() == USERS
    assert len(rows(tmp_path)) == 3 * len(USERS)


def test_a_folder_of_other_things_is_refused_and_stays_as_it_was(
    recommender: Recommender, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(ConfigError, match=str(tmp_path)):
            rank_users(recommender, tmp_path, n=3, user_ids=USERS, resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_folder_in_which_no_job_got_to_write_is_as_good_as_new(
    recommender: Recommender, tmp_path: Path
) -> None:
    done = rank_users(recommender, tmp_path, n=3, user_ids=USERS)
    assert done["complete"] is True


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("part-00000.parquet", b"altered", "part-00000.parquet: found other content"),
        ("part-00000.parquet", None, "part-00000.parquet: found no file"),
        ("notes.txt", b"mine", "found notes.txt; allowed: parts of this job"),
        ("manifest.json", b"{", "manifest.json: found something else"),
        ("manifest.json", b'{"parts": [{"file": "../x"}]}', "manifest.json: found something else"),
    ],
)
def test_a_folder_that_was_tampered_with_is_refused(
    recommender: Recommender, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    rank_users(recommender, tmp_path, n=3, user_ids=USERS)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match=message):
        rank_users(recommender, tmp_path, n=3, user_ids=USERS, resume=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_list_of_nobody_is_a_finished_job_of_the_same_columns(
    recommender: Recommender, shop_bundle: Bundle, tmp_path: Path
) -> None:
    """A user without history has no list of what was met, and no row; an unknown one is skipped."""
    known = set(shop_bundle.events["user_id"])
    quiet = [str(user) for user in shop_bundle.users.ids() if user not in known]
    assert quiet
    job = {"user_ids": [*quiet, "nobody"], "repeats": "only", "unknown": "skip"}
    done = rank_users(recommender, tmp_path / "quiet", **job)  # type: ignore[arg-type]
    assert (done["rows"], done["users"], done["skipped_users"]) == (0, len(quiet), 1)
    assert pq.read_schema(tmp_path / "quiet" / "part-00000.parquet").equals(SCHEMA)
    none = rank_users(recommender, tmp_path / "none", user_ids=["nobody"], unknown="skip")
    assert (none["complete"], none["parts"]) == (True, [])


def test_the_fingerprint_sees_one_event_and_one_weight(shop_bundle: Bundle) -> None:
    """Else a job would go on with another bundle's lists."""
    whole = fingerprint(Recommender(shop_bundle, device="cpu"))
    assert fingerprint(Recommender(replace(shop_bundle), device="cpu")) == whole
    fewer = replace(shop_bundle, events=shop_bundle.events.iloc[1:])
    assert fingerprint(Recommender(fewer, device="cpu")) != whole
    head = shop_bundle.model.heads["new"]
    weight = head.weight.copy()
    weight[0] += 1e-6
    heads = {**shop_bundle.model.heads, "new": replace(head, weight=weight)}
    other = replace(shop_bundle, model=replace(shop_bundle.model, heads=heads))
    assert fingerprint(Recommender(other, device="cpu")) != whole


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("users.txt", "\ufeff007\r\n\na b\n007\nu,1"),
        ("users.csv", 'city,user_id\nx,007\ny,a b\nz,007\nw,"u,1"\n'),
    ],
)
def test_user_files_keep_ids_to_the_letter_and_once(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(text.encode())
    assert read_user_ids(tmp_path / name) == ("007", "a b", "u,1")


def test_a_users_table_may_be_parquet(tmp_path: Path) -> None:
    pd.DataFrame({"user_id": ["007", "7"]}).to_parquet(tmp_path / "u.parquet")
    assert read_user_ids(tmp_path / "u.parquet") == ("007", "7")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("users.csv", b"user\n007\n", "found the columns user; allowed: a column user_id"),
        ("users.csv", b"user_id,x\n007,1\n,2\n", "row 2, column 'user_id': found nothing"),
        ("users.txt", b"\xff\n", "allowed: UTF-8 text"),
        ("users.txt", b"\n\n", "found no user"),
    ],
)
def test_a_users_file_at_fault_is_refused(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        read_user_ids(tmp_path / name)
