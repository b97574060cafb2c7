"""What a reader is told: true to the arithmetic, short, and the same facts in both languages."""

from dataclasses import replace

import pytest

from kgrank.errors import ConfigError
from kgrank.serving.explanation import EventShare, Path, PathEdge, PathNode
from kgrank.serving.wording import describe, event_words, percent, relation_words, share
from kgrank.settings import WordingSettings

USER = PathNode("u1", "user", "ann")
PAN = PathNode("p1", "item", "Frying Pan")
LID = PathNode("p2", "item", "Glass Lid")
NORDFELL = PathNode("b1", "brand", "Nordfell")
COOKWARE = PathNode("c1", "category", "Cookware")
NAMES = {"p1": "Frying Pan", "p2": "Glass Lid", "p3": "Chef's Knife"}
TWO_PANS = (EventShare("p1", "purchase", 0.3), EventShare("p1", "purchase", 0.2))
KNIFE = EventShare("p3", "view", 0.4)


def shares(entity: PathNode, relation: str, contribution: float, known: PathNode = PAN) -> Path:
    """ann bought the pan; pan and lid share an entity."""
    edges = (
        PathEdge("purchase", "u1", known.id),
        PathEdge(relation, known.id, entity.id),
        PathEdge(relation, "p2", entity.id),
    )
    return Path((USER, known, entity, LID), edges, contribution)


def say(**parts):
    given = {
        "bias": 0.1,
        "contributions": {"graph": 0.5, "linear": 0.4},
        "events": TWO_PANS,
        "paths": (shares(NORDFELL, "brand", 0.3),),
        "item_names": NAMES,
        "language": "en",
    }
    return describe(**(given | parts))


def test_one_product_and_what_both_share():
    assert say() == (
        "You bought “Frying Pan” (twice); both are from brand Nordfell. "
        "People who bought what you chose before also bought it."
    )
    assert say(language="zh") == (
        "您购买过“Frying Pan”（两次）；两者有相同的品牌（Nordfell）。购买您选过的商品的人也购买它。"
    )


def test_two_products_name_the_one_the_path_passes():
    said = say(events=(*TWO_PANS, KNIFE))
    assert said.startswith("You bought “Frying Pan” (twice) and viewed “Chef's Knife”. ")
    assert "Like “Frying Pan”, it is from brand Nordfell." in said
    assert "People who bought these also bought it." in said


def test_a_second_product_far_behind_is_not_named():
    far_behind = EventShare("p3", "view", 0.1)
    assert "Knife" not in say(events=(*TWO_PANS, far_behind))


def test_two_facts_of_the_same_product_and_not_a_third():
    paths = (
        shares(COOKWARE, "category", 0.2),
        shares(NORDFELL, "brand", 0.3),
        shares(PathNode("m", "material", "steel"), "material", 0.1),
    )
    assert "both are from brand Nordfell and are in category Cookware." in say(paths=paths)


def test_a_path_that_spoke_against_is_no_reason():
    against = shares(NORDFELL, "brand", -0.3)
    assert say(bias=0.0, contributions={"linear": 0.4}, paths=(against,)) == (
        "You bought “Frying Pan” (twice). People who bought what you chose before also bought it."
    )
    said = say(paths=(against, shares(COOKWARE, "category", 0.2)))
    assert "both are in category Cookware." in said


def test_popularity_that_outweighs_the_history_is_said_first():
    said = say(bias=2.0)
    assert said.startswith(
        "This is mostly because it is popular right now; your own history says little."
    )
    assert "Nordfell" in said
    assert "People who" not in said
    assert say(bias=2.0, language="zh").startswith("推荐它主要是因为它最近很受欢迎")


def test_the_trend_channel_counts_as_popularity():
    contributions = {"graph": 0.5, "trend": 2.0}
    assert say(bias=0.0, contributions=contributions).startswith("This is mostly because")


def test_popularity_that_is_a_main_part_is_named_among_the_channels():
    assert "it has been popular in recent weeks" in say(bias=0.6, contributions={"linear": 0.7})
    assert "popular" not in say(bias=0.1, contributions={"linear": 0.7})


def test_a_product_without_history_is_called_new_not_popular():
    new = {"is_new": True, "contributions": {"text": 0.7}}
    assert say(bias=2.0, **new).startswith("This is mostly because it is new; your own")
    assert "and it is new." in say(bias=0.6, **new)
    assert "new" not in say(bias=0.1, **new)
    assert "popular" not in "".join(say(bias=bias, **new) for bias in (0.1, 0.6, 2.0))
    assert say(bias=2.0, language="zh", **new).startswith("推荐它主要是因为它是新品")


@pytest.mark.parametrize(
    ("bias", "said"),
    [
        (1.0, "This is only because it is popular right now; your own history does not speak"),
        (-1.0, "Neither your own history nor its popularity speaks for this product."),
    ],
)
def test_a_history_that_speaks_against_is_not_dressed_up(bias, said):
    text = say(bias=bias, contributions={"linear": -0.2})
    assert text.startswith(said)
    assert "Frying Pan" not in text


@pytest.mark.parametrize(
    ("channel", "words"),
    [
        ("linear", "People who bought what you chose before also bought it."),
        ("directed", "It is often bought next after what you chose before."),
        ("text", "It is described in similar words."),
        ("embedding", "It is described in similar words."),
        ("image", "Its picture looks similar."),
        ("graph", "It shares attributes with what you chose before."),
        ("repeat", "You chose it before."),
        ("novel", "The channel 'novel' speaks for it."),
    ],
)
def test_each_channel_in_plain_words(channel, words):
    assert say(contributions={channel: 1.0}, events=(), paths=()) == words


def test_a_picture_in_chinese():
    said = say(contributions={"image": 1.0}, events=(), paths=(), language="zh")
    assert said == "它的图片看起来相近。"


def test_text_and_embedding_say_one_thing_and_count_together():
    """linear .40 leads each of text .30 and embedding .30, but not the two together."""
    said = say(contributions={"linear": 0.4, "text": 0.3, "embedding": 0.3}, paths=(), events=())
    assert said == (
        "It is described in similar words, "
        "and people who bought what you chose before also bought it."
    )


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("view", "You viewed “Frying Pan”"),
        ("click", "You clicked “Frying Pan”"),
        ("cart", "You put “Frying Pan” in the cart"),
        ("purchase", "You bought “Frying Pan”"),
        ("rating", "You rated “Frying Pan”"),
        ("redeem", "You redeemed a coupon for “Frying Pan”"),
        ("interaction", "You chose “Frying Pan”"),
        ("gift {0}", "You had an event 'gift {0}' on “Frying Pan”"),
    ],
)
def test_event_kinds(kind, words):
    assert say(events=(EventShare("p1", kind, 1.0),), paths=()).startswith(words + ".")


def test_unknown_relations_use_their_own_name():
    director = PathNode("d", "person", "Varda")
    assert "both have film directed by Varda" in say(
        paths=(shares(director, "film.directed_by", 0.3),)
    )
    assert "相同的film directed by（Varda）" in say(
        paths=(shares(director, "film.directed_by", 0.3),), language="zh"
    )


def test_relations_of_the_sample_shop_have_chinese_names():
    style = PathNode("s", "style", "vintage")
    assert "相同的风格（vintage）" in say(paths=(shares(style, "style", 0.3),), language="zh")


def test_a_direct_link_and_a_chain():
    bought = PathEdge("purchase", "u1", "p1")
    link = Path((USER, PAN, LID), (bought, PathEdge("also_bought", "p1", "p2")), 0.3)
    assert "It is linked to “Frying Pan” as “also bought”." in say(paths=(link,))
    tie = Path((USER, PAN, LID), (bought, PathEdge("compatible_with", "p2", "p1")), 0.3)
    assert "It is compatible with “Frying Pan”." in say(paths=(tie,))
    assert "它与“Frying Pan”兼容" in say(paths=(tie,), language="zh")
    own = WordingSettings(en={"also_bought": ("often leaves with {name}",)})
    assert "It often leaves with “Frying Pan”." in say(paths=(link,), settings=own)
    edges = (bought, *(PathEdge("part_of", a, b) for a, b in (("p1", "c1"), ("c1", "b1"))))
    chain = Path((USER, PAN, COOKWARE, NORDFELL, LID), (*edges, PathEdge("brand", "p2", "b1")), 0.3)
    assert "It is linked to “Frying Pan” through “Cookware” and “Nordfell”." in say(paths=(chain,))


def test_a_path_that_leaves_the_user_by_an_attribute_names_no_product():
    age = PathNode("a", "age", "25 to 34")
    edges = (PathEdge("age", "u1", "a"), PathEdge("fits_age", "p2", "a"))
    said = say(paths=(Path((USER, age, LID), edges, 0.3),))
    assert "25 to 34" not in said


BOB = PathNode("u2", "user", "bob.smith")
OVER_BOB = Path(
    (USER, PAN, BOB, LID),
    (
        PathEdge("purchase", "u1", "p1"),
        PathEdge("view", "u2", "p1"),
        PathEdge("purchase", "u2", "p2"),
    ),
    0.2,
)


def test_another_user_on_a_path_is_someone():
    said = say(paths=(OVER_BOB,))
    assert said == (
        "You bought “Frying Pan” (twice). Someone who viewed “Frying Pan” also bought it. "
        "It shares attributes with what you chose before."
    )
    assert say(paths=(OVER_BOB,), language="zh").startswith(
        "您购买过“Frying Pan”（两次）。有一位顾客浏览过“Frying Pan”，也购买过它。"
    )


def test_users_of_whom_one_stands_for_many_are_counted():
    """Nine more, of whom nobody knows here whether they viewed or bought."""
    path = replace(OVER_BOB, others=9, others_contribution=0.2)
    assert "10 customers who chose “Frying Pan” also chose it." in say(paths=(path,))
    assert "有10位顾客选择过“Frying Pan”，也选择过它。" in say(paths=(path,), language="zh")


def test_together_they_go_before_one_entity_that_carries_more_than_each():
    """0.2 and 0.2 of all over bob and others, 0.3 over the brand."""
    path = replace(OVER_BOB, others=9, others_contribution=0.2)
    said = say(paths=(shares(NORDFELL, "brand", 0.3), path))
    assert "10 customers" in said
    assert "Nordfell" not in said


def test_a_path_that_carries_next_to_nothing_is_called_weak():
    """0.03 of 0.1 + 0.5 + 0.4 is less than a twentieth."""
    knife = PathNode("p3", "item", "Chef's Knife")
    path = shares(NORDFELL, "brand", 0.03, known=knife)
    said = say(paths=(path,), events=(*TWO_PANS, KNIFE))
    assert "One weak reason among many: like “Chef's Knife”, it is from brand Nordfell." in said
    assert "众多理由中较弱的一个" in say(paths=(path,), events=(*TWO_PANS, KNIFE), language="zh")


def test_a_shop_says_its_relations_in_its_own_words():
    settings = WordingSettings(
        en={"brand": ("is made by {name}", "are both made by {name}")},
        zh={"brand": ("产地（{name}）",)},
    )
    assert "; both are both made by Nordfell." in say(settings=settings)
    said = say(settings=settings, events=(*TWO_PANS, KNIFE))
    assert "Like “Frying Pan”, it is made by Nordfell." in said
    assert "两者有相同的产地（Nordfell）" in say(settings=settings, language="zh")
    braces = PathNode("b1", "brand", "{name} {0}")
    assert "both made by {name} {0}." in say(
        settings=settings, paths=(shares(braces, "brand", 0.3),)
    )


@pytest.mark.parametrize("templates", [[], ["made by"], ["{name} {name}"], ["{name}"] * 3])
def test_words_of_relations_have_the_name_once(templates):
    with pytest.raises(ConfigError, match=r"allowed: one or two texts, each with \{name\} once"):
        WordingSettings.from_dict({"en": {"brand": templates}}, "kgrank.toml")


def test_a_path_through_a_product_that_no_event_names():
    wok = PathNode("p9", "item", "Wok")
    said = say(paths=(shares(NORDFELL, "brand", 0.3, known=wok),))
    assert "Like “Wok” from your history, it is from brand Nordfell." in said


def test_names_are_never_templates_and_are_cut_when_long():
    assert "“{x} {0}”" in say(item_names={"p1": "{x} {0}"})
    long = say(item_names={"p1": "pan " * 40})
    assert "…”" in long
    assert len(long) < 250
    assert "“p1”" in say(item_names={"p1": "  "})


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("bias", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("events", [(), TWO_PANS, (*TWO_PANS, KNIFE)])
def test_one_to_three_sentences(language, bias, events):
    stop = "。" if language == "zh" else ". "
    sentences = (say(bias=bias, events=events, language=language) + " ").split(stop)[:-1]
    assert 1 <= len(sentences) <= 3


def test_an_unknown_language_is_refused_with_those_that_are_known():
    with pytest.raises(ConfigError, match="found 'fr'; allowed: en, zh"):
        say(language="fr")


def test_share_counts_what_moved_the_score_either_way():
    """|−.5| + .2 + |−.3| = 1; a part of .2 is a fifth, one of −.3 is −30 %."""
    contributions = {"linear": 0.2, "text": -0.3}
    assert share(0.2, -0.5, contributions) == pytest.approx(0.2)
    assert share(-0.3, -0.5, contributions) == pytest.approx(-0.3)
    assert share(1.0, 0.0, {}) == 0.0


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.423, "42%"), (0.0314, "3.1%"), (-0.0042, "−0.4%"), (0.0001, "<0.1%"), (0.0, "0%")],
)
def test_percent(value, text):
    assert percent(value) == text


def test_words_of_relations_and_events_on_their_own():
    assert relation_words("film.film_genre") == "film film genre"
    assert event_words("cart") == "put in the cart"
    assert event_words("wish_list") == "wish list"
