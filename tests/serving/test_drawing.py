"""The drawing of paths: valid SVG, every node once, thickness and shares by hand-worked numbers."""

import itertools
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from kgrank.serving.drawing import draw_paths, path_texts, text_width
from kgrank.serving.explanation import Explanation, Path, PathEdge, PathNode

SVG = "{http://www.w3.org/2000/svg}"
ANN = PathNode("u1", "user", "ann")
PAN = PathNode("p1", "item", "Frying Pan")
KNIFE = PathNode("p3", "item", "Knife")
LID = PathNode("p2", "item", "Glass Lid")
NORDFELL = PathNode("b1", "brand", "Nordfell")


def path(contribution: float, *steps: PathNode | str) -> Path:
    """Nodes and relations in turn; "<r" is an edge stored against the path."""
    nodes = [step for step in steps if isinstance(step, PathNode)]
    edges = []
    for (left, right), relation in zip(itertools.pairwise(nodes), steps[1::2], strict=True):
        ends = (right.id, left.id) if relation.startswith("<") else (left.id, right.id)
        edges.append(PathEdge(relation.lstrip("<"), *ends))
    return Path(tuple(nodes), tuple(edges), contribution)


def explanation(*paths: Path) -> Explanation:
    """A score of 1 = bias .2 + graph .6 + linear .2, so that a path of .3 has a share of 30 %."""
    return Explanation("u1", "p2", 1.0, 0.2, {"graph": 0.6, "linear": 0.2}, (), paths, (), "")


BY_PAN = path(0.3, ANN, "purchase", PAN, "brand", NORDFELL, "<brand", LID)
BY_KNIFE = path(0.1, ANN, "view", KNIFE, "brand", NORDFELL, "<brand", LID)
DIRECT = path(-0.05, ANN, "purchase", PAN, "also_bought", LID)


def drawn(*paths: Path) -> ET.Element:
    return ET.fromstring(draw_paths(explanation(*paths)))


def boxes(svg: ET.Element) -> dict[str, tuple[str, float, float, float, float]]:
    """(class, left, top, right, bottom) by full name; a name drawn twice would fail here."""
    found = {}
    for group in svg.iter(f"{SVG}g"):
        name = group.findtext(f"{SVG}title")
        assert name not in found
        rect, polygon = group.find(f"{SVG}rect"), group.find(f"{SVG}polygon")
        if rect is not None:
            x, y, w, h = (float(rect.get(k)) for k in ("x", "y", "width", "height"))
            found[name] = (group.get("class"), x, y, x + w, y + h)
        else:
            xs, ys = zip(
                *(map(float, point.split(",")) for point in polygon.get("points").split()),
                strict=True,
            )
            found[name] = (group.get("class"), min(xs), min(ys), max(xs), max(ys))
    return found


def labels(svg: ET.Element) -> list[str]:
    return ["".join(text.itertext()) for text in svg.iter(f"{SVG}text") if is_label(text)]


def is_label(text: ET.Element) -> bool:
    return text.get("class") == "on-line"


def test_shared_nodes_are_drawn_once_in_layers_from_left_to_right():
    places = boxes(drawn(BY_PAN, BY_KNIFE))
    assert set(places) == {"ann", "Frying Pan", "Knife", "Nordfell", "Glass Lid"}
    ann, pan, nordfell, lid = (places[n] for n in ("ann", "Frying Pan", "Nordfell", "Glass Lid"))
    assert ann[3] < pan[1] and pan[3] < nordfell[1] and nordfell[3] < lid[1]
    assert places["Knife"][1] < pan[3] and pan[1] < places["Knife"][3]  # the same layer
    kinds = [places[n][0] for n in ("ann", "Frying Pan", "Nordfell", "Glass Lid")]
    assert kinds == ["user", "item", "e0", "goal"]


def test_lines_carry_the_sum_of_their_paths():
    """.3 + .1 over nordfell → lid, of |.2| + .6 + .2 = 1; thickness 1.5 + 7.5 · |part| / .4."""
    svg = drawn(BY_PAN, BY_KNIFE)
    assert sorted(labels(svg)) == sorted(
        ["bought 30%", "brand 30%", "← brand 40%", "viewed 10%", "brand 10%"]
    )
    thickness = sorted(float(p.get("stroke-width")) for p in svg.iter(f"{SVG}path"))
    assert thickness == pytest.approx([3.4, 3.4, 7.1, 7.1, 9.0], abs=0.05)


def test_what_spoke_against_is_dashed():
    against = [p for p in drawn(BY_PAN, DIRECT).iter(f"{SVG}path") if "against" in p.get("class")]
    assert len(against) == 1  # pan → lid; ann → pan carries .3 − .05 > 0
    assert "also bought −5.0%" in labels(drawn(BY_PAN, DIRECT))


def test_a_line_that_skips_a_layer_crosses_no_node():
    svg = drawn(BY_PAN, BY_KNIFE, DIRECT)
    left, top, right, bottom = boxes(svg)["Nordfell"][1:]
    lane = next(p.get("d") for p in svg.iter(f"{SVG}path") if "H" in p.get("d"))
    numbers = [float(n) for n in re.findall(r"[\d.]+", lane.split("H")[0])]
    y = numbers[-1]
    assert numbers[-2] <= left and float(re.search(r"H([\d.]+)", lane)[1]) >= right
    assert y < top or y > bottom


def test_nodes_and_labels_do_not_overlap_and_stay_inside():
    """Ten paths of four hops through three products and four entities."""
    products = [PathNode(f"p{i}0", "item", f"Product {i} with a long name") for i in range(3)]
    entities = [PathNode(f"e{i}", f"kind{i}", f"Entity {i}") for i in range(4)]
    parent = PathNode("top", "parent", "Everything")
    pairs = list(itertools.product(products, entities))[:10]
    svg = drawn(*(path(0.01, ANN, "view", p, "has", e, "in", parent, "<in", LID) for p, e in pairs))
    places = list(boxes(svg).values())
    width, height = float(svg.get("width")), float(svg.get("height"))
    for _, left, top, right, bottom in places:
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
    for a, b in itertools.combinations(places, 2):
        assert a[3] < b[1] or b[3] < a[1] or a[4] < b[2] or b[4] < a[2]
    spots = [
        (float(t.get("x")), float(t.get("y")), text_width("".join(t.itertext()), 11))
        for t in svg.iter(f"{SVG}text")
        if is_label(t)
    ]
    assert len(spots) == 3 + 10 + 4 + 1
    for (x, y, w), (a, b, v) in itertools.combinations(spots, 2):
        assert abs(x - a) >= (w + v) / 2 or abs(y - b) >= 12


def test_paths_that_pass_two_nodes_in_opposite_order_still_run_left_to_right():
    there = path(0.3, ANN, "purchase", PAN, "also_bought", KNIFE, "also_bought", LID)
    back = path(0.2, ANN, "purchase", KNIFE, "also_bought", PAN, "also_bought", LID)
    for way in drawn(there, back).iter(f"{SVG}path"):
        numbers = [float(n) for n in re.findall(r"[\d.]+", way.get("d"))]
        assert numbers[0] < numbers[-2]


def test_a_product_bought_before_and_recommended_again_is_a_node_of_its_own_in_the_history():
    again = path(0.3, ANN, "purchase", LID, "brand", NORDFELL, "<brand", LID)
    glass = PathNode("m1", "material", "glass")
    too = path(0.2, ANN, "purchase", LID, "material", glass, "<material", LID)
    looks = [g.get("class") for g in drawn(again, too).iter(f"{SVG}g")]
    assert sorted(looks) == ["e0", "e1", "goal", "item", "user"]


def test_without_paths_it_says_so():
    svg = drawn()
    assert "No path in the graph carried this score." in "".join(svg.itertext())
    assert not list(svg.iter(f"{SVG}path"))


def test_it_is_an_image_with_a_title_and_a_full_description():
    svg = drawn(BY_PAN, DIRECT)
    assert svg.get("role") == "img"
    title, desc = svg.find(f"{SVG}title"), svg.find(f"{SVG}desc")
    assert svg.get("aria-labelledby").split() == [title.get("id"), desc.get("id")]
    assert title.text == "Why Glass Lid for ann"
    assert desc.text == (
        "2 paths in the graph, strongest first. "
        "1. ann —bought→ Frying Pan —brand→ Nordfell ←brand— Glass Lid (30%) "
        "2. ann —bought→ Frying Pan —also bought→ Glass Lid (−5.0%)"
    )


def test_ids_differ_between_the_drawings_of_one_page():
    first, second = drawn(BY_PAN), drawn(BY_KNIFE)
    assert first.find(f"{SVG}title").get("id") != second.find(f"{SVG}title").get("id")


@pytest.mark.parametrize(
    "name",
    [
        '<script>alert("1")</script>',
        "a & b 'c' \"d\"",
        "保温杯",
        "x\x00y\x1b",
        "{{ 7 * 7 }}",
        "é\ud800",
    ],
)
def test_any_name_gives_valid_xml_and_reads_as_given(name):
    entity = PathNode(name, name, name)
    text = draw_paths(explanation(path(0.3, ANN, "view", PAN, name, entity, name, LID)))
    svg = ET.fromstring(text.encode("utf-8"))
    assert "<script" not in text
    readable = re.sub("[\x00\x1b\ud800]", "\ufffd", name)
    assert readable in [g.findtext(f"{SVG}title") for g in svg.iter(f"{SVG}g")]


def test_long_names_are_cut_on_the_node_and_full_in_its_title():
    long = PathNode("p9", "item", "Stock pot of ten litres with lid and steamer insert")
    group = next(
        g
        for g in drawn(path(0.3, ANN, "view", long, "also_bought", LID)).iter(f"{SVG}g")
        if g.findtext(f"{SVG}title") == long.name
    )
    lines = [text.text for text in group.iter(f"{SVG}text")]
    assert lines == ["Stock pot of ten", "litres with lid and…", "product"]


def test_wide_characters_count_double():
    assert text_width("保温", 13) == pytest.approx(text_width("abcd", 13))
    cut = drawn(path(0.3, ANN, "view", PathNode("z", "item", "保" * 40), "r", LID))
    lines = [t.text for t in cut.iter(f"{SVG}text") if "保" in (t.text or "")]
    assert lines == ["保" * 10, "保" * 9 + "…"]


def test_nothing_outside_is_referred_to():
    text = draw_paths(explanation(BY_PAN, BY_KNIFE)).replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|href|src=|url\(|@import|@font-face|<script|<image", text)
    assert "prefers-color-scheme:dark" in text


def test_path_texts_point_the_arrows_as_the_edges_are_stored():
    assert path_texts(explanation(BY_KNIFE)) == (
        "ann —viewed→ Knife —brand→ Nordfell ←brand— Glass Lid (10%)",
    )


BOB = PathNode("u2", "user", "bob.smith")
OVER_BOB = path(0.1, ANN, "purchase", PAN, "<view", BOB, "purchase", LID)


def test_another_user_is_not_named():
    svg = draw_paths(explanation(OVER_BOB))
    assert "bob" not in svg
    assert "another customer" in boxes(ET.fromstring(svg))
    assert path_texts(explanation(OVER_BOB)) == (
        "ann —bought→ Frying Pan ←viewed— another customer —bought→ Glass Lid (10%)",
    )


def test_users_of_whom_one_stands_for_many_are_drawn_as_one():
    """.1 alone, .3 with eleven more like it; the lines carry them all."""
    many = replace(OVER_BOB, others=11, others_contribution=0.2)
    svg = drawn(many)
    assert {"ann", "Frying Pan", "12 other customers", "Glass Lid"} == set(boxes(svg))
    assert sorted(labels(svg)) == sorted(["bought 30%", "← viewed 30%", "bought 30%"])
    assert "(10%; with 11 more like it 30%)" in svg.findtext(f"{SVG}desc")


def test_an_edge_at_a_user_leaves_it_though_ids_are_the_same():
    """User 7 bought item 7: which end is meant is told by the types."""
    seven, other = PathNode("7", "user", "7"), PathNode("7", "item", "Pan")
    edges = (PathEdge("purchase", "7", "7"), PathEdge("also_bought", "p2", "7"))
    same = Path((seven, other, LID), edges, 0.3)
    assert same.backward() == (False, True)
    assert path_texts(explanation(same)) == ("7 —bought→ Pan ←also bought— Glass Lid (30%)",)


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2)."""
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_stands_out(scheme):
    blocks = re.findall(r"\.kgp\{(--.*?)\}", draw_paths(explanation(BY_PAN)), re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+):(#\w{6})", blocks[scheme]))
    grounds = [g for g in colours if g in ("paper", "user", "item") or re.fullmatch(r"e\d", g)]
    pairs = [(ink, ground) for ink in ("ink", "muted") for ground in grounds]
    assert len(pairs) == 14
    for ink, ground in [*pairs, ("goal-ink", "goal")]:
        high, low = sorted((luminance(colours[ink]), luminance(colours[ground])), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)
