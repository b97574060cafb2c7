"""What is wrong with a shop's tables, told whole: every fault with its place and its mend."""

import gzip
import time

import pandas as pd
import pytest

from kgrank.errors import DataError
from kgrank.kg.tables import read_tables, validate

EVENTS = "user_id,item_id\nu,a\n"


def shop(folder, **files):
    """A folder of files from text, bytes or frames (Parquet); `events_csv` is `events.csv`."""
    files = {"events_csv": EVENTS, **files}
    for name, content in files.items():
        path = folder / name.replace("_", ".")
        if isinstance(content, pd.DataFrame):
            content.to_parquet(path)
        elif content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def only_fault(folder, **files):
    """The one fault of a shop; reading it must raise the same."""
    source = shop(folder, **files)
    (fault,) = validate(source)
    with pytest.raises(DataError) as raised:
        read_tables(source)
    assert raised.value.faults == (fault,)
    return fault


def place(fault):
    return fault.file, fault.row, fault.column, fault.count


def events(column, *values):
    rows = "".join(f"u,a,{value}\n" for value in values)
    return f"user_id,item_id,{column}\n{rows}"


def test_a_sound_shop_has_no_faults(tmp_path):
    assert validate(shop(tmp_path)) == []


@pytest.mark.parametrize(
    ("files", "where", "found"),
    [
        # columns and rows
        ({"events_csv": "user_id\nu\n"}, ("events.csv", None, "item_id", 1), "'user_id'"),
        ({"items_csv": "id,title\na,A\n"}, ("items.csv", None, "item_id", 1), "'id', 'title'"),
        ({"triples_csv": "head,tail\na,x\n"}, ("triples.csv", None, "relation", 1), "'tail'"),
        ({"entities_csv": "entity_id\nx\n"}, ("entities.csv", None, "name", 1), "'entity_id'"),
        ({"queries_csv": "item_id\na\n"}, ("queries.csv", None, "query", 1), "'item_id'"),
        ({"users_csv": "user_id\n"}, ("users.csv", None, None, 1), "no row"),
        ({"events_csv": ""}, ("events.csv", None, None, 1), "empty file"),
        ({"items_csv": "item_id,x,x\na,1,2\n"}, ("items.csv", None, "x", 1), "two columns"),
        # ids
        ({"events_csv": "user_id,item_id\nu,a\n ,a\n,a\n"}, ("events.csv", 2, "user_id", 2), "' '"),
        ({"triples_csv": "head,relation,tail\na,,x\n"}, ("triples.csv", 1, "relation", 1), ""),
        ({"items_csv": "item_id\na\nb\na\na\n"}, ("items.csv", 3, "item_id", 2), "'a'"),
        ({"users_csv": "user_id\n7\n7\n"}, ("users.csv", 2, "user_id", 1), "'7'"),
        ({"entities_csv": "entity_id,name\nx,\nx,\n"}, ("entities.csv", 2, "entity_id", 1), "'x'"),
        ({"items_csv": "item_id\nA\n"}, ("events.csv", 1, "item_id", 1), "'a'"),
        (
            {"items_csv": "item_id\na\n", "queries_csv": "query,item_id\nq,a\nq,b\n"},
            ("queries.csv", 2, "item_id", 1),
            "'b'",
        ),
        # numbers
        ({"events_csv": events("value", 1, 2, "1,5")}, ("events.csv", 3, None, 1), "4 values"),
        ({"events_csv": events("value", 1, "x", "y")}, ("events.csv", 2, "value", 2), "'x'"),
        ({"events_csv": events("value", "nan")}, ("events.csv", 1, "value", 1), "'nan'"),
        ({"events_csv": events("value", "", "-inf")}, ("events.csv", 2, "value", 1), "'-inf'"),
        ({"events_csv": events("position", 0, 1.5)}, ("events.csv", 2, "position", 1), "'1.5'"),
        ({"events_csv": events("position", 0, "")}, ("events.csv", 2, "position", 1), "nothing"),
        (
            {"triples_csv": "head,relation,tail,weight\na,r,x,1\na,r,y,0\na,r,z,-2\na,r,w,1e-50\n"},
            ("triples.csv", 2, "weight", 3),
            "'0'",
        ),
        (
            {"queries_csv": "query,item_id,label\nq,a,good\n"},
            ("queries.csv", 1, "label", 1),
            "'good'",
        ),
        (
            {"items_parquet": pd.DataFrame({"item_id": ["b", "a"], "price": [1.0, float("inf")]})},
            ("items.parquet", 2, "price", 1),
            "inf",
        ),
        (
            {"events_csv": events("value", 1, 1e300, "-4e38")},
            ("events.csv", 2, "value", 2),
            "1e+300",
        ),
        (
            {"triples_csv": "head,relation,tail,weight\na,r,x,3e38\na,r,y,1e39\n"},
            ("triples.csv", 2, "weight", 1),
            "'1e39'",
        ),
        # times
        ({"events_csv": events("timestamp", "soon")}, ("events.csv", 1, "timestamp", 1), "'soon'"),
        ({"events_csv": events("timestamp", 5, "")}, ("events.csv", 2, "timestamp", 1), "nothing"),
        ({"events_csv": events("timestamp", 5, -5)}, ("events.csv", 2, "timestamp", 1), "'-5'"),
        (
            {"events_csv": events("timestamp", "1969-12-31T23:59:59Z")},
            ("events.csv", 1, "timestamp", 1),
            "1969",
        ),
        *(
            ({"events_csv": events("timestamp", 5, far)}, ("events.csv", 2, "timestamp", 1), far)
            for far in ("9999-12-31", "2300-01-01", "1600-01-01", "0001-01-01T00:00:00Z")
        ),
        # splits
        ({"events_csv": events("split", "train", "dev")}, ("events.csv", 2, "split", 1), "'dev'"),
        ({"events_csv": events("split", "test", "valid")}, ("events.csv", None, "split", 1), "no "),
        # types
        (
            {"events_csv": None, "events_parquet": pd.DataFrame({"user_id": [1.0], "item_id": 1})},
            ("events.parquet", None, "user_id", 1),
            "double",
        ),
        (
            {"events_csv": None, "events_jsonl": '{"user_id": "u", "item_id": 7.0}\n'},
            ("events.jsonl", 1, "item_id", 1),
            "7.0",
        ),
        (
            {"items_jsonl": '{"item_id": "a", "size": {"w": 1}}\n'},
            ("items.jsonl", None, "size", 1),
            "struct",
        ),
        (
            {"items_jsonl": '{"item_id": "a", "tags": ["x|y"]}\n'},
            ("items.jsonl", None, "tags", 1),
            "'|'",
        ),
        (
            {"events_csv": None, "events_jsonl": '{"user_id":"u","item_id":"a","value":NaN}\n'},
            ("events.jsonl", 1, "value", 1),
            "'NaN'",
        ),
    ],
)
def test_each_fault_has_its_place(tmp_path, files, where, found):
    fault = only_fault(tmp_path, **files)
    assert place(fault) == where
    assert found in fault.found
    assert fault.allowed
    assert fault.mend


def test_the_row_is_that_of_the_file_whatever_the_order_of_time(tmp_path):
    rows = "".join(f"u,a,{1000 - n},{'1e300' if n == 151 else 4}\n" for n in range(1, 201))
    fault = only_fault(tmp_path, events_csv="user_id,item_id,timestamp,value\n" + rows)
    assert place(fault) == ("events.csv", 151, "value", 1)
    assert fault.allowed == "a number from -3.4e38 to 3.4e38"


class TestFilesThatBreak:
    def test_every_ragged_row_is_counted_and_later_rows_keep_their_number(self, tmp_path):
        rows = 'u,a,1\nu,a\n"u\nv",a,1\n\nu,a,1,1\nu,a,x\n'
        source = shop(tmp_path, events_csv="user_id,item_id,value\n" + rows)
        ragged, wrong = validate(source)
        assert place(ragged) == ("events.csv", 2, None, 2)
        assert ragged.found == "2 values"
        assert place(wrong) == ("events.csv", 5, "value", 1)

    @pytest.mark.parametrize(
        ("text", "row"),
        [('u,"a\nu,a\n', 1), ('u,a\nu,"a" b\nu,a\n', 2), ('u,a\nu,"a\nu,"b\nu,a\n', 2)],
    )
    def test_quotes_that_do_not_close_swallow_nothing(self, tmp_path, text, row):
        fault = only_fault(tmp_path, events_csv="user_id,item_id\n" + text)
        assert place(fault) == ("events.csv", row, None, 1)
        assert "quote" in fault.found

    @pytest.mark.parametrize("cell", [b"caf\xe9", b"\xe9"])
    def test_text_that_is_not_utf_8(self, tmp_path, cell):
        rows = b'user_id,item_id\nu,"a\nb"\n' + cell + b",a\nu,\xe9\n"
        fault = only_fault(tmp_path, events_csv=rows)
        assert place(fault) == ("events.csv", 2, None, 1)
        assert "0xe9" in fault.found

    @pytest.mark.parametrize("name", ["events_csv_gz", "events_jsonl_gz"])
    def test_a_gzip_file_cut_short(self, tmp_path, name):
        whole = gzip.compress(EVENTS.encode() * 500)
        fault = only_fault(tmp_path, events_csv=None, **{name: whole[: len(whole) // 2]})
        assert place(fault) == (name.replace("_", "."), None, None, 1)

    def test_a_gzip_file_with_a_flipped_bit(self, tmp_path):
        whole = bytearray(gzip.compress(EVENTS.encode() * 500))
        whole[-6] ^= 1  # in the checksum
        fault = only_fault(tmp_path, events_csv=None, events_csv_gz=bytes(whole))
        assert "CRC" in fault.found

    def test_a_parquet_file_cut_short(self, tmp_path):
        shop(tmp_path, events_csv=None, events_parquet=pd.DataFrame({"user_id": ["u"] * 9}))
        path = tmp_path / "events.parquet"
        path.write_bytes(path.read_bytes()[:-9])
        (fault,) = validate(tmp_path)
        assert place(fault) == ("events.parquet", None, None, 1)

    def test_json_lines_that_are_none(self, tmp_path):
        good = '{"user_id": "u", "item_id": "a", "value": 1}\n'
        text = good + '{"user_id": \n' + "\n[1]\n" + good.replace("1}", '"x"}') + good + '{"us'
        source = shop(tmp_path, events_csv=None, events_jsonl=text)
        broken, wrong = validate(source)
        assert place(broken) == ("events.jsonl", 2, None, 3)
        assert place(wrong) == ("events.jsonl", 4, "value", 1)

    @pytest.mark.parametrize("line", ['{"user_id": "\\ud800", "item_id": "a"}', "[" * 100_000])
    def test_json_that_no_text_can_hold(self, tmp_path, line):
        fault = only_fault(tmp_path, events_csv=None, events_jsonl=line + "\n")
        assert fault.file == "events.jsonl"

    def test_an_unknown_format(self, tmp_path):
        (tmp_path / "log.xlsx").write_bytes(b"PK")
        fault = only_fault(tmp_path, kgrank_toml='[tables]\nevents = "log.xlsx"\n')
        assert fault.file == "log.xlsx"
        assert ".parquet" in fault.allowed


class TestWhatIsThere:
    def test_a_folder_that_is_not_there(self, tmp_path):
        (fault,) = validate(tmp_path / "nowhere")
        assert "nowhere" in fault.file

    def test_a_folder_without_events_is_still_checked(self, tmp_path):
        source = shop(tmp_path, events_csv=None, items_csv="item_id\na\na\n")
        missing, twice = validate(source)
        assert place(missing) == ("events", None, None, 1)
        assert "items.csv" in missing.found
        assert place(twice) == ("items.csv", 2, "item_id", 1)

    def test_two_files_for_one_table(self, tmp_path):
        fault = only_fault(tmp_path, items_csv="item_id\na\n", items_jsonl='{"item_id": "a"}\n')
        assert fault.file == "items"
        assert "items.csv and items.jsonl" in fault.found

    def test_a_file_that_the_toml_names_and_that_is_not_there(self, tmp_path):
        fault = only_fault(tmp_path, kgrank_toml='[tables]\nusers = "people.csv"\n')
        assert fault.file == "users"
        assert "people.csv" in fault.found

    def test_items_that_cannot_be_read_do_not_make_every_event_wrong(self, tmp_path):
        fault = only_fault(tmp_path, items_jsonl='{"item_id": "b"}\n{"item_id": "a"\n')
        assert place(fault) == ("items.jsonl", 2, None, 1)


class TestMends:
    @pytest.mark.parametrize(("factor", "unit"), [(1e3, "milli"), (1e6, "micro"), (1e9, "nano")])
    def test_finer_units_are_named(self, tmp_path, factor, unit):
        now = events("timestamp", f"{1.7e9 * factor:.0f}")
        assert f"{unit}seconds" in only_fault(tmp_path, events_csv=now).mend

    @pytest.mark.parametrize("text", ["2023-W46-2", "2023-318", "2026-01-31T24:00:00Z"])
    def test_the_forms_of_a_time_are_told_where_it_is_in_another(self, tmp_path, text):
        fault = only_fault(tmp_path, events_csv=events("timestamp", text))
        assert fault.allowed == (
            "seconds since 1970 (UTC), or YYYY-MM-DD, which a time HH:MM, HH:MM:SS or "
            "HH:MM:SS.ffffff (00:00 to 23:59:59.999999) may follow after T or a space, and the "
            "time a zone Z or ±HH:MM (without one: UTC)"
        )
        assert fault.mend == "Write 2026-01-31T12:00:00Z."

    def test_a_date_far_ahead_is_a_time_ahead_whatever_the_file(self, tmp_path):
        days = pd.Series(["2024-01-01", "9999-12-31"])
        frame = pd.DataFrame({"user_id": "u", "item_id": "a", "timestamp": days})
        as_dates = frame.assign(timestamp=days.astype("datetime64[us]"))
        told = []
        for name, files in (
            ("csv", {"events_csv": frame.to_csv(index=False)}),
            ("parquet", {"events_csv": None, "events_parquet": as_dates}),
        ):
            (tmp_path / name).mkdir()
            told.append(only_fault(tmp_path / name, **files))
        csv, parquet = told
        assert (csv.row, csv.allowed, csv.mend) == (parquet.row, parquet.allowed, parquet.mend)
        assert csv.allowed == "a time up to now"

    def test_a_time_ahead_is_no_unit(self, tmp_path):
        ahead = events("timestamp", time.time() + 3600, time.time() + 2 * 86_400)
        fault = only_fault(tmp_path, events_csv=ahead)
        assert place(fault) == ("events.csv", 2, "timestamp", 1)
        assert "seconds" not in fault.mend

    def test_the_nearest_column_is_named(self, tmp_path):
        fault = only_fault(tmp_path, events_csv="user_id,itemid\nu,a\n")
        assert "Rename 'itemid' to 'item_id'" in fault.mend

    def test_other_separators_are_named(self, tmp_path):
        faults = validate(shop(tmp_path, events_csv="user_id;item_id\nu;a\n"))
        assert [fault.column for fault in faults] == ["user_id", "item_id"]
        assert "commas" in faults[0].mend

    def test_long_values_are_shortened(self, tmp_path):
        fault = only_fault(tmp_path, events_csv=events("value", "x" * 500))
        assert len(fault.found) <= 60


def test_everything_is_told_at_once(tmp_path):
    source = shop(
        tmp_path,
        events_csv="user_id,item_id,timestamp,value,split\n"
        "u,a,1,1,train\n,zz,-1,x,dev\nu,,later,inf,test\nu,a,1e12,2,train\n",
        items_csv="item_id\na\na\n",
        triples_csv="head,relation\na,r\n",
        users_jsonl="[]\n",
    )
    places = {(f.file, f.row, f.column) for f in validate(source)}
    assert places == {
        ("users.jsonl", 1, None),
        ("events.csv", 2, "user_id"),
        ("events.csv", 3, "item_id"),
        ("events.csv", 2, "item_id"),
        ("events.csv", 2, "timestamp"),
        ("events.csv", 3, "timestamp"),
        ("events.csv", 4, "timestamp"),
        ("events.csv", 2, "value"),
        ("events.csv", 3, "value"),
        ("events.csv", 2, "split"),
        ("items.csv", 2, "item_id"),
        ("triples.csv", None, "tail"),
    }
