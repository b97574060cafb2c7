"""A rules file is read strictly: what is wrong is told with its place and its mend."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

import kgrank.data
from kgrank.errors import ConfigError
from kgrank.kg.graph import KnowledgeGraph
from kgrank.kg.tables import Tables
from kgrank.kg.vocabulary import Vocabulary
from kgrank.serving.conditions import Grounds
from kgrank.serving.rules import Rules, moment

NOON = moment("2026-06-01T12:00:00Z")


def read(folder: Path, text: str) -> Rules:
    (folder / "rules.toml").write_text(text, "utf-8")
    return Rules.read(folder / "rules.toml")


def rule(action: str = "exclude", *lines: str) -> str:
    return "\n".join(["[[rule]]", 'name = "one"', f'action = "{action}"', *lines])


def faults(folder: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(folder, text)
    return str(caught.value).split("\n")


# The language


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (rule("exlude", 'items.brand = "A"'), ["action", "'exlude'", "Is 'exclude' meant?"]),
        (rule("exclude", 'itms.brand = "A"'), ["'itms'", "Is 'items' meant?"]),
        (rule("exclude"), ["no condition on items", "at least one test or link"]),
        (rule("boost", 'items.brand = "A"'), ["found no by"]),
        (rule("pin", "by = 1.0", 'items.brand = "A"'), ["found by", "pin", "by with boost"]),
        (rule("cap", 'attribute = "brand"'), ["found no most"]),
        (rule("cap", 'attribute = "brand"', "most = 0"), ["most", "found 0"]),
        (rule("diversify", "strength = 1.5", "vectors = true"), ["strength", "found 1.5"]),
        (rule("diversify", "strength = 0.5"), ["no measure"]),
        (rule("exclude", "items.price = {}"), ["items.price", "no operator"]),
        (rule("exclude", "items.price = { belw = 3 }"), ["items.price", "Is 'below' meant?"]),
        (rule("exclude", 'items.price = { below = "3" }'), ["items.price", "below", "'3'"]),
        (rule("exclude", "items.brand = []"), ["items.brand", "empty list"]),
        (rule("exclude", 'linked = { to = "x", hops = 3 }'), ["linked", "hops", "found 3"]),
        (rule("exclude", 'items.a = "b"', 'segments = ["vip"]'), ["segments", "'vip'"]),
        (rule("exclude", 'items.a = "b"', 'from = "soon"'), ["from", "'soon'", "2026-11-30"]),
        (
            rule("exclude", 'items.a = "b"', "from = 2026-05-02", "until = 2026-05-01"),
            ["from 2026-05-02 until 2026-05-01"],
        ),
        ('[rules]\nname = "x"', ["found 'rules'", "Is 'rule' meant?"]),
        ("[segments.a]", ["segment 'a'", "users tests, ids or a file"]),
        ('[segments.a]\nfile = "../secret"', ["segment 'a'", "file", "in the folder"]),
        ('[segments.a]\nfile = "none.txt"\nids = "u"', ["segment 'a'", "both file and ids"]),
        ('[segments.a]\nfile = "none.txt"\nids = ["u"]', ["segment 'a'", "both file and ids"]),
        ('[segments.a]\nfile = "none.txt"', ["segment 'a'", "none.txt", "No such file"]),
    ],
)
def test_one_fault_is_told_with_file_rule_key_and_mend(
    tmp_path: Path, text: str, parts: list[str]
) -> None:
    [told] = faults(tmp_path, text)
    assert told.startswith("rules.toml")
    assert "[[rule]]" not in text or "rule 'one'" in told
    for part in parts:
        assert part in told
    assert "allowed" in told


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    first = rule("boost", 'items.brand = "A"', "until = 2026-12-01")
    told = faults(tmp_path, first + "\n" + rule("pin", "plce = 1", 'items.brand = "A"'))
    assert len(told) == 3  # no `by`; no `plce`; and two rules of one name
    nameless = '[[rule]]\naction = "exclude"\nitems.brand = "A"\nsegments = ["vip"]'
    told = faults(tmp_path, nameless)
    assert told == [
        "rules.toml, rule 1: found no name; allowed: one. Add it.",
        "rules.toml, rule 1, segments: found 'vip'; allowed: none (there are none). "
        "Correct or remove it.",
    ]
    assert (
        "name: found ''; allowed: at least 1 character."
        in faults(tmp_path, rule().replace('"one"', '""') + '\nitems.brand = "A"')[0]
    )


def test_what_is_no_toml_or_no_text_is_refused(tmp_path: Path) -> None:
    assert "allowed: TOML" in faults(tmp_path, "[[rule")[0]
    (tmp_path / "rules.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        Rules.read(tmp_path / "rules.toml")
    with pytest.raises(ConfigError, match="No such file"):
        Rules.read(tmp_path / "nothing.toml")


def test_rules_are_the_same_after_json(tmp_path: Path) -> None:
    (tmp_path / "staff.txt").write_text("u-1\r\nu-2\n\n", "utf-8")
    text = '[segments.staff]\nfile = "staff.txt"\n[segments.young]\nusers.age = { below = 30 }\n'
    text += rule(
        "boost",
        "by = 0.5",
        'items.brand = ["A", "B"]',
        "items.price = { at_least = 1, below = 2.5, not = true }",
        'linked = { to = "steel", relation = "made_of", hops = 2 }',
        'segments = ["staff", "young"]',
        "from = 2026-01-01",
        "until = 2026-01-31",
    )
    rules = read(tmp_path, text)
    again = Rules.from_dict(json.loads(json.dumps(rules.content)), "rules.json")
    assert (again.rules, again.segments) == (rules.rules, rules.segments)
    assert again.fingerprint == rules.fingerprint
    assert rules.segments["staff"].ids == ("u-1", "u-2")
    other = read(tmp_path, text.replace("by = 0.5", "by = 0.6"))
    assert other.fingerprint != rules.fingerprint


def test_the_example_of_the_readme_is_sound(tmp_path: Path) -> None:
    text = (Path(kgrank.data.__file__).parent / "README.md").read_text("utf-8")
    [example] = [b for b in re.findall(r"```toml\n(.*?)```", text, re.DOTALL) if "[[rule]]" in b]
    rules = read(tmp_path, example)
    assert [rule.action for rule in rules.rules] == ["exclude", "boost"]
    assert list(rules.segments) == ["students"]


def test_a_day_named_as_the_end_still_counts(tmp_path: Path) -> None:
    dates = ("from = 2026-01-01", "until = 2026-01-31")
    [one] = read(tmp_path, rule("exclude", 'items.a = "b"', *dates)).rules
    assert one.window == (moment("2026-01-01T00:00:00Z"), moment("2026-02-01T00:00:00Z"))
    dates = ("from = 2026-01-01T08:00:00+08:00", "until = 2026-01-31T10:00:00Z")
    [one] = read(tmp_path, rule("exclude", 'items.a = "b"', *dates)).rules
    assert one.window == (moment("2026-01-01"), moment("2026-01-31T10:00:00+00:00"))


# Conditions

ITEMS = pd.DataFrame(
    {
        "item_id": ["a", "b", "c", "d"],
        "title": ["Warm Tent", "tent pole", "Mug", ""],
        "tags": ["red|blue", "blue", "red | green", ""],
        "price": ["10", "20.5", "", "30"],
        "stock": [3.0, 0.0, float("nan"), 7.0],
        "in_stock": ["true", "No", "", "1"],
        "since": ["2026-05-01", "2026-06-01T13:00:00Z", "", "2027-01-01"],
    }
)
USERS = pd.DataFrame({"user_id": ["u", "v"], "age": ["25", "40"], "city": ["Cork", ""]})


@pytest.fixture(scope="module")
def grounds(tiny_tables: Tables) -> Grounds:
    graph = KnowledgeGraph.from_tables(tiny_tables)
    items, users = Vocabulary.from_ids(["a", "b", "c", "d"]), Vocabulary.from_ids(["w", "v", "u"])
    return Grounds.of(ITEMS, USERS, items, users, graph)


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        ('items.item_id = "b"', "b"),
        ('items.item_id = { in = ["b", "d"], not = true }', "ac"),
        ('items.tags = "red"', "ac"),
        ('items.tags = ["green", "blue"]', "abc"),
        ('items.tags = "re"', ""),
        ('items.tags = { contains = "re" }', "ac"),
        ('items.title = { contains = "TENT" }', "ab"),
        ("items.tags = { exists = false }", "d"),
        ("items.tags = { exists = true }", "abc"),
        ("items.tags = { exists = false, not = true }", "abc"),
        ("items.price = 20.5", "b"),
        ("items.price = [10, 30]", "ad"),
        ("items.price = { at_least = 20.5 }", "bd"),
        ("items.price = { above = 10, below = 30 }", "b"),
        ("items.price = { at_most = 20, not = true }", "bcd"),
        ("items.stock = 0", "b"),
        ('items.stock = "7"', "d"),
        ("items.stock = { below = 5 }", "ab"),
        ("items.in_stock = true", "ad"),
        ("items.in_stock = false", "b"),
        ('items.since = { after = "now" }', "bd"),
        ('items.since = { before = "now" }', "a"),
        ('items.since = { after = "2026-04-01", before = "2026-12-31" }', "ab"),
        ('items.tags = "red"\nitems.price = 10', "a"),
    ],
)
def test_which_items_a_condition_holds_of(
    grounds: Grounds, tmp_path: Path, test: str, expected: str
) -> None:
    rules = read(tmp_path, rule("exclude", test))
    assert grounds.faults(rules) == []
    mask = grounds.item_mask(rules.rules[0], NOON)
    assert "".join(i for i, holds in zip("abcd", mask, strict=True) if holds) == expected


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ('users.city = "Cork"', "u"),
        ("users.age = { at_least = 30 }", "v"),
        ("users.city = { exists = false }", "wv-"),
        ('users.city = { equals = "Cork", not = true }', "wv-"),
        ('segments = ["some"]', "wv"),
        ('segments = ["some", "young"]', "wvu"),
        ('segments = ["some"]\nusers.age = 40', "v"),
        ("", "wvu-"),
    ],
)
def test_which_users_a_rule_holds_for(
    grounds: Grounds, tmp_path: Path, asked: str, expected: str
) -> None:
    """w has no row in the table, - is a visitor nobody knows."""
    segments = '[segments.some]\nids = ["v", "w", "gone"]\n[segments.young]\nusers.age = 25\n'
    rules = read(tmp_path, segments + rule("exclude", 'items.item_id = "a"', asked))
    assert grounds.faults(rules) == []
    mask = grounds.user_mask(rules.rules[0], rules, NOON)
    assert "".join(u for u, holds in zip("wvu-", mask, strict=True) if holds) == expected


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ('{ to = "steel" }', "a1 a2 b2"),
        ('{ to = "steel", relation = "made_of" }', "a1 a2 b2"),
        ('{ to = "steel", relation = "brand" }', ""),
        ('{ to = "brand:Birch" }', "b1 b2 b3 b4 b5 v1"),
        # a1, a2 and b2 are of steel, their brands are Alder and Birch: everything in two hops
        ('{ to = "a1" }', ""),
        ('{ to = "a1", hops = 2 }', "a2 a3 a4 a5 b2 c1"),
        ('[{ to = "wool" }, { to = "brand:Birch" }]', "b1"),
    ],
)
def test_which_items_are_linked(
    tiny_tables: Tables, tmp_path: Path, link: str, expected: str
) -> None:
    graph = KnowledgeGraph.from_tables(tiny_tables)
    items = Vocabulary.from_ids(tiny_tables.items["item_id"])
    known = Grounds.of(tiny_tables.items, USERS, items, Vocabulary.from_ids(["u"]), graph)
    rules = read(tmp_path, rule("exclude", f"linked = {link}"))
    assert known.faults(rules) == []
    found = items.ids(known.item_mask(rules.rules[0], NOON).nonzero()[0])
    assert " ".join(found) == expected


@pytest.mark.parametrize(
    ("lines", "parts"),
    [
        (['items.pryce = "1"'], ["items.pryce", "Is 'price' meant?"]),
        (['items.item_id = ["a", "aa"]'], ["items.item_id", "'aa'", "Is 'a' meant?"]),
        (["items.tags = { below = 3 }"], ["items.tags", "text", "Use equals"]),
        (['items.tags = { after = "now" }'], ["items.tags", "without dates"]),
        (['items.tags = "red"', "users.agee = 3"], ["users.agee", "Is 'age' meant?"]),
        (['linked = { to = "stel" }'], ["linked", "'stel'", "Is 'steel' meant?"]),
        (['linked = { to = "steel", relation = "made_off" }'], ["Is 'made_of' meant?"]),
        (['linked = { to = "steel", relation = "purchase" }'], ["relation 'purchase'"]),
    ],
)
def test_what_the_shop_has_not_is_a_fault(
    grounds: Grounds, tmp_path: Path, lines: list[str], parts: list[str]
) -> None:
    [told] = grounds.faults(read(tmp_path, rule("exclude", *lines)))
    assert told.startswith("rules.toml, rule 'one', ")
    assert all(part in told for part in [*parts, "found", "allowed"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            rule("exclude", 'items.tags = "rd"'),
            "matches no item. No item has tags = 'rd'. Is 'red'",
        ),
        (rule("only", 'items.tags = "rd"'), "matches no item. Lists are empty. No item has tags"),
        (
            rule("exclude", "items.price = { below = -5, not = true }"),
            "every item. Lists are empty",
        ),
        (
            rule("exclude", 'items.tags = ["red", "gren"]'),
            "'one': No item has tags = 'gren'. Is 'green' meant?",
        ),
        (rule("pin", 'items.tags = "red"'), "matches 2 items and pins at most 1"),
        (rule("exclude", 'items.tags = "red"', "users.age = 7"), "holds for no user"),
        (rule("exclude", 'items.tags = "red"', "until = 2026-05-31"), "was over at 2026-05-31"),
        ('[segments.a]\nids = ["u", "gone"]', "segment 'a': 1 of 2 ids are of no known user"),
    ],
)
def test_what_does_nothing_is_a_warning(
    grounds: Grounds, tmp_path: Path, text: str, said: str
) -> None:
    rules = read(tmp_path, text)
    assert grounds.faults(rules) == []
    told = grounds.warnings(rules, NOON)
    assert len(told) == 1
    assert said in told[0]
