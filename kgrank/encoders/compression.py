"""A smaller text encoder made of a large one, in one of five ways.

    layers   some of its layers, the others dropped
    distil   the same, and trained on a shop's texts to say what the whole one says
    static   a table of token vectors, fitted to a shop's texts where they are given; see
             `kgrank.encoders.static` and `kgrank.encoders.teaching`
    onnx     the same model as an ONNX graph, for onnxruntime
    int8     that graph with weights of 8 bits, and activations rounded to 8 bits as they come

Each folder is one that `TextEncoder.load` takes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from pydantic import Field

from kgrank.devices import choose_device
from kgrank.encoders.cache import VectorCache, encode_cached
from kgrank.encoders.corpus import split_texts
from kgrank.encoders.dropping import drop_layers
from kgrank.encoders.exporting import need_exporter, write_onnx
from kgrank.encoders.folders import (
    copy_text_files,
    load_transformer,
    quiet_transformers,
    read_json,
    write_tokenizer,
)
from kgrank.encoders.reading import whole_texts
from kgrank.encoders.runtimes import special_tokens
from kgrank.encoders.static import (
    static_table,
    token_shares,
    token_vectors,
    weighed_tokens,
    write_static,
)
from kgrank.encoders.teaching import (
    STRENGTHS,
    begun_table,
    likeness,
    taught_table,
    token_means,
    widest_axes,
)
from kgrank.encoders.text import TextEncoder
from kgrank.errors import ConfigError, DataError, Fault, ModelError
from kgrank.files import check_new, new_folder
from kgrank.progress import Progress, silent
from kgrank.settings import LearnSettings, Section

if TYPE_CHECKING:
    from kgrank.encoders.distilling import Lessons
    from kgrank.loop import Sink, Trained

Method = Literal["layers", "distil", "static", "onnx", "int8"]
METHODS: tuple[Method, ...] = get_args(Method)


class CompressSettings(Section):
    """The `[compress]` section: how a text encoder is made smaller, by `kgrank compress`.

    Attributes:
        layers: how many stay, with the methods layers and distil; half of them if left out.
        keep: which of them: "spread" evenly from the first to the last, or the "first" ones.
        dim: numbers of a static table's vectors, at most.
        rarity: a of the weight a / (a + share) of a static table's tokens.
        fields: the columns of items whose texts are learned from or counted, each value a text of
            its own.
        max_tokens: a longer text is cut here while it is learned from.
        held_out: share of the texts, by a hash of each, on which a distilled encoder is judged.
        epochs: passes over the texts, at most.
        patience: epochs without a higher cosine on held-out texts after which training stops.
        batch: texts a step.
        rate: highest learning rate.
        warmup: steps over which the rate rises.
        seed: of everything that is drawn.
    """

    layers: int | None = Field(default=None, ge=1)
    keep: Literal["spread", "first"] = "spread"
    dim: int = Field(default=256, ge=1)
    rarity: float = Field(default=1e-3, gt=0)
    fields: tuple[str, ...] = Field(default=("title", "description"), min_length=1)
    max_tokens: int = Field(default=64, ge=8)
    held_out: float = Field(default=0.05, gt=0, lt=1)
    epochs: int = Field(default=3, ge=1)
    patience: int = Field(default=2, ge=1)
    batch: int = Field(default=32, ge=1)
    rate: float = Field(default=1e-4, gt=0)
    warmup: int = Field(default=50, ge=0)
    seed: int = Field(default=0, ge=0, lt=2**63)

    def learn(self) -> LearnSettings:
        """What the training loop is told."""
        return LearnSettings(
            epochs=self.epochs,
            patience=self.patience,
            batch=self.batch,
            rate=self.rate,
            warmup=self.warmup,
            seed=self.seed,
        )


@dataclass(frozen=True)
class Compressed:
    """What was made.

    Attributes:
        method: how.
        start: of what: "minilm" or a folder.
        fingerprint: of the start.
        layers: the start's layers that stayed, by number from 0; None where none was to go.
        cosines: mean cosine to the start on held-out texts, before training and after each epoch
            of it, or before and after a table was fitted to texts; none without either.
        best_epoch: after which the weights stood, from 1; None without training.
        texts: distinct texts that were learned from.
    """

    method: Method
    start: str
    fingerprint: str
    layers: tuple[int, ...] | None = None
    cosines: tuple[float, ...] = ()
    best_epoch: int | None = None
    texts: int = 0


def compress(
    start: str | Path,
    folder: Path,
    method: Method,
    settings: CompressSettings | None = None,
    *,
    texts: Sequence[str] = (),
    device: str = "auto",
    cache: Path | None = None,
    checkpoints: Path | None = None,
    resume: bool = False,
    sinks: Sequence[Sink] = (),
    progress: Progress = silent,
) -> Compressed:
    """Make a smaller encoder and write it into a new folder.

    Args:
        start: "minilm", or the folder of a transformer that `TextEncoder.load` takes.
        folder: where it is written, whole or not at all; not there yet, or empty.
        method: how; see the head of this file.
        settings: the `[compress]` section; its defaults if None.
        texts: what distil and static learn from; static does without.
        device: where distil trains, and the whole encoder reads texts: "cpu", "cuda" or "auto".
        cache: folder where vectors of texts are kept between runs; none if None.
        checkpoints: folder where distil leaves what it needs to be resumed; none if None.
        resume: go on from that checkpoint, if there is one of this very training.
        sinks: where figures of distil go.
        progress: told of each stage.

    Raises:
        ConfigError: there is something in the folder, or there are not so many layers.
        DataError: fewer than two texts say something, or none on a side says it in words that the
            encoder knows, with distil, or with static and texts.
        ModelError: the start is no transformer encoder, its layers cannot be told, or the method is
            not for such a model; what the method needs is not installed; training diverges; the
            checkpoint is damaged.
        OSError: the folder cannot be written to.
    """
    settings = settings or CompressSettings()
    check_new(folder)
    if method in ("onnx", "int8"):
        need_exporter()
    encoder = TextEncoder.load(start, "cpu")
    if encoder.form != "transformer":
        raise ModelError(
            f"{start}: found an encoder of the form {encoder.form}; allowed: a transformer. Make "
            "the smaller one of the encoder that this one was made of."
        )
    if encoder.pooling.dense is not None and method not in ("static", "layers"):
        raise ModelError(
            f"{start}: found an encoder with a projection after its pooling; allowed with the "
            f"method {method}: one without. Take the method static or layers."
        )
    about: dict[str, Any] = {"start": str(start), "fingerprint": encoder.fingerprint}
    if method == "static":
        table, learned = _table(encoder, texts, settings, device, cache, progress)
        with new_folder(folder) as written:
            write_static(written, table, encoder.name, settings.rarity)
            write_tokenizer(written, encoder.loaded[1])
        return Compressed(method, **about, **learned)
    model = _model_of(encoder)
    if method in ("onnx", "int8"):
        progress("export", 0, 1)
        with _made_of(encoder, method, folder) as written:
            write_onnx(written, model, small=method == "int8")
            copy_text_files(encoder.folder, written)
            write_tokenizer(written, encoder.loaded[1])
            config = model.config.to_json_string(use_diff=False)
            (written / "config.json").write_text(config, "utf-8")
        progress("export", 1, 1)
        return Compressed(method, **about)
    about["layers"] = drop_layers(model, settings.layers, settings.keep)
    if method == "distil":
        before, trained, n_texts = _distil(
            encoder, model, texts, settings, device, cache, checkpoints, resume, sinks, progress
        )
        cosines = (before, *trained.valid)
        about |= {"cosines": cosines, "best_epoch": trained.best_epoch, "texts": n_texts}
    with _made_of(encoder, method, folder) as written:
        with quiet_transformers():
            model.cpu().save_pretrained(written)
        copy_text_files(encoder.folder, written)
    return Compressed(method, **about)


@contextmanager
def _made_of(encoder: TextEncoder, method: Method, folder: Path) -> Iterator[Path]:
    """A new folder for what is written, which stays only if it loads.

    Raises:
        ModelError: it cannot be written, or not be loaded: the method is not for such a model.
        OSError: the folder cannot be written to.
    """
    written = folder
    try:
        with new_folder(folder) as written:
            yield written
            TextEncoder.load(written, "cpu")
    except (ConfigError, OSError):
        raise
    except Exception as error:  # exporters and models raise any kind, some of many lines
        kind = read_json(encoder.folder / "config.json").get("model_type")
        plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().partition("\n")[0]
        reason = plain.replace(str(written), str(folder))
        raise ModelError(
            f"{encoder.name}: found a {kind} model, of which the method {method} makes no encoder "
            f"({type(error).__name__}: {reason}); allowed: one such as BERT, RoBERTa, MPNet or "
            "ModernBERT. Take another method, such as static."
        ) from error


def _model_of(encoder: TextEncoder) -> Any:
    """The encoder's transformer as its folder has it, without a head of pretraining."""
    model, _, _ = load_transformer(encoder.folder, "text encoder", "AutoTokenizer")
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # no vector of a text passes through it
    return model.eval()


def _table(
    encoder: TextEncoder,
    texts: Sequence[str],
    settings: CompressSettings,
    device: str,
    cache: Path | None,
    progress: Progress,
) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
    """A static table, and what `Compressed` says of its texts."""
    tokens = token_vectors(encoder, progress)
    if not texts:
        shares = token_shares(encoder, len(tokens), ())
        return static_table(tokens, settings.dim, shares, settings.rarity), {}
    teacher = TextEncoder.load(encoder.folder, device, settings.max_tokens)
    parts = split_texts(texts, settings.held_out, "compress")
    known = np.asarray(tokens.any(axis=1))
    lessons = [_lessons(teacher, part, cache, progress, known=known) for part in parts]
    shares = token_shares(encoder, len(tokens), parts[0])
    axes = widest_axes(lessons[0].vectors, settings.dim)
    rows = weighed_tokens(tokens, settings.rarity / (settings.rarity + shares)) @ axes
    (train, said), (held, held_said) = (
        (token_means(part.ids, len(tokens)), part.vectors @ axes) for part in lessons
    )
    begun = begun_table(rows, train, said)
    found: dict[float, float] = {}
    for done, strength in enumerate(STRENGTHS):
        progress("fitting the table", done, len(STRENGTHS) + 1)
        found[strength] = likeness(taught_table(begun, train, said, strength), held, held_said)
    best = max(found, key=lambda strength: found[strength])
    progress("fitting the table", len(STRENGTHS), len(STRENGTHS) + 1)
    everything = sp.vstack([train, held], format="csr")
    table = taught_table(begun, everything, np.concatenate([said, held_said]), best)
    progress("fitting the table", len(STRENGTHS) + 1, len(STRENGTHS) + 1)
    cosines = (likeness(begun, held, held_said), found[best])
    return table * known[:, None], {"cosines": cosines, "texts": len(lessons[0])}


def _distil(
    encoder: TextEncoder,
    student: Any,
    texts: Sequence[str],
    settings: CompressSettings,
    device: str,
    cache: Path | None,
    checkpoints: Path | None,
    resume: bool,
    sinks: Sequence[Sink],
    progress: Progress,
) -> tuple[float, Trained, int]:
    """Train the student in place: its first cosine, how it went, and the texts learned from."""
    from kgrank.encoders.distilling import DistilTask
    from kgrank.loop import Loop

    at = choose_device(device)
    teacher = TextEncoder.load(encoder.folder, at, settings.max_tokens)
    parts = split_texts(texts, settings.held_out, "compress")
    train, held = (_lessons(teacher, part, cache, progress) for part in parts)
    task = DistilTask(
        student,
        encoder.pooling.mode,
        student.config.pad_token_id or 0,
        train,
        held,
        batch=settings.batch,
        seed=settings.seed,
        device=at,
    )
    before = task.judge()
    words = [settings.as_dict(), teacher.fingerprint, train.digest(), held.digest()]
    loop = Loop(
        task,
        settings.learn(),
        "distilling",
        folder=checkpoints,
        resume=resume,
        identity=sha256(json.dumps(words).encode()).hexdigest(),
        sinks=sinks,
        report=progress,
    )
    return before, loop.run(), len(train)


def _lessons(
    teacher: TextEncoder,
    texts: Sequence[str],
    cache: Path | None,
    progress: Progress,
    known: npt.NDArray[np.bool_] | None = None,
) -> Lessons:
    """The texts that say something to the teacher, and what it says of them.

    With `known` (entries), they are of these tokens alone, without marks of beginning and end.

    Raises:
        DataError: none does.
    """
    from kgrank.encoders.distilling import Lessons

    def told(done: int, total: int) -> None:
        progress("reading texts", done, total)

    encodings = teacher.loaded[1].encode_batch_fast(
        whole_texts(texts), add_special_tokens=known is None
    )
    ids = [
        encoding.ids if known is None else [token for token in encoding.ids if known[token]]
        for encoding in encodings
    ]
    strange = special_tokens(teacher.loaded[1])
    if strange.issuperset(chain.from_iterable(ids)):
        found = f"{len(texts)} text(s), such as {texts[0][:40]!r}, with no word that it knows"
        allowed = f"texts in the language of {teacher.name}"
        mend = "Name other columns in [compress] fields, or take the method layers, onnx or int8."
        raise DataError([Fault("items", None, None, found, allowed, mend)])
    if cache is None:
        vectors = teacher.encode(texts, progress=told)
    else:
        vectors = encode_cached(teacher, texts, VectorCache(cache), told)[0]
    said = [row for row in range(len(texts)) if ids[row] and vectors[row].any()]
    return Lessons([ids[row] for row in said], vectors[said])
