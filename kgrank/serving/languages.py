"""The templates that reasons are worded from, in each language."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# The preposition a relation takes, by the last word of its name.
PREPOSITIONS = {
    **dict.fromkeys(("author", "brand", "maker", "manufacturer", "publisher", "seller"), "from"),
    **dict.fromkeys(("aisle", "category", "department", "genre", "subcategory"), "in"),
}


@dataclass(frozen=True)
class Language:
    """The templates of one language. `{x}` stands for a product, `{these}` for the history."""

    events: Mapping[str, str]
    unknown_event: str
    channels: Mapping[str, str]
    unknown_channel: str
    relations: Mapping[str, str]
    quoted: str
    times: Mapping[int, str]
    many_times: str
    and_event: str
    history: str
    and_name: str
    and_clause: str
    these: str
    any_of: str
    fact: Mapping[str, tuple[str, str]]  # by preposition: said of one product, of two
    like: str
    both: str
    ties: Mapping[str, str]  # relations that read alike from both ends, said of a product
    own_tie: str  # in a shop's own words
    linked: str
    through: str
    someone: str  # another user, by what was done with one product and the other
    several: str
    it: str
    weak: str
    from_history: str
    because: Mapping[str, str]  # what everybody gets it for: "trend" or "new"
    mostly: str
    only: str
    no_reason: str
    stop: str
    gap: str


ENGLISH = Language(
    events={
        "view": "viewed {x}",
        "click": "clicked {x}",
        "cart": "put {x} in the cart",
        "purchase": "bought {x}",
        "rating": "rated {x}",
        "redeem": "redeemed a coupon for {x}",
        "interaction": "chose {x}",
        "not_interested": "were not interested in {x}",
    },
    unknown_event="had an event '{kind}' on {x}",
    channels={
        "linear": "people who bought {these} also bought it",
        "directed": "it is often bought next after {these}",
        "learned": "people with a history like yours chose it next",
        "text": "it is described in similar words",
        "embedding": "it is described in similar words",
        "image": "its picture looks similar",
        "graph": "it shares attributes with {these}",
        "repeat": "you chose it before",
        "trend": "it has been popular in recent weeks",
        "new": "it is new",
        "rules": "the shop's rules push it",
    },
    unknown_channel="the channel '{channel}' speaks for it",
    relations={},
    quoted="“{x}”",
    times={2: " (twice)"},
    many_times=" ({n} times)",
    and_event=" and ",
    history="You {events}",
    and_name=" and ",
    and_clause=", and ",
    these="these",
    any_of="what you chose before",
    fact={
        "from": ("is from {relation} {name}", "are from {relation} {name}"),
        "in": ("is in {relation} {name}", "are in {relation} {name}"),
        "": ("has {relation} {name}", "have {relation} {name}"),
    },
    like="like {x}, it {facts}",
    both="{history}; both {facts}",
    ties={
        "compatible with": "it is compatible with {x}",
        "goes with": "it goes with {x}",
        "pairs with": "it pairs with {x}",
        "similar to": "it is similar to {x}",
        "works with": "it works with {x}",
    },
    own_tie="it {fact}",
    linked="it is linked to {x} as “{relation}”",
    through="it is linked to {x} through {names}",
    someone="someone who {done} also {also}",
    several="{n} customers who {done} also {also}",
    it="it",
    weak="one weak reason among many: {reason}",
    from_history="{x} from your history",
    because={"trend": "it is popular right now", "new": "it is new"},
    mostly="This is mostly because {because}; your own history says little",
    only="This is only because {because}; your own history does not speak for it",
    no_reason="Neither your own history nor its popularity speaks for this product",
    stop=".",
    gap=" ",
)

CHINESE = Language(
    events={
        "view": "浏览过{x}",
        "click": "点击过{x}",
        "cart": "把{x}加入过购物车",
        "purchase": "购买过{x}",
        "rating": "评价过{x}",
        "redeem": "用优惠券换购过{x}",
        "interaction": "选择过{x}",
        "not_interested": "对{x}不感兴趣",
    },
    unknown_event="对{x}有过“{kind}”事件",
    channels={
        "linear": "购买{these}的人也购买它",
        "directed": "人们常在{these}之后购买它",
        "learned": "历史记录与您相近的人接着选了它",
        "text": "它的描述用词相近",
        "embedding": "它的描述用词相近",
        "image": "它的图片看起来相近",
        "graph": "它与{these}有共同的属性",
        "repeat": "您以前选过它",
        "trend": "它近几周很受欢迎",
        "new": "它是新品",
        "rules": "店铺规则推荐它",
    },
    unknown_channel="通道“{channel}”支持它",
    relations={
        "aisle": "货架",
        "also bought": "一同购买",
        "artist": "艺术家",
        "author": "作者",
        "brand": "品牌",
        "category": "类别",
        "color": "颜色",
        "colour": "颜色",
        "compatible with": "适配",
        "country": "国家",
        "department": "部门",
        "director": "导演",
        "flavor": "口味",
        "flavour": "口味",
        "format": "版式",
        "gender": "性别",
        "genre": "类型",
        "is a": "种类",
        "language": "语言",
        "made by": "制造商",
        "made of": "材质",
        "maker": "制造商",
        "manufacturer": "制造商",
        "material": "材质",
        "pairs with": "搭配",
        "part of": "所属",
        "pattern": "图案",
        "platform": "平台",
        "publisher": "出版社",
        "season": "季节",
        "seller": "卖家",
        "series": "系列",
        "shipping": "配送方式",
        "size": "尺码",
        "style": "风格",
        "subcategory": "子类别",
        "tag": "标签",
    },
    quoted="“{x}”",
    times={2: "（两次）"},
    many_times="（{n}次）",
    and_event="，也",
    history="您{events}",
    and_name="和",
    and_clause="；",
    these="这些商品",
    any_of="您选过的商品",
    fact=dict.fromkeys(("from", "in", ""), ("{relation}（{name}）",) * 2),
    like="它与{x}有相同的{facts}",
    both="{history}；两者有相同的{facts}",
    ties={
        "compatible with": "它与{x}兼容",
        "goes with": "它与{x}相配",
        "pairs with": "它适合与{x}搭配",
        "similar to": "它与{x}相似",
        "works with": "它可与{x}一起使用",
    },
    own_tie="它的{fact}",
    linked="它通过“{relation}”与{x}相连",
    through="它经由{names}与{x}相连",
    someone="有一位顾客{done}，也{also}",
    several="有{n}位顾客{done}，也{also}",
    it="它",
    weak="众多理由中较弱的一个：{reason}",
    from_history="您历史记录中的{x}",
    because={"trend": "它最近很受欢迎", "new": "它是新品"},
    mostly="推荐它主要是因为{because}；您自己的历史记录说明不了多少",
    only="推荐它只是因为{because}；您自己的历史记录并不支持它",
    no_reason="您的历史记录和它的受欢迎程度都不支持这件商品",
    stop="。",
    gap="",
)

LANGUAGES = {"en": ENGLISH, "zh": CHINESE}
