"""What an encoder takes for a text, for one that says something, and for one it cannot read."""

from __future__ import annotations

from collections.abc import Sequence

from kgrank.errors import ModelError


def says_something(text: str) -> bool:
    """Whether a text has a character that is neither white space nor of a category C of Unicode."""
    # Most texts begin with a letter: a million of them take a fraction of a second.
    return text[:1].isalnum() or any(letter.isprintable() and letter != " " for letter in text)


def whole_texts(texts: Sequence[str]) -> list[str]:
    """The texts as a tokenizer takes them: a lone surrogate, half of an emoji, reads as "?"."""
    return [text.encode("utf-8", "replace").decode("utf-8") for text in texts]


def check_texts(texts: Sequence[str]) -> None:
    """See that texts are a list of strings.

    Raises:
        ModelError: they are one string, or one of them is none.
    """
    if isinstance(texts, str):
        raise ModelError(
            f"found one string, {texts[:40]!r}, for a list of texts; allowed: a list of strings. "
            "Put it into brackets."
        )
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise ModelError(
                f"found a {type(text).__name__} as text number {place}, from 0; allowed: strings. "
                'Give "" for a text that is missing.'
            )


def no_known_word(name: str, to: str = "") -> ModelError:
    """What to say where a tokenizer knows no word of the texts (to learn from, to be held out)."""
    return ModelError(
        f"the vocabulary of {name} knows no word of the texts{to and f' to {to}'}; allowed: one of "
        "their language. Take another encoder, or see whether its tokenizer's files are its own."
    )
