"""A soft prompt: a few vectors that stand before every text, and alone are learned.

Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning", which is the prefix
of Li and Liang 2021 at the layer of token vectors. The vectors are further rows of the model's
table, and the tokenizer's template puts their numbers between the mark of the beginning and the
text, so that what is learned is served by a plain transformer. The vocabulary has no entry for
these numbers, so that no text is read as one of them; and no token may be added to it later, since
it would get one of them (an encoder is not loaded then). A mean over token vectors takes in theirs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from kgrank.encoders.folders import prompt_tokens, read_json, write_figures, write_tokenizer
from kgrank.encoders.runtimes import special_tokens
from kgrank.encoders.text import TextEncoder
from kgrank.encoders.text_folder import model_limit
from kgrank.errors import ConfigError, ModelError

_NAME = "[PROMPT]"  # in the template
_LENGTH = ("sentence_bert_config", "max_seq_length")  # file and entry
_READER = "PreTrainedTokenizerFast"  # takes a template as it stands; BERT's own class does not


def prompted(encoder: TextEncoder, ids: Sequence[Sequence[int]], n: int) -> TextEncoder:
    """The encoder with n further rows of token vectors, which it reads before every text.

    They begin as the vectors of the tokens that texts hold most often. A prompt that is there stays
    as it is, before the new one. A text is cut where it was, unless the model reads less.

    Args:
        encoder: its model and its tokenizer are changed.
        ids: tokens of the texts, some of which the vocabulary knows.
        n: rows.

    Raises:
        ConfigError: the prompt leaves no room for a text.
        ModelError: the tokenizer has no template.
    """
    import torch

    model: Any = encoder.model
    backend = encoder.loaded[1]
    special = sorted(special_tokens(backend))
    rows = model.get_input_embeddings().weight.shape[0]
    counts = np.bincount(np.fromiter(chain.from_iterable(ids), np.int64), minlength=rows)
    counts[special] = 0
    often = np.argsort(-counts, kind="stable")[: min(n, np.count_nonzero(counts))]
    longer = encoder.cut_at(min(encoder.max_tokens + n, model_limit(model.config)))
    room = longer.max_tokens - backend.num_special_tokens_to_add(False)
    if room <= n:
        raise ConfigError(
            f"finetune.rank: found a prompt of {n} tokens for {encoder.name}, which has room for "
            f"{room} besides its marks; allowed: fewer than that. Take a shorter prompt."
        )
    _put_before_text(encoder, backend, range(rows, rows + n))
    backend.enable_truncation(longer.max_tokens)
    model.resize_token_embeddings(rows + n, mean_resizing=False)
    table = model.get_input_embeddings().weight
    with torch.no_grad():
        table[rows:] = table[torch.from_numpy(np.resize(often, n)).to(table.device)]
    model.config.prompt_tokens = prompt_tokens(model.config) + n
    return longer


def _put_before_text(encoder: TextEncoder, backend: tokenizers.Tokenizer, ids: range) -> None:
    told = json.loads(backend.to_str())
    told["post_processor"] = _with_prompt(told["post_processor"], ids)
    if told["post_processor"] is None:
        raise ModelError(
            f"finetune.method: found 'prompt' and a tokenizer in {encoder.folder} without a "
            "template, in which a prompt could stand; allowed: one with it, as those of BERT, "
            "RoBERTa, MPNet and ModernBERT. Take another method."
        )
    backend.post_processor = tokenizers.Tokenizer.from_str(json.dumps(told)).post_processor


def _with_prompt(processor: dict[str, Any] | None, ids: range) -> dict[str, Any] | None:
    """A post-processor that puts tokens before the text; None if it has no template."""
    if processor is None:
        return None
    if processor["type"] == "Sequence":
        found = [_with_prompt(part, ids) for part in processor["processors"]]
        whole = [new or old for new, old in zip(found, processor["processors"], strict=True)]
        return {**processor, "processors": whole} if any(found) else None
    if processor["type"] in ("BertProcessing", "RobertaProcessing"):
        processor = _template(processor)
    if processor["type"] != "TemplateProcessing":
        return None
    known = processor["special_tokens"].get(_NAME, {"ids": [], "tokens": []})
    numbers = [*known["ids"], *ids]
    entry = {"id": _NAME, "ids": numbers, "tokens": [_NAME] * len(numbers)}
    single = [piece for piece in processor["single"] if _NAME not in str(piece)]
    place = next(place for place, piece in enumerate(single) if "Sequence" in piece)
    kind = single[place]["Sequence"]["type_id"]
    single.insert(place, {"SpecialToken": {"id": _NAME, "type_id": kind}})
    special = {**processor["special_tokens"], _NAME: entry}
    return {**processor, "single": single, "special_tokens": special}


def _template(processor: dict[str, Any]) -> dict[str, Any]:
    """The template that BERT's and RoBERTa's own post-processors stand for."""
    (first, first_id), (last, last_id) = processor["cls"], processor["sep"]
    marks = 2 if processor["type"] == "RobertaProcessing" else 1
    template = tokenizers.processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {' '.join([last] * marks)} $B {last}",
        special_tokens=[(first, first_id), (last, last_id)],
    )
    return dict(json.loads(template.__getstate__()))


def write_prompt(encoder: TextEncoder, folder: Path) -> None:
    """Write the tokenizer with its template into a folder that has its other files.

    Where the folder states at which length a text is cut, that is raised by the prompt's.

    Raises:
        OSError: the folder cannot be written to.
    """
    write_tokenizer(folder, encoder.loaded[1])
    config: Any = encoder.model.config
    before = read_json(encoder.folder / "config.json").get("prompt_tokens", 0)
    for name, key in (("tokenizer_config", "model_max_length"), _LENGTH):
        stated = read_json(folder / f"{name}.json")
        if stated.get(key):
            longer = int(stated[key]) + prompt_tokens(config) - before
            write_figures(folder, name, {**stated, key: min(longer, model_limit(config))})
    about = read_json(folder / "tokenizer_config.json")
    tokenizer = encoder.tokenizer
    marks = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    names = {"tokenizer_class": _READER, "model_input_names": tokenizer.model_input_names}
    write_figures(folder, "tokenizer_config", {**about, **marks, **names})
