"""A reason in words: one to three sentences from templates, in English or Chinese.

The sentences say no more than the arithmetic does. Where popularity carries most of a score, or
that the product is new, the first sentence says so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from kgrank.errors import ConfigError
from kgrank.serving.explanation import EventShare, Path
from kgrank.serving.languages import ENGLISH, LANGUAGES, PREPOSITIONS, Language
from kgrank.settings import WordingSettings

# A channel below this part of everything that speaks for the product is not worth a clause.
MAIN_CHANNEL_SHARE = 0.2
# A path that carried less than this part of everything is called a weak reason.
WEAK_PATH_SHARE = 0.05
# A second product is named only when it brought at least this part of what the first one did.
SECOND_ITEM_SHARE = 1 / 3
MAX_NAME_LENGTH = 60


def describe(
    *,
    bias: float,
    contributions: Mapping[str, float],
    events: Sequence[EventShare],
    paths: Sequence[Path],
    item_names: Mapping[str, str],
    is_new: bool = False,
    language: str = "en",
    settings: WordingSettings | None = None,
) -> str:
    """Words a score's parts in one to three sentences.

    Args:
        bias: what the product gets from everybody, in the score's unit: for its popularity or, a
            product without history, for being new.
        contributions: what each channel brought, in the same unit.
        events: what each event of the history brought.
        paths: the graph paths that carried something.
        item_names: names by item id; the id stands in for a missing or empty name.
        is_new: whether the product is one without history.
        language: "en" or "zh".
        settings: a shop's own words for its relations.

    Raises:
        ConfigError: the language is not known.
    """
    if language not in LANGUAGES:
        known = ", ".join(sorted(LANGUAGES))
        raise ConfigError(f"language: found {language!r}; allowed: {known}. Choose one of them.")
    words = LANGUAGES[language]
    own: Mapping[str, tuple[str, ...]] = getattr(settings, language) if settings else {}
    of_all = "new" if is_new else "trend"
    common = bias + contributions.get("trend", 0.0)
    personal = sum(part for channel, part in contributions.items() if channel != "trend")
    because = words.because[of_all]
    if personal <= 0:
        return (words.only.format(because=because) if common > 0 else words.no_reason) + words.stop

    spoke = [p for p in paths if p.contribution > 0 and len(p.nodes) > 2]
    by_history = [p for p in spoke if p.nodes[1].type == "item"]
    path = max(by_history, key=lambda path: path.together, default=None)
    items = _main_items(events, path)
    weak = common > personal
    sentences = [words.mostly.format(because=because)] if weak else []
    if items:
        done = _event_clauses(events, items, item_names, words)
        sentences.append(words.history.format(events=words.and_event.join(done)))
    if path is not None and _shared(path) and items == [path.nodes[1].id]:
        facts = _facts(path, paths, words, own, of_two=True)
        sentences[-1] = words.both.format(history=sentences[-1], facts=facts)
    elif path is not None:
        reason = _path_clause(path, paths, items, item_names, words, own)
        little = share(path.together, bias, contributions) < WEAK_PATH_SHARE
        sentences.append(words.weak.format(reason=reason) if little else reason)
    if not weak:
        these = words.these if len(items) > 1 else words.any_of
        spoken = {of_all: common, **{c: x for c, x in contributions.items() if c != "trend"}}
        said = () if path is None else ("linear",) if path.over_user else ("graph",)
        clauses = _channel_clauses(spoken, these, words, already=said)
        sentences += [words.and_clause.join(clauses)] if clauses else []
    # Only the first letter: str.capitalize would lower the names.
    return words.gap.join(s[:1].upper() + s[1:] + words.stop for s in sentences)


def relation_words(relation: str) -> str:
    """A relation's own name as words: "film.directed_by" reads "film directed by"."""
    return " ".join(relation.replace("_", " ").replace(".", " ").split()) or relation


def event_words(kind: str) -> str:
    """What an event kind is called on an edge from a user: "purchase" reads "bought"."""
    template = ENGLISH.events.get(kind)
    return relation_words(kind if template is None else template.format(x=""))


def channel_words(channel: str) -> str:
    """A channel's reason in plain English, as half a sentence."""
    template = ENGLISH.channels.get(channel, ENGLISH.unknown_channel)
    return template.format(these=ENGLISH.these, channel=channel)


def share(part: float, bias: float, contributions: Mapping[str, float]) -> float:
    """`part` over everything that moved the score, up or down: |bias| + Σ |contribution|."""
    moved = abs(bias) + sum(map(abs, contributions.values()))
    return part / moved if moved > 0 else 0.0


def percent(value: float) -> str:
    """A share for people: "42%", "3.1%", "−0.4%", "<0.1%"."""
    size = abs(value)
    if 0 < size < 0.0005:
        return "<0.1%"
    sign = "−" if value < 0 else ""
    return sign + (f"{size:.0%}" if size >= 0.0995 or size == 0 else f"{size:.1%}")


def _name(item_id: str, item_names: Mapping[str, str], words: Language) -> str:
    name = item_names.get(item_id, "").strip() or item_id
    if len(name) > MAX_NAME_LENGTH:
        name = name[: MAX_NAME_LENGTH - 1].rstrip() + "…"
    return words.quoted.format(x=name)


def _main_items(events: Sequence[EventShare], path: Path | None) -> list[str]:
    """One or two products of the history to name: the strongest, and the path's or the next."""
    brought: defaultdict[str, float] = defaultdict(float)
    for event in events:
        brought[event.item_id] += event.contribution
    ranked = sorted((i for i in brought if brought[i] > 0), key=lambda i: -brought[i])
    if len(ranked) < 2:
        return ranked
    first, second = ranked[:2]
    if path is not None and path.nodes[1].id in ranked[1:]:
        return [first, path.nodes[1].id]
    return [first, second] if brought[second] >= SECOND_ITEM_SHARE * brought[first] else [first]


def _event_clauses(
    events: Sequence[EventShare],
    items: Sequence[str],
    item_names: Mapping[str, str],
    words: Language,
) -> list[str]:
    """What was done with each product, by the event kind that brought most, and how often."""
    done: defaultdict[str, list[str]] = defaultdict(list)
    for item_id in items:
        brought: defaultdict[str, float] = defaultdict(float)
        own = [event for event in events if event.item_id == item_id]
        for event in own:
            brought[event.event] += event.contribution
        kind = max(brought, key=lambda kind: brought[kind])
        n = sum(event.event == kind for event in own)
        times = "" if n == 1 else words.times.get(n, words.many_times.format(n=n))
        done[kind].append(_name(item_id, item_names, words) + times)
    return [
        words.events.get(kind, words.unknown_event).format(x=words.and_name.join(names), kind=kind)
        for kind, names in done.items()
    ]


def _shared(path: Path) -> bool:
    """Whether the path is user → product → entity → product over one relation."""
    if len(path.nodes) != 4 or path.nodes[2].type in ("user", "item"):
        return False
    return path.edges[1].relation == path.edges[2].relation


def _facts(
    path: Path,
    paths: Sequence[Path],
    words: Language,
    own: Mapping[str, tuple[str, ...]],
    *,
    of_two: bool,
) -> str:
    """What the path's product of the history shares with this one; at most two things."""
    like = [p for p in paths if _shared(p) and p.contribution > 0 and p.nodes[1] == path.nodes[1]]
    like.sort(key=lambda p: -p.contribution)
    shared = list(dict.fromkeys((p.edges[1].relation, p.nodes[2].name) for p in like))[:2]
    clauses = []
    for relation, name in shared:
        if relation in own:
            clauses.append(own[relation][-1 if of_two else 0].replace("{name}", name))
            continue
        said = relation_words(relation)
        template = words.fact[PREPOSITIONS.get(said.lower().rpartition(" ")[2], "")][of_two]
        relation_said = words.relations.get(said.lower(), said)
        clauses.append(template.format(relation=relation_said, name=name))
    return words.and_name.join(clauses)


def _path_clause(
    path: Path,
    paths: Sequence[Path],
    items: Sequence[str],
    item_names: Mapping[str, str],
    words: Language,
    own: Mapping[str, tuple[str, ...]],
) -> str:
    """How the path's product of the history and this one hang together."""
    known = path.nodes[1]
    x = _name(known.id, {known.id: item_names.get(known.id, known.name)}, words)
    if path.over_user and len(path.nodes) == 4:  # another user's name is nobody's business
        n, kinds = path.others + 1, [edge.relation for edge in path.edges[1:]]
        if n > 1:  # the others may have done something else
            kinds = ["interaction"] * 2
        done, also = (
            words.events.get(kind, words.unknown_event).format(x=of, kind=kind)
            for kind, of in zip(kinds, (x, words.it), strict=True)
        )
        return (words.someone if n == 1 else words.several).format(n=n, done=done, also=also)
    if known.id not in items:
        x = words.from_history.format(x=x)
    if _shared(path):
        return words.like.format(x=x, facts=_facts(path, paths, words, own, of_two=False))
    if len(path.nodes) == 3:
        relation = path.edges[1].relation
        if relation in own:
            return words.own_tie.format(fact=own[relation][0].replace("{name}", x))
        said = relation_words(relation)
        tie = words.ties.get(said.lower(), words.linked)
        return tie.format(x=x, relation=words.relations.get(said.lower(), said))
    names = (words.quoted.format(x=node.name) for node in path.nodes[2:-1] if node.type != "user")
    return words.through.format(x=x, names=words.and_name.join(names))


def _channel_clauses(
    spoken: Mapping[str, float], these: str, words: Language, *, already: Sequence[str]
) -> list[str]:
    """The one or two channels that spoke most for the product, each as half a sentence.

    What channels in `already` say has been said.
    """
    total = sum(part for part in spoken.values() if part > 0)
    brought: defaultdict[str, float] = defaultdict(float)  # two channels may say the same
    for channel, part in spoken.items():
        template = words.channels.get(channel, words.unknown_channel)
        brought[template.format(these=these, channel=channel)] += part
    ranked = sorted((c for c in brought if brought[c] > 0), key=lambda c: -brought[c])
    main = ranked[:1] + [c for c in ranked[1:] if brought[c] >= MAIN_CHANNEL_SHARE * total]
    said = [words.channels[channel].format(these=these) for channel in already]
    return [clause for clause in main if clause not in said][:2]
