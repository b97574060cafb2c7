"""Reading a shop's tables: what is kept, what is filled in, and in which order."""

import datetime as dt
import gzip
import json
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from kgrank.errors import ROW, ConfigError, DataError
from kgrank.kg.splits import SplitSettings
from kgrank.kg.tables import TablesSettings, read_tables

NOON = 1_769_860_800.0  # 2026-01-31T12:00:00Z


def write(folder, **files):
    """Files from text, `events_csv="…"` into `events.csv`; a frame becomes Parquet."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        path = folder / name.replace("_", ".")
        if isinstance(content, pd.DataFrame):
            content.to_parquet(path, index=False)
        elif path.suffix == ".gz":
            path.write_bytes(gzip.compress(content.encode()))
        else:
            path.write_text(content, encoding="utf-8", newline="")
    return folder


def in_format(suffix, frame, lists=()):
    """The frame as the contents of a file of this format; `lists` are columns of lists."""
    if suffix == "parquet":
        return frame
    if suffix.startswith("csv"):
        return frame.assign(**{c: frame[c].str.join("|") for c in lists}).to_csv(index=False)
    return "".join(json.dumps(row) + "\n" for row in frame.to_dict("records"))


class TestWhatIsKept:
    @pytest.mark.parametrize("suffix", ["csv", "csv_gz", "jsonl", "jsonl_gz", "parquet"])
    def test_every_format_gives_the_same_tables(self, tmp_path, suffix):
        events = pd.DataFrame(
            {
                "user_id": ["007", "NA", "null"],
                "item_id": ["1e5", "0x10", 'ü,\n"q"'],
                "event": ["view", "cart", "view"],
                "timestamp": [30, 10, 20],
                "value": [1.5, 2.0, 3.25],
                "split": ["train", "valid", "test"],
            }
        )
        items = pd.DataFrame(
            {
                "item_id": ["1e5", "0x10", 'ü,\n"q"'],
                "title": ["None", "nan", "a | b"],
                "tags": [["x", "y"], ["z"], ["x"]],
            }
        )
        source = write(
            tmp_path / "shop",
            **{f"events_{suffix}": in_format(suffix, events)},
            **{f"items_{suffix}": in_format(suffix, items, lists=["tags"])},
        )
        tables = read_tables(source)
        assert tables.source == source
        assert tables.events.to_dict("list") == {
            "user_id": ["NA", "null", "007"],
            "item_id": ["0x10", 'ü,\n"q"', "1e5"],
            "event": ["cart", "view", "view"],
            "timestamp": [10.0, 20.0, 30.0],
            "value": [2.0, 3.25, 1.5],
            "split": ["valid", "test", "train"],
        }
        assert tables.items.to_dict("list") == {
            "item_id": ["1e5", "0x10", 'ü,\n"q"'],
            "title": ["None", "nan", "a | b"],
            "description": ["", "", ""],
            "tags": ["x|y", "z", "x"],
        }

    @pytest.mark.parametrize("number", [7, 2**60 + 1])
    @pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
    def test_whole_numbers_become_ids_to_the_digit(self, tmp_path, suffix, number):
        events = pd.DataFrame({"user_id": [number], "item_id": [number]})
        tables = read_tables(write(tmp_path, **{f"events_{suffix}": in_format(suffix, events)}))
        assert tables.events["user_id"].tolist() == [str(number)]

    def test_json_ids_beyond_64_bits_and_of_mixed_types(self, tmp_path):
        lines = (
            '{"user_id": 123456789012345678901, "item_id": 7}\n{"user_id": "a", "item_id": "7"}\n'
        )
        events = read_tables(write(tmp_path, events_jsonl=lines)).events
        assert events["user_id"].tolist() == ["123456789012345678901", "a"]
        assert events["item_id"].tolist() == ["7", "7"]

    def test_json_text_that_looks_like_a_date_stays_text(self, tmp_path):
        source = write(
            tmp_path,
            events_jsonl='{"user_id": "2026-01-31", "item_id": "i"}\n',
            items_jsonl='{"item_id": "i", "title": "2026-01-31 12:00:00"}\n',
        )
        tables = read_tables(source)
        assert tables.events["user_id"].tolist() == ["2026-01-31"]
        assert tables.items["title"].tolist() == ["2026-01-31 12:00:00"]

    @pytest.mark.parametrize("chunk", [1, 2, 50_000])
    def test_a_key_that_some_json_lines_lack_is_empty_there(self, tmp_path, chunk, monkeypatch):
        monkeypatch.setattr("kgrank.kg.reading._CHUNK", chunk)
        lines = '{"item_id": "a"}\n{"item_id": "b", "brand": "X"}\n{"item_id": "c"}\n'
        source = write(tmp_path, events_csv="user_id,item_id\nu,a\n", items_jsonl=lines)
        assert read_tables(source).items["brand"].tolist() == ["", "X", ""]

    def test_attribute_types_follow_the_file(self, tmp_path):
        items = pd.DataFrame(
            {
                "item_id": ["a", "b"],
                "price": [1, 2],
                "weight": [0.5, None],
                "fresh": [True, False],
                "since": [dt.date(2026, 1, 31)] * 2,
                "brand": pd.Categorical(["007", None]),
                "nothing": [None, None],
                "tags": [["x", None], None],
            }
        )
        source = write(tmp_path, events_csv="user_id,item_id\nu,a\n", items_parquet=items)
        read = read_tables(source).items
        assert read["price"].dtype == "float64"
        assert read["price"].tolist() == [1.0, 2.0]
        np.testing.assert_array_equal(read["weight"], [0.5, np.nan])
        assert read["fresh"].tolist() == ["true", "false"]
        assert read["since"].tolist() == ["2026-01-31", "2026-01-31"]
        assert read["brand"].tolist() == ["007", ""]
        assert read["nothing"].tolist() == ["", ""]
        assert read["tags"].tolist() == ["x", ""]

    def test_csv_attributes_stay_text_and_are_known_as_numbers(self, tmp_path):
        source = write(
            tmp_path,
            events_csv="user_id,item_id\nu,a\n",
            items_csv="item_id,price,code,size,empty\na,1.50,007,12,\nb,,12,inf,\nc,2e3,x,3,\n",
            users_parquet=pd.DataFrame({"user_id": ["u"], "age": [30], "city": ["Ulm"]}),
        )
        tables = read_tables(source)
        assert tables.items["price"].tolist() == ["1.50", "", "2e3"]
        assert tables.items["code"].tolist() == ["007", "12", "x"]
        assert tables.numeric_attributes() == ("price",)
        assert tables.numeric_attributes("users") == ("age",)

    def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_the_data(self, tmp_path):
        source = write(tmp_path, events_csv="\ufeffuser_id,item_id\r\nu,a\r\n")
        assert read_tables(source).events["user_id"].tolist() == ["u"]
        assert read_tables(source).events["item_id"].tolist() == ["a"]

    def test_other_columns_of_events_are_ignored_and_a_parquet_index_is_no_attribute(
        self, tmp_path
    ):
        source = write(tmp_path, events_csv="user_id,item_id,basket\nu,a,9\n")
        pd.DataFrame({"item_id": ["a"], "brand": ["X"]}, index=[5]).to_parquet(
            source / "items.parquet"
        )
        tables = read_tables(source)
        assert tables.events.columns.tolist() == [
            *("user_id", "item_id", "event", "position", "value")
        ]
        assert tables.items.columns.tolist() == ["item_id", "title", "description", "brand"]


class TestWhatIsFilledIn:
    def test_events_alone_are_a_shop(self, tmp_path):
        tables = read_tables(write(tmp_path, events_csv="user_id,item_id\nu,b\nv,a\nu,b\n"))
        assert tables.events["event"].tolist() == ["interaction"] * 3
        assert tables.events["position"].tolist() == [0, 1, 2]
        assert tables.events["position"].dtype == "int64"
        assert tables.events["value"].isna().all()
        assert "split" not in tables.events
        assert tables.items.to_dict("list") == {
            "item_id": ["b", "a"],
            "title": ["", ""],
            "description": ["", ""],
        }
        assert tables.users.columns.tolist() == ["user_id"]
        assert tables.triples.columns.tolist() == ["head", "relation", "tail", "weight"]
        assert tables.entities.columns.tolist() == ["entity_id", "name", "type"]
        assert tables.queries.columns.tolist() == ["query", "item_id", "label"]
        assert sum(map(len, (tables.users, tables.triples, tables.entities, tables.queries))) == 0
        assert tables.triples["weight"].dtype == tables.queries["label"].dtype == "float64"

    def test_absent_values_take_their_defaults(self, tmp_path):
        source = write(
            tmp_path,
            events_csv="user_id,item_id,event,value\nu,a,,\nu,a,buy,2\n",
            triples_csv="head,relation,tail,weight\na,made_by,x,\na,made_by,y,0.5\n",
            entities_csv="entity_id,name\nx,X & Co\n",
            queries_csv="query,item_id\nwarm socks,a\n",
        )
        tables = read_tables(source)
        assert tables.events["event"].tolist() == ["interaction", "buy"]
        np.testing.assert_array_equal(tables.events["value"], [np.nan, 2.0])
        assert tables.triples["weight"].tolist() == [1.0, 0.5]
        assert tables.entities["type"].tolist() == [""]
        assert tables.queries["label"].tolist() == [1.0]


class TestTime:
    @pytest.mark.parametrize(
        "text",
        [
            *("1769860800", "1769860800.0", "1.7698608e9", "2026-01-31T12:00:00Z"),
            *("2026-01-31 12:00", "2026-01-31T13:00:00+01:00", "2026-01-31T12:00:00.000"),
        ],
    )
    def test_text_becomes_seconds_utc(self, tmp_path, text):
        source = write(tmp_path, events_csv=f"user_id,item_id,timestamp\nu,a,{text}\n")
        assert read_tables(source).events["timestamp"].tolist() == [NOON]

    @pytest.mark.parametrize(
        "moment",
        [
            pd.Timestamp("2026-01-31 12:00"),
            pd.Timestamp("2026-01-31 21:00", tz="Asia/Tokyo"),
            1_769_860_800,
            1_769_860_800.0,
            "2026-01-31T12:00:00Z",
        ],
    )
    def test_parquet_times_become_seconds_utc(self, tmp_path, moment):
        events = pd.DataFrame({"user_id": ["u"], "item_id": ["a"], "timestamp": [moment]})
        read = read_tables(write(tmp_path, events_parquet=events)).events
        assert read["timestamp"].dtype == "float64"
        assert read["timestamp"].tolist() == [NOON]

    def test_iso_and_numbers_may_stand_in_one_column(self, tmp_path):
        rows = "u,a,2026-01-31T12:00:00.25Z\nu,b,1769860800.5\n"
        source = write(tmp_path, events_csv="user_id,item_id,timestamp\n" + rows)
        assert read_tables(source).events["timestamp"].tolist() == [NOON + 0.25, NOON + 0.5]

    def test_events_are_ordered_by_time_and_ties_keep_the_files_order(self, tmp_path):
        rows = [(9, "a"), (5, "b"), (5, "c"), (1, "d"), (5, "e")]
        lines = "".join(f"u,{item},{time}\n" for time, item in rows)
        source = write(tmp_path, events_csv="user_id,item_id,timestamp\n" + lines)
        assert read_tables(source).events["item_id"].tolist() == ["d", "b", "c", "e", "a"]

    def test_positions_order_events_without_times_and_break_ties_of_times(self, tmp_path):
        rows = "u,a,2,5\nu,b,1,5\nu,c,0,9\n"
        by_position = write(tmp_path / "p", events_csv="user_id,item_id,position,x\n" + rows)
        assert read_tables(by_position).events["item_id"].tolist() == ["c", "b", "a"]
        by_time = write(tmp_path / "t", events_csv="user_id,item_id,position,timestamp\n" + rows)
        assert read_tables(by_time).events["item_id"].tolist() == ["b", "a", "c"]


class TestItemsThatEventsName:
    EVENTS = "user_id,item_id,split\nu,c,test\nu,a,test\nv,c,test\nv,b,train\nv,a,valid\n"

    def test_those_of_test_rows_alone_can_be_left_out(self, tmp_path):
        tables = read_tables(write(tmp_path, events_csv=self.EVENTS))
        assert tables.items["item_id"].tolist() == ["c", "a", "b"]
        left = tables.without_test_items()
        assert left.items.to_dict("list") == {
            "item_id": ["b", "a"],
            "title": ["", ""],
            "description": ["", ""],
        }
        assert len(left.events) == 5

    def test_test_rows_are_those_of_the_rule_where_there_is_no_split(self, tmp_path):
        lines = "".join(f"u,i{n},{n}\n" for n in range(10))
        tables = read_tables(write(tmp_path, events_csv="user_id,item_id,timestamp\n" + lines))
        left = tables.without_test_items(SplitSettings(test=0.3))  # test from 9 · 0.7 = 6.3 on
        assert left.items["item_id"].tolist() == [f"i{n}" for n in range(7)]

    def test_an_items_table_stays_whole(self, tmp_path):
        source = write(tmp_path, events_csv=self.EVENTS, items_csv="item_id\na\nb\nc\nd\n")
        assert read_tables(source).without_test_items().items["item_id"].tolist() == list("abcd")

    def test_saved_and_read_again_they_are_no_items_table(self, tmp_path):
        read_tables(write(tmp_path / "shop", events_csv=self.EVENTS)).save(tmp_path / "saved")
        left = read_tables(tmp_path / "saved").without_test_items()
        assert left.items["item_id"].tolist() == ["b", "a"]


class TestWhereTablesLie:
    def test_a_toml_names_the_tables_and_keeps_its_other_sections(self, tmp_path):
        write(tmp_path / "data", log_csv="user_id,item_id\nu,a\n")
        write(tmp_path, items_csv="item_id,title\na,Tea\n")
        toml = tmp_path / "kgrank.toml"
        toml.write_text('[tables]\nevents = "data/log.csv"\n[fit]\nepochs = 3\n')
        for source in (tmp_path, toml):
            tables = read_tables(source)
            assert tables.events["item_id"].tolist() == ["a"]
            assert tables.items["title"].tolist() == ["Tea"]

    def test_settings_take_the_place_of_the_section(self, tmp_path):
        write(tmp_path, log_csv="user_id,item_id\nu,a\n", events_csv="user_id,item_id\nu,b\n")
        (tmp_path / "kgrank.toml").write_text('[tables]\nevents = "nowhere.csv"\n')
        tables = read_tables(tmp_path, TablesSettings(events="log.csv"))
        assert tables.events["item_id"].tolist() == ["a"]

    @pytest.mark.parametrize(
        ("toml", "said"),
        [
            ('[tables]\nevnts = "x.csv"\n', "'evnts'.*Is 'events' meant"),
            ("[tables]\nevents = 3\n", "tables.events: found 3; allowed: a valid string"),
            ('tables = "x.csv"\n', "tables: found 'x.csv'; allowed: a section"),
            ("[tables\n", "allowed: TOML"),
        ],
    )
    def test_a_wrong_section_is_a_config_error(self, tmp_path, toml, said):
        write(tmp_path, events_csv="user_id,item_id\nu,a\n")
        (tmp_path / "kgrank.toml").write_text(toml)
        with pytest.raises(ConfigError, match=said):
            read_tables(tmp_path)


@pytest.fixture
def shop(tmp_path):
    return read_tables(
        write(
            tmp_path / "shop",
            events_csv="user_id,item_id,timestamp,value,split\nu,a,10,1,train\nv,b,20,,test\n",
            items_jsonl="".join(
                json.dumps({"item_id": i, "title": i.upper(), "brand": f"b{i}", "price": n}) + "\n"
                for n, i in enumerate("abcdefgh")
            ),
            users_csv="user_id,city\n" + "".join(f"{u},c{u}\n" for u in "uvwxyz"),
            triples_csv="head,relation,tail,weight\n"
            + "".join(f"h{n},{'r' if n % 3 else 's'},t{n},{n + 1}\n" for n in range(30)),
            entities_csv="entity_id,name,type\nt1,One,thing\n",
            queries_csv="query,item_id,label\nq,a,0.5\n",
        )
    )


TABLES = ("events", "items", "users", "triples", "entities", "queries")


def test_what_is_written_to_a_table_taken_from_them_stays_outside(shop):
    kept = shop.events.copy()
    taken = shop.events
    taken.loc[0, "item_id"] = "BOGUS"
    taken["more"] = 1
    assert taken["item_id"][0] == "BOGUS"
    assert_frame_equal(shop.events, kept)
    given = shop.items
    changed = replace(shop, items=given)
    given.loc[0, "title"] = "BOGUS"
    assert_frame_equal(changed.items, shop.items)
    with pytest.raises(FrozenInstanceError):
        shop.events = taken


class TestSaving:
    def test_saved_tables_read_back_the_same(self, shop, tmp_path):
        shop.save(tmp_path / "deep" / "saved")
        again = read_tables(tmp_path / "deep" / "saved")
        assert [path.name for path in (tmp_path / "deep").iterdir()] == ["saved"]
        for name in TABLES:
            assert_frame_equal(getattr(again, name), getattr(shop, name))

    def test_tables_of_events_alone_read_back_the_same(self, tmp_path):
        tables = read_tables(write(tmp_path / "in", events_csv="user_id,item_id\nu,b\nv,a\n"))
        (tmp_path / "empty").mkdir()
        tables.save(tmp_path / "empty")
        again = read_tables(tmp_path / "empty")
        for name in TABLES:
            assert_frame_equal(getattr(again, name), getattr(tables, name))

    def test_a_folder_with_something_in_it_is_refused(self, shop, tmp_path):
        kept = write(tmp_path / "full", note_txt="mine")
        with pytest.raises(DataError, match="not empty"):
            shop.save(kept)
        assert [path.name for path in kept.iterdir()] == ["note.txt"]

    def test_a_save_that_fails_leaves_nothing(self, shop, tmp_path, monkeypatch):
        def fail(self, path, **_):
            path.write_text("half")
            raise OSError("disk full")

        monkeypatch.setattr(pd.DataFrame, "to_parquet", fail)
        (tmp_path / "out").mkdir()
        with pytest.raises(OSError, match="disk full"):
            shop.save(tmp_path / "out" / "saved")
        assert list((tmp_path / "out").iterdir()) == []


class TestOtherGraphs:
    def test_without_graph_words_and_events_stay(self, shop):
        bare = shop.without_graph()
        assert bare.items.columns.tolist() == ["item_id", "title", "description"]
        assert bare.users.columns.tolist() == ["user_id"]
        assert len(bare.triples) == len(bare.entities) == 0
        assert_frame_equal(bare.events, shop.events)
        assert bare.items["title"].tolist() == shop.items["title"].tolist()
        assert len(shop.triples) == 30  # the value itself has not changed

    def test_a_shuffled_graph_keeps_every_count(self, shop):
        mixed = shop.with_shuffled_graph(seed=1)
        assert_frame_equal(mixed.triples.drop(columns="tail"), shop.triples.drop(columns="tail"))
        for relation in ("r", "s"):
            rows = shop.triples["relation"] == relation
            before, after = shop.triples["tail"][rows], mixed.triples["tail"][rows]
            assert sorted(before) == sorted(after)
            assert before.tolist() != after.tolist()
        for column in ("brand", "price"):
            assert sorted(mixed.items[column]) == sorted(shop.items[column])
            assert mixed.items[column].tolist() != shop.items[column].tolist()
        assert sorted(mixed.users["city"]) == sorted(shop.users["city"])
        assert mixed.users["city"].tolist() != shop.users["city"].tolist()
        # Columns are shuffled each for itself: a brand does not take its price along.
        pairs = set(zip(shop.items["brand"], shop.items["price"], strict=True))
        assert set(zip(mixed.items["brand"], mixed.items["price"], strict=True)) != pairs

    def test_a_shuffled_graph_leaves_ids_words_and_events(self, shop):
        mixed = shop.with_shuffled_graph(seed=1)
        words = ["item_id", "title", "description"]
        assert_frame_equal(mixed.items[words], shop.items[words])
        assert_frame_equal(mixed.events, shop.events)
        assert_frame_equal(mixed.entities, shop.entities)

    def test_what_is_kept_is_no_part_of_the_graph(self, shop):
        bare = shop.without_graph(keep=("price",))
        assert bare.items.columns.tolist() == ["item_id", "title", "description", "price"]
        mixed = shop.with_shuffled_graph(seed=1, keep=("price",))
        assert mixed.items["price"].tolist() == shop.items["price"].tolist()
        assert mixed.items["brand"].tolist() != shop.items["brand"].tolist()

    def test_the_seed_decides(self, shop):
        one, same, other = (shop.with_shuffled_graph(seed).triples["tail"] for seed in (1, 1, 2))
        assert one.tolist() == same.tolist()
        assert one.tolist() != other.tolist()


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_a_further_column_of_events_is_kept_where_it_is_asked_for(tmp_path, suffix):
    events = pd.DataFrame(
        {
            "user_id": ["a", "a", "b"],
            "item_id": ["x", "y", "x"],
            "timestamp": [3, 1, 2],
            "review": ["good, |so|", "", "坏"],
            "mood": ["1", "2", "3"],
        }
    )
    write(tmp_path, **{f"events_{suffix}": in_format(suffix, events)})
    assert not {"review", "mood"} & set(read_tables(tmp_path).events.columns)
    read = read_tables(tmp_path, event_columns=("review", "no such column")).events
    assert read["review"].tolist() == ["", "坏", "good, |so|"]  # in the order of time, as the rest
    assert list(read.columns[-2:]) == ["value", "review"]
    tables = read_tables(tmp_path, event_columns=("review", ROW))
    assert tables.events[ROW].tolist() == [2, 3, 1]
    assert tables.unread == ("mood",)
