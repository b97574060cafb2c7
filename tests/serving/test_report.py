"""The report page: whole, self-contained, and its numbers those that it was given."""

import itertools
import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from kgrank.serving.explanation import (
    EventShare,
    Explanation,
    Path,
    PathEdge,
    PathNode,
    RuleEffect,
)
from kgrank.serving.report import (
    ChannelUse,
    Example,
    ReportData,
    ShopFacts,
    Stage,
    TaskResult,
    bars,
    write_report,
)

EVIL = "<script>alert('x')</script> & \"Söhne\""
VOID = {"meta", "link", "br", "img", "hr", "input"}


def explained(item: str, name: str, *, paths: bool = True) -> Example:
    user, entity = PathNode("u1", "user", "u1"), PathNode("b", "brand", "北山")
    pan, goal = PathNode("p1", "item", "Pan"), PathNode(item, "item", name)
    edges = (
        PathEdge("purchase", "u1", "p1"),
        PathEdge("brand", "p1", "b"),
        PathEdge("brand", item, "b"),
    )
    way = Path((user, pan, entity, goal), edges, 0.25)
    explanation = Explanation(
        user_id="u1",
        item_id=item,
        score=1.0567,
        bias=0.3123,
        contributions={"graph": 0.5678, "linear": 0.2345, "text": -0.0579, "repeat": 0.0},
        events=tuple(EventShare(f"h{i}", "view", 0.1 - 0.01 * i) for i in range(10)),
        paths=(way,) if paths else (),
        rules=(RuleEffect("boost-new", "boost", 0.1, 1, 3, "Up."),),
        text=f"你买过“{name}”。",
    )
    return Example(explanation, {item: name, "h0": "Whisk"})


DATA = ReportData(
    title="What households buy",
    shop=ShopFacts(
        name="Corner shop",
        source="A made-up shop.",
        licence="Free to use.",
        counts={"rows": 1234567, "users": 89},
        period="1 to 31 May 2024",
        events={"purchase": 1200000, "view": 34567},
        splits={"train": 1000000, "test": 234567},
    ),
    tasks=(
        TaskResult(
            "Everything bought next",
            {
                "NDCG@10": {"kgrank": 0.33321, "Own history": 0.32302, "EASE": 0.1410},
                "Recall@10": {"kgrank": 0.1439, "Own history": 0.14884, "EASE": 0.0577},
            },
            "One list a household.",
        ),
    ),
    channels=(ChannelUse("repeat", 0.63, 1.2347, -0.111), ChannelUse("directed", 0.37)),
    examples=(explained("p2", "Lid"),),
    stages=(Stage("channels", 41.94, 1320.4), Stage("fusion", 8.0, 1404.0)),
    settings={"fit.ridge": 400.0, "fusion.optimiser": "softmax", "fit.decay": -0.25},
    machine="Python 3.11, 2 processors",
    notes=("Own history wins on recall.",),
)


class Page(HTMLParser):
    """Reads the page strictly: every tag closed in order; texts by the path of open tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and "tr" in self.open:
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        for tag in set(self.open):
            self.texts[tag][-1] += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    def row(self, label: str) -> list[str]:
        """The cells of the only row that starts with `label`."""
        (row,) = (row for row in self.rows if row[0].strip().startswith(label))
        return [cell.strip() for cell in row]


def written(tmp_path, data=DATA) -> str:
    file = tmp_path / "report.html"
    write_report(file, data)
    return file.read_text("utf-8")


def test_the_page_is_well_formed_and_its_drawings_are_xml(tmp_path):
    html = written(tmp_path)
    Page(html)
    (svg,) = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert ET.fromstring(svg).get("role") == "img"


def test_nothing_is_fetched_and_nothing_runs(tmp_path):
    html = written(tmp_path)
    page = Page(html)
    loading = {"src", "href", "srcset", "action", "data", "poster", "xlink:href", "background"}
    assert not [attrs for _, attrs in page.tags if loading & attrs.keys()]
    assert not {"script", "link", "iframe", "img", "object"} & {tag for tag, _ in page.tags}
    assert not [a for _, attrs in page.tags for a in attrs if a.startswith("on")]
    assert not re.search(r"url\(|@import|@font-face", html)
    assert ("meta", "default-src 'none'; style-src 'unsafe-inline'") in [
        (tag, attrs.get("content")) for tag, attrs in page.tags
    ]


def test_metrics_stand_as_given_and_the_best_is_marked(tmp_path):
    page = Page(written(tmp_path))
    race = [row for row in page.rows if row[0] in ("kgrank", "Own history", "EASE")]
    assert [[row[0], row[-1]] for row in race] == [
        ["kgrank", "0.3332 (best)"],
        ["Own history", "0.3230"],
        ["EASE", "0.1410"],
        ["kgrank", "0.1439"],
        ["Own history", "0.1488 (best)"],
        ["EASE", "0.0577"],
    ]


def test_it_says_by_itself_where_a_baseline_wins(tmp_path):
    """.33321 / .32302 − 1 = 3.2 %; on recall own history is ahead."""
    html = written(tmp_path)
    assert "3.2% above Own history" in html
    assert (
        "kgrank leads on 1 of 2 metrics; Recall@10: Own history leads, 0.1488 against 0.1439."
    ) in html
    behind = replace(DATA, tasks=(TaskResult("Next", {"Recall": {"kgrank": 0.2, "EASE": 0.25}}),))
    assert "20% below EASE" in written(tmp_path, behind)


def test_a_tie_is_no_lead(tmp_path):
    even = replace(DATA, tasks=(TaskResult("Next", {"Recall": {"kgrank": 0.2, "EASE": 0.2}}),))
    html = written(tmp_path, even)
    assert "kgrank leads on 0 of 1 metrics; Recall: a tie." in html


def test_all_other_numbers_stand_as_given(tmp_path):
    html = written(tmp_path)
    page = Page(html)
    assert page.row("repeatyou")[2:] == ["63%", "1.235", "−0.111"]
    assert page.row("directedit")[2:] == ["37%", "–", "–"]
    assert page.row("bias")[-1] == "+0.3123"
    assert page.row("textit is")[-1] == "−0.0579"
    assert page.row("score")[-1] == "+1.0567"
    assert page.row("Whisk")[-1] == "+0.1000"
    assert page.row("purchase")[-1] == "1,200,000"
    assert page.row("train")[-1] == "1,000,000"
    assert page.row("channels")[-2:] == ["41.9", "1,320"]
    assert page.row("in all")[-2:] == ["49.9", "1,404"]
    assert page.row("fit.ridge")[-1] == "400"
    assert page.row("fit.decay")[-1] == "−0.25"
    assert page.row("fusion.optimiser")[-1] == "softmax"
    for text in ("1,234,567", "1 to 31 May 2024", "Free to use.", "Own history wins on recall."):
        assert text in html


def test_events_beyond_those_shown_are_summed(tmp_path):
    """Ten events of .10, .09, … .01; eight are shown, and the last two bring .02 + .01."""
    page = Page(written(tmp_path))
    assert page.row("2 more")[-1] == "+0.0300"
    assert page.row("h7")[-1] == "+0.0300"


def test_headings_run_in_order_and_every_table_has_caption_and_heads(tmp_path):
    html = written(tmp_path)
    page = Page(html)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(deeper <= level + 1 for level, deeper in itertools.pairwise(levels))
    tables = re.findall(r"<table.*?</table>", html, re.DOTALL)
    assert len(tables) == 9
    for table in tables:
        assert re.search(r"<caption>\s*\S", table)
        assert 'scope="col"' in table and 'scope="row"' in table
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    named = [attrs["aria-labelledby"] for _, attrs in page.tags if "aria-labelledby" in attrs]
    assert len(ids) == len(set(ids))
    assert {name for names in named for name in names.split()} <= set(ids)


def test_names_are_escaped_everywhere(tmp_path):
    evil = replace(
        DATA,
        title=EVIL,
        shop=replace(DATA.shop, name=EVIL, source=EVIL, licence=EVIL, counts={EVIL: 1}),
        tasks=(TaskResult(EVIL, {EVIL: {EVIL: 0.5, "kgrank": 0.4}}, EVIL),),
        channels=(ChannelUse(EVIL, 1.0),),
        examples=(explained("p2", EVIL),),
        stages=(Stage(EVIL, 1.0, 1.0),),
        settings={EVIL: EVIL},
        machine=EVIL,
        notes=(EVIL,),
    )
    html = written(tmp_path, evil)
    page = Page(html)
    assert "<script" not in html
    assert page.texts["h1"] == [EVIL]
    assert page.texts["footer"] == [EVIL]
    assert html.count("&lt;script&gt;") >= 15


def test_a_recommendation_without_paths(tmp_path):
    page = Page(written(tmp_path, replace(DATA, examples=(explained("p2", "Lid", paths=False),))))
    assert "No path in the graph carried this score." in page.texts["svg"][0]
    assert "details" not in page.texts


def test_chinese_names_and_reasons_survive(tmp_path):
    page = Page(written(tmp_path, replace(DATA, examples=(explained("p2", "保温杯"),))))
    assert "保温杯" in page.texts["h3"]
    assert "你买过“保温杯”。" in page.texts["p"]
    assert "北山" in page.texts["svg"][0]


def test_the_slice_of_cold_items_where_there_is_one(tmp_path):
    cold = TaskResult("Never seen before", {"Recall@10": {"kgrank": 0.1, "Text alone": math.nan}})
    html = written(tmp_path, replace(DATA, cold_items=cold))
    assert "Never seen before" in Page(html).texts["h3"]
    assert Page(html).row("Text alone")[-1] == "–"
    assert "Never seen before" not in written(tmp_path)


def test_the_smallest_report(tmp_path):
    empty = replace(
        DATA, tasks=(), channels=(), examples=(), stages=(), settings={}, notes=(), machine="m"
    )
    page = Page(written(tmp_path, empty))
    assert page.texts["h1"] == ["What households buy"]
    assert "Why these products" not in page.texts["h2"]


def test_bars_share_a_scale_that_holds_zero():
    """From −1 to 3: zero lies at 25 %, the 3 fills the rest, the −1 the part before."""
    low, high, none = bars([("a", -1.0), ("b", 3.0), ("c", math.nan)], mark_best=True)
    assert (low.start, low.length) == (0.0, 25.0)
    assert (high.start, high.length) == (25.0, 75.0)
    assert none.length == 0.0
    assert [bar.best for bar in (low, high, none)] == [False, True, False]


def test_a_failed_write_leaves_the_earlier_report_and_nothing_else(tmp_path, monkeypatch):
    before = written(tmp_path)

    def fail(_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(tmp_path / "report.html", replace(DATA, title="New"))
    assert (tmp_path / "report.html").read_text("utf-8") == before
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_the_folder_is_made(tmp_path):
    write_report(tmp_path / "new" / "report.html", DATA)
    assert (tmp_path / "new" / "report.html").exists()


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2)."""
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_stands_out(tmp_path, scheme):
    blocks = re.findall(r":root\{(.*?)\}", written(tmp_path), re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+):(#\w{6})", blocks[scheme]))
    pairs = [(ink, ground) for ink in ("ink", "muted", "accent") for ground in ("page", "card")]
    pairs += [("accent", "accent-soft"), ("warn", "warn-soft"), ("ink", "warn-soft")]
    for ink, ground in pairs:
        high, low = sorted((luminance(colours[ink]), luminance(colours[ground])), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)
