"""A batch job that can be killed and taken up again, each row exactly once."""

import json
from pathlib import Path

import pandas as pd
import pytest

from kgrank.errors import KgrankError
from kgrank.serving.ranking import rank_users
from kgrank.serving.recommender import Recommender
from kgrank.serving.training import silent

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
