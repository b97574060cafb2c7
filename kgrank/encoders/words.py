"""Text cut into words: one rule for every language, and the segmenter named, never guessed later.

Alphabetic scripts are cut at whatever is no letter, digit or combining mark. Chinese has no spaces:
its words come from jieba where it is installed (`pip install kgrank[zh]`), and are overlapping
pairs of characters where it is not; Japanese always takes the pairs. Features made with one
segmenter match nothing made with the other, so whoever keeps features keeps its name too.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Literal

from kgrank.errors import ModelError

Segmenter = Literal["jieba", "characters"]

_KANA = "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
HAN = "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_ANY_KANA = re.compile(f"[{_KANA}]")
_SOFT_HYPHEN = "\u00ad"


def choose_segmenter() -> Segmenter:
    """The best segmenter this installation has: "jieba" if it is installed, else "characters"."""
    return "jieba" if find_spec("jieba") else "characters"


def tokenize(text: str, segmenter: Segmenter) -> list[str]:
    """The words of a text in their order, NFKC-normalised and casefolded.

    Underscores, punctuation, emoji and control characters part words and are dropped.

    Args:
        text: any string, of any length.
        segmenter: how runs of Chinese characters are cut: "jieba" into words, "characters" into
            overlapping pairs (a run of one stays one).

    Raises:
        ModelError: the text holds Chinese, the segmenter is "jieba", and jieba is not installed.
    """
    # Casefolding may undo the normal form (and the reverse), so it is normalised on both sides.
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    words: list[str] = []
    for match in _word_pattern().finditer(folded.replace(_SOFT_HYPHEN, "")):
        run = match["cjk"]
        if run is None:
            words.append(match[0])
        elif segmenter == "jieba" and not _ANY_KANA.search(run):
            words.extend(_jieba_tokenizer().lcut(run))
        elif len(run) == 1:
            words.append(run)
        else:
            words.extend(run[start : start + 2] for start in range(len(run) - 1))
    return words


@lru_cache(maxsize=1)
def _word_pattern() -> re.Pattern[str]:
    """A run of Han and kana (group `cjk`), or a word: letters, digits and the marks on them.

    `re` counts no vowel sign of Hindi or Thai as part of a word, so the marks are listed here.
    """
    marks = "".join(
        chr(code)
        for code in range(0x300, 0xFE00)  # beyond are variation selectors, which only dress emoji
        if unicodedata.category(chr(code)) in ("Mn", "Mc")
    )
    letter = rf"[^\W_{_KANA}{HAN}]"
    return re.compile(rf"(?P<cjk>[{_KANA}{HAN}]+)|{letter}(?:{letter}|[{marks}])*")


@lru_cache(maxsize=1)
def _jieba_tokenizer() -> Any:
    """jieba with its own dictionary, untouched by words that other code gives to jieba's global.

    The dictionary is read directly (about a second): jieba's own start would log to stderr and
    read a cache file from the shared temporary folder, where anybody may have put it.
    """
    with warnings.catch_warnings():  # old string escapes and pkg_resources, both inside jieba
        warnings.simplefilter("ignore")
        try:
            import jieba
        except ImportError as error:
            raise ModelError(
                "these features cut Chinese with jieba, which is not installed; "
                "run `pip install kgrank[zh]`"
            ) from error
        tokenizer = jieba.Tokenizer()
        tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
        tokenizer.initialized = True
    return tokenizer
