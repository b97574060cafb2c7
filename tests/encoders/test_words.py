import os
import subprocess
import sys
import unicodedata
from importlib.util import find_spec
from pathlib import Path

import pytest

from kgrank.encoders import words
from kgrank.encoders.words import choose_segmenter, tokenize
from kgrank.errors import ModelError

needs_jieba = pytest.mark.skipif(find_spec("jieba") is None, reason="jieba is not installed")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Men's USB-C Cable_2m, 2.5A!", ["men", "s", "usb", "c", "cable", "2m", "2", "5a"]),
        ("Straße STRASSE", ["strasse", "strasse"]),
        ("ＵＳＢ ﬁlter №5", ["usb", "filter", "no5"]),
        ("हिन्दी में", ["हिन्दी", "में"]),  # vowel signs belong to the word
        ("무선 이어폰", ["무선", "이어폰"]),  # Korean has spaces
        ("co\u00adoperate", ["cooperate"]),
        ("❤️ 👩‍👩‍👧 \x00\x07\u200b --- ", []),
        ("", []),
    ],
)
def test_words_of_alphabetic_scripts(text: str, expected: list[str]) -> None:
    assert tokenize(text, "characters") == expected


def test_an_accent_is_the_same_word_however_it_is_encoded() -> None:
    composed, decomposed = (unicodedata.normalize(form, "Café") for form in ("NFC", "NFD"))
    assert composed != decomposed
    assert tokenize(composed, "characters") == tokenize(decomposed, "characters") == ["café"]


def test_chinese_becomes_pairs_of_characters_and_keeps_latin_words_whole() -> None:
    assert tokenize("5G手机Pro无线耳机，茶", "characters") == [
        *("5g", "手机", "pro", "无线", "线耳", "耳机", "茶"),
    ]


@needs_jieba
def test_chinese_becomes_words_with_jieba_and_japanese_stays_pairs() -> None:
    assert tokenize("5G手机Pro无线耳机", "jieba") == ["5g", "手机", "pro", "无线耳机"]
    assert tokenize("ケーブル", "jieba") == ["ケー", "ーブ", "ブル"]


@pytest.mark.parametrize("segmenter", ["characters", "jieba"])
def test_a_text_of_ten_thousand_characters(segmenter: words.Segmenter) -> None:
    if segmenter == "jieba" and find_spec("jieba") is None:
        pytest.skip("jieba is not installed")
    chinese = tokenize("无线耳机" * 2_500, segmenter)
    assert len(chinese) == (9_999 if segmenter == "characters" else 2_500)
    assert tokenize("a" * 10_000, segmenter) == ["a" * 10_000]


@needs_jieba
def test_jieba_is_silent_and_touches_nothing_shared(tmp_path: Path) -> None:
    """In its own process, compiled anew (old string escapes warn then), with warnings as errors."""
    program = (
        "from kgrank.encoders.words import tokenize\n"
        "print(tokenize('无线耳机黑色', 'jieba'))\n"
        "import jieba\n"
        "assert not jieba.dt.initialized  # the tokenizer that other code may teach words\n"
    )
    shared = tmp_path / "shared"
    shared.mkdir()
    environment = {
        **os.environ,
        "TMPDIR": str(shared),
        "PYTHONPYCACHEPREFIX": str(tmp_path / "compiled"),
        "PYTHONIOENCODING": "utf-8",
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env=environment,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.stderr == ""
    assert done.stdout.strip() == "['无线耳机', '黑色']"
    assert list(shared.iterdir()) == []


def test_without_jieba_the_choice_is_characters_and_jieba_features_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(words, "find_spec", lambda name: None)
    assert choose_segmenter() == "characters"

    monkeypatch.setitem(sys.modules, "jieba", None)
    words._jieba_tokenizer.cache_clear()
    assert tokenize("plain words", "jieba") == ["plain", "words"]  # needs no segmenter
    with pytest.raises(ModelError, match=r"pip install kgrank\[zh\]"):
        tokenize("手机", "jieba")


@needs_jieba
def test_with_jieba_the_choice_is_jieba() -> None:
    assert choose_segmenter() == "jieba"
