"""A WordPiece vocabulary learned from a shop's own text (Schuster and Nakajima, 2012).

Words are cut at spaces and punctuation, lower-cased and without accents, as BERT's uncased models
do. Each Chinese character is a word of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
INNER = "##"  # begins a piece that is not the first of its word


def learn_wordpiece(texts: Sequence[str], size: int, max_tokens: int) -> Any:
    """A tokenizer of transformers, whose pieces are those that the texts hold most often.

    The same texts give the same vocabulary in every process.

    Args:
        texts: what is learned from.
        size: entries of the vocabulary, about; half of it at most are single characters.
        max_tokens: what the tokenizer says that a model reads.
    """
    from transformers import PreTrainedTokenizerFast

    words = _bert(models.WordPiece(unk_token=SPECIAL[1]))
    # All characters are named here. By itself the trainer takes and numbers them as a hash table
    # yields them, which differs between processes and decides between equals.
    characters, inner = _characters(words, texts, size // 2)
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        min_frequency=2,
        initial_alphabet=characters,
        limit_alphabet=len(characters),
        special_tokens=[*SPECIAL, *(INNER + character for character in inner)],
        show_progress=False,
    )
    words.train_from_iterator(texts, trainer)
    numbers = words.get_vocab()
    whole = _bert(models.WordPiece(numbers, unk_token=SPECIAL[1]))
    marks = [(mark, numbers[mark]) for mark in ("[CLS]", "[SEP]")]
    whole.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=marks
    )
    pad, unknown, first, last, mask = SPECIAL
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=whole,
        pad_token=pad,
        unk_token=unknown,
        cls_token=first,
        sep_token=last,
        mask_token=mask,
        model_max_length=max_tokens,
    )


def _bert(model: models.Model) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _characters(
    tokenizer: tokenizers.Tokenizer, texts: Sequence[str], most: int
) -> tuple[list[str], list[str]]:
    """The characters met most often, and those of them that are met within a word, by code point.

    They are `most` pieces together; of characters met as often, those of lower code points come
    first.
    """
    normalizer: Any = tokenizer.normalizer
    pre_tokenizer: Any = tokenizer.pre_tokenizer
    met: Counter[str] = Counter()
    within: set[str] = set()
    for text in texts:
        for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text)):
            met.update(word)
            within.update(word[1:])
    taken: list[str] = []
    pieces = 0
    for character in sorted(met, key=lambda character: (-met[character], character)):
        pieces += 1 + (character in within)
        if pieces > most:
            break
        taken.append(character)
    return sorted(taken), sorted(within.intersection(taken))
