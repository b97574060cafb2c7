"""The split rule, on numbers small enough to check by hand."""

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from kgrank.errors import DataError
from kgrank.kg.splits import SplitCuts, SplitSettings, split_events
from kgrank.kg.tables import read_tables


def timed(*times):
    n = len(times)
    return pd.DataFrame(
        {"user_id": ["u"] * n, "item_id": ["a"] * n, "timestamp": np.array(times, dtype=float)}
    )


def placed(**sizes):
    """Events of users with this many events each, in turn: the first of each, the second, …"""
    rows = [(place, user) for user, size in sizes.items() for place in range(size)]
    rows.sort(key=lambda row: row[0])
    return pd.DataFrame(
        {"user_id": [u for _, u in rows], "item_id": "a", "position": [p for p, _ in rows]}
    )


def splits_of(events, user):
    return events.loc[events["user_id"] == user, "split"].tolist()


class TestByTime:
    def test_shares_of_the_time_from_first_to_last_not_of_the_events(self):
        """From 100 to 200 with the shares .1 and .1, valid begins at 180 and test at 190."""
        events, cuts = split_events(timed(100, 101, 102, 179, 180, 189, 190, 200), SplitSettings())
        assert cuts == SplitCuts(valid_from=180.0, test_from=190.0)
        assert events["split"].tolist() == ["train"] * 4 + ["valid"] * 2 + ["test"] * 2
        assert events["split"].dtype == "str"

    def test_shares_can_be_set(self):
        events, cuts = split_events(timed(0, 5, 6, 8), SplitSettings(test=0.25, valid=0.25))
        assert cuts == SplitCuts(valid_from=4.0, test_from=6.0)
        assert events["split"].tolist() == ["train", "valid", "test", "test"]

    @pytest.mark.parametrize(
        ("settings", "split"),
        [
            (SplitSettings(test=0), ["train", "train", "valid"]),
            (SplitSettings(valid=0), ["train", "train", "test"]),
            (SplitSettings(test=0, valid=0), ["train", "train", "train"]),
        ],
    )
    def test_a_share_of_nothing_takes_nothing(self, settings, split):
        events, cuts = split_events(timed(0, 5, 10), settings)
        assert events["split"].tolist() == split
        assert cuts.apply(timed(0, 5, 10))["split"].tolist() == split

    def test_cuts_hold_when_the_table_grows(self):
        _, cuts = split_events(timed(100, 200), SplitSettings())
        grown = cuts.apply(timed(100, 185, 195, 200, 900))
        assert grown["split"].tolist() == ["train", "valid", "test", "test", "test"]

    def test_cuts_replace_the_split_of_an_earlier_run(self):
        old = timed(100, 200).assign(split="train")
        assert SplitCuts(150.0, 190.0).apply(old)["split"].tolist() == ["train", "test"]

    def test_one_moment_cannot_be_split(self):
        with pytest.raises(DataError, match="one time"):
            split_events(timed(5, 5, 5), SplitSettings())

    def test_cuts_in_time_need_times(self):
        with pytest.raises(DataError, match="no times"):
            SplitCuts(150.0, 190.0).apply(placed(u=3))


class TestByUser:
    def test_the_last_events_of_each_user_are_held_out(self):
        """Of 30 events 3 and 3; of 15 (1.5 rounds up) 2 and 2; of 3 one each; of 2 none."""
        events, cuts = split_events(placed(many=30, some=15, few=3, two=2, one=1), SplitSettings())
        assert splits_of(events, "many") == ["train"] * 24 + ["valid"] * 3 + ["test"] * 3
        assert splits_of(events, "some") == ["train"] * 11 + ["valid"] * 2 + ["test"] * 2
        assert splits_of(events, "few") == ["train", "valid", "test"]
        assert splits_of(events, "two") == ["train", "train"]
        assert splits_of(events, "one") == ["train"]
        assert cuts == SplitCuts(by_user=SplitSettings())

    def test_the_same_cuts_give_the_same_split(self):
        events, cuts = split_events(placed(u=20, v=7), SplitSettings(test=0.3, valid=0.2))
        again = cuts.apply(events.drop(columns="split"))
        assert again["split"].tolist() == events["split"].tolist()

    def test_no_share_takes_the_last_train_event(self):
        events, _ = split_events(placed(u=3), SplitSettings(test=0.4, valid=0.5))
        assert splits_of(events, "u") == ["train", "valid", "test"]

    def test_a_share_of_nothing_takes_nothing(self):
        events, _ = split_events(placed(u=10), SplitSettings(test=0, valid=0.1))
        assert splits_of(events, "u") == ["train"] * 9 + ["valid"]


class TestGivenSplit:
    def test_it_stays(self):
        given = timed(1, 2, 3).assign(split=["test", "train", "valid"])
        events, cuts = split_events(given, SplitSettings())
        assert events["split"].tolist() == ["test", "train", "valid"]
        assert cuts == SplitCuts(None, None)
        assert cuts.apply(given)["split"].tolist() == ["test", "train", "valid"]

    def test_without_valid_rows_train_is_cut_by_time_and_test_stays(self):
        given = timed(0, 5, 6, 8, 9, 10, 99).assign(split=["train"] * 3 + ["test"] + ["train"] * 3)
        given.loc[6, "split"] = "test"
        events, cuts = split_events(given, SplitSettings(test=0.5, valid=0.2))  # from 0.8 · 10 on
        assert events["split"].tolist() == [
            *("train", "train", "train", "test", "valid", "valid", "test")
        ]
        assert cuts == SplitCuts(valid_from=8.0, of_train=True)
        assert cuts.apply(given)["split"].tolist() == events["split"].tolist()
        again, stays = split_events(events, SplitSettings())
        assert again["split"].tolist() == events["split"].tolist()
        assert stays == SplitCuts()

    def test_without_valid_rows_and_times_each_users_last_train_rows_are_cut(self):
        given = placed(u=20, v=2)
        given["split"] = np.where(given["position"] < 10, "train", "test")
        events, cuts = split_events(given, SplitSettings())
        assert splits_of(events, "u") == ["train"] * 9 + ["valid"] + ["test"] * 10
        assert splits_of(events, "v") == ["train"] * 2
        assert cuts == SplitCuts(by_user=SplitSettings(test=0.0), of_train=True)
        assert cuts.apply(given)["split"].tolist() == events["split"].tolist()

    def test_a_share_of_nothing_leaves_a_column_without_valid_rows_alone(self):
        given = timed(1, 2, 3).assign(split=["train", "train", "test"])
        events, cuts = split_events(given, SplitSettings(valid=0))
        assert (events["split"].tolist(), cuts) == (["train", "train", "test"], SplitCuts())

    def test_train_rows_of_one_moment_cannot_be_cut(self):
        given = timed(5, 5, 9).assign(split=["train", "train", "test"])
        with pytest.raises(DataError, match=r"one time \(5\) in all 2 rows of train.*mark some"):
            split_events(given, SplitSettings())

    def test_cuts_of_train_need_the_column(self):
        with pytest.raises(DataError, match="column 'split': found no such column"):
            SplitCuts(valid_from=1.0, of_train=True).apply(timed(1, 2))

    def test_tables_with_split(self, tmp_path):
        (tmp_path / "events.csv").write_text(
            "user_id,item_id,timestamp\n" + "".join(f"u,a,{t}\n" for t in range(11))
        )
        tables = read_tables(tmp_path)
        assert tables.with_split().events["split"].tolist() == [
            *(["train"] * 8 + ["valid"] + ["test"] * 2)
        ]
        bigger = tables.with_split(SplitSettings(test=0.5))
        assert (bigger.events["split"] == "test").sum() == 6
        assert "split" not in tables.events


@pytest.mark.parametrize("shares", [{"test": 1.0}, {"valid": -0.1}, {"test": 0.6, "valid": 0.4}])
def test_shares_that_leave_no_train_are_refused(shares):
    with pytest.raises(ValidationError):
        SplitSettings(**shares)
