"""Texts and histories changed a little each time they are learned from, in training alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from kgrank.errors import ConfigError

Translate = Callable[[list[str]], list[str]]
"""Says texts in other words, such as by translation to another language and back: one each."""

_SENTENCE = re.compile(r"(?<=[.!?;])\s+|(?<=[。！？；])\s*")


def in_other_words(translate: Translate, texts: Sequence[str]) -> list[str]:
    """What `translate` says of the texts, one each.

    Raises:
        ConfigError: it gives no list of as many texts.
    """
    said: object = translate(list(texts))
    if not isinstance(said, (list, tuple)):
        found = f"{type(said).__name__}"
    elif len(said) != len(texts):
        found = f"{len(said)} texts for {len(texts)}"
    elif strange := [one for one in said if not isinstance(one, str)]:
        found = f"{type(strange[0]).__name__} among its texts"
    else:
        return list(said)
    raise ConfigError(
        f"translate: found {found}; allowed: a list of texts, one for each. Correct the function."
    )


def shuffled_sentences(text: str, rng: np.random.Generator) -> str:
    """The text with its sentences in another order; one of a single sentence stays."""
    sentences = [part for part in _SENTENCE.split(text) if part]
    if len(sentences) < 2:
        return text
    return " ".join(sentences[place] for place in rng.permutation(len(sentences)))


def masked_tokens(
    ids: Sequence[int], special: frozenset[int], mask: int, share: float, rng: np.random.Generator
) -> list[int]:
    """The tokens, each but the special ones replaced by `mask` with probability `share`.

    At least one stays.
    """
    plain = [place for place, token in enumerate(ids) if token not in special]
    hidden = rng.random(len(plain)) < share
    if len(plain) and hidden.all():
        hidden[rng.integers(len(plain))] = False
    changed = list(ids)
    for place, hide in zip(plain, hidden, strict=True):
        if hide:
            changed[place] = mask
    return changed


def dropped_events(
    history: npt.NDArray[np.int64], share: float, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Histories without some of their events, of which one stays at least.

    Args:
        history: (n × window) int64 newest first, -1 for none.
        share: probability that an event is dropped; those that stay keep their order.
        rng: what is drawn from.
    """
    drawn = np.where(history >= 0, rng.random(history.shape), -1.0)
    keep = drawn >= share
    best = drawn.argmax(axis=1)
    rows = np.arange(len(history))
    keep[rows, best] |= history[rows, best] >= 0
    return _moved_up(np.where(keep, history, -1))


def joined_histories(
    history: npt.NDArray[np.int64], share: float, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Histories behind which, with probability `share`, that of another row stands as older one.

    What does not fit in the window falls away.
    """
    other = history[rng.permutation(len(history))]
    other = np.where((rng.random(len(history)) < share)[:, None], other, -1)
    return _moved_up(np.concatenate([history, other], axis=1))[:, : history.shape[1]]


def _moved_up(history: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The same with the gaps at the end of each row."""
    order = np.argsort(history < 0, axis=1, kind="stable")
    return np.take_along_axis(history, order, axis=1)
