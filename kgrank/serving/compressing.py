"""A smaller text encoder, measured beside the one it was made of, and refused where it costs."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kgrank.config import Config
from kgrank.data import sample_shop
from kgrank.encoders.compression import Compressed, Method, compress
from kgrank.encoders.corpus import shop_texts
from kgrank.encoders.text import TextEncoder, item_texts
from kgrank.errors import ConfigError, DataError, Fault, ModelError
from kgrank.files import new_folder
from kgrank.fusion.metrics import paired_bootstrap
from kgrank.kg.tables import Tables, read_tables
from kgrank.loop import Sink
from kgrank.progress import Progress, silent
from kgrank.serving.evaluating import valid_lists
from kgrank.serving.training import train

MEASURED_TEXTS = 2_000
NEIGHBORS = 10


@dataclass(frozen=True)
class Measured:
    """One form of an encoder.

    Attributes:
        form: "transformer", "onnx" or "static".
        megabytes: of all files of its folder, 10⁶ bytes each.
        texts_per_second: distinct titles, in one run after the model was loaded.
        recall: R@10 of the fused system on valid; None where it was not measured.
        alone: NDCG@10 of the text vectors alone on valid, which the other channels hide nothing of.
    """

    form: str
    megabytes: float
    texts_per_second: float
    recall: float | None = None
    alone: float | None = None


@dataclass(frozen=True)
class Comparison:
    """A compressed encoder beside the original.

    Attributes:
        folder: the compressed one's.
        made: how it was made.
        texts: distinct titles that speed and likeness were measured on.
        original, compressed: the figures of each.
        cosine: mean of a title's two vectors; of a static table after the rotation that fits best,
            found on half of the titles and measured on the others, since its axes are its own.
        neighbors: share of a title's ten nearest titles that both name.
        lost: share of the original's R@10 that the compressed one falls short by; None where it
            was not measured.
        interval: of R@10, compressed minus original: 95 %, by a paired bootstrap over users; None
            where it was not measured or there is a single user.
    """

    folder: str
    made: Compressed
    texts: int
    original: Measured
    compressed: Measured
    cosine: float
    neighbors: float
    lost: float | None = None
    interval: tuple[float, float] | None = None


class LossError(ModelError):
    """A compressed encoder is refused, since R@10 falls too far.

    Attributes:
        comparison: what was measured, of a folder that is gone.
    """

    def __init__(self, message: str, comparison: Comparison) -> None:
        super().__init__(message)
        self.comparison = comparison


def compress_encoder(
    start: str | Path,
    out: str | Path,
    method: Method,
    tables: Tables | None = None,
    config: Config | None = None,
    *,
    most_loss: float = 0.02,
    force: bool = False,
    resume: bool = False,
    cache: Path | None = None,
    sinks: Sequence[Sink] = (),
    progress: Progress = silent,
) -> Comparison:
    """Make a smaller encoder, measure it, and keep it if the rankings do not get much worse.

    With tables, a model is fitted with each encoder as `text.model`, on train rows alone, and both
    are judged on valid. No test row is read. Without tables nothing is known of the rankings, and
    titles of the bundled sample shop are encoded.

    Args:
        start: "minilm" or a folder.
        out: a new folder. With the method distil its checkpoint lies beside it meanwhile.
        method: how.
        tables: a shop's.
        config: the configuration; its defaults if None.
        most_loss: share of R@10 on valid that may be lost.
        force: keep it all the same.
        resume: go on from the checkpoint of a distilling cut short; if it is of other texts or
            settings, begin anew and say so (a warning is logged).
        cache: folder of text vectors; as in `kgrank.serving.training.train`.
        sinks: where figures of distilling go.
        progress: told of each stage.

    Returns:
        the comparison, which also lies in the folder as compression.json.

    Raises:
        ConfigError: `out` is there already, there are no tables to distil on, or there are not so
            many layers.
        DataError: the tables have nothing to learn from, nothing on valid, or no two titles.
        LossError: R@10 falls by more than `most_loss`.
        ModelError: as `kgrank.encoders.compression.compress`.
        OSError: the folder cannot be written.
    """
    config, target = config or Config(), Path(out)
    if method == "distil" and tables is None:
        raise ConfigError("distil: found no shop to learn from; allowed: tables. Name a source.")
    shown = read_tables(sample_shop()) if tables is None else tables
    titles = list(dict.fromkeys(filter(str.strip, item_texts(shown.items, config.text))))
    if len(titles) < 2:  # a likeness of one to itself says nothing
        mend = "Fill in titles, or name other columns in [text] fields."
        found = f"{len(titles)} distinct text(s) among {len(shown.items)} products"
        raise DataError([Fault("items", None, None, found, "two or more", mend)])
    with new_folder(target) as folder:
        made = compress(
            start,
            folder,
            method,
            config.compress,
            texts=() if tables is None else _learned_texts(tables, config),
            device=config.text.device,
            cache=cache or Path.home() / ".cache" / "kgrank" / "vectors",
            checkpoints=target.resolve().with_name(f".{target.resolve().name}.training"),
            resume=resume,
            sinks=sinks,
            progress=progress,
        )
        comparison = measure(start, folder, str(out), made, titles, config, progress)
        if tables is not None:
            original, compressed = (
                ranked(model, tables, config, cache, progress) for model in (start, folder)
            )
            comparison = with_ranks(comparison, original, compressed)
            _refuse(comparison, most_loss, force)
        told = json.dumps(asdict(comparison), indent=1, ensure_ascii=False)
        (folder / "compression.json").write_text(told + "\n", "utf-8")
    return comparison


def _learned_texts(tables: Tables, config: Config) -> list[str]:
    """What the shop's items say; those of test rows only are no items of it yet."""
    items = tables.without_test_items(config.split).items
    none = tables.events.iloc[:0]
    return shop_texts(items, none, config.compress.fields, section="compress")


def measure(
    start: str | Path,
    folder: Path,
    named: str,
    made: Compressed,
    titles: list[str],
    config: Config,
    progress: Progress,
    most: int = MEASURED_TEXTS,
) -> Comparison:
    """Size, speed and likeness of two encoders; of the rankings nothing yet.

    Args:
        start: the original.
        folder: where the compressed one lies now.
        named: where it will lie.
        made: how it was made.
        titles: distinct texts that say something.
        config: its `text.device` and `text.max_tokens` are used.
        progress: told of each encoder.
        most: how many of the titles are encoded, at most.
    """
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(titles))[:most]
    texts = [titles[place] for place in chosen]
    measured, vectors = [], []
    for name, of in (("original", start), ("compressed", folder)):
        progress(f"measuring ({name})", 0, len(texts))
        encoder = TextEncoder.load(of, config.text.device, config.text.max_tokens)
        encoder.encode(texts[:1])
        begun = time.perf_counter()
        vectors.append(encoder.encode(texts))
        seconds = time.perf_counter() - begun
        size = sum(path.stat().st_size for path in encoder.folder.rglob("*") if path.is_file())
        measured.append(Measured(encoder.form, size / 1e6, len(texts) / seconds))
        progress(f"measuring ({name})", len(texts), len(texts))
    one, other = vectors
    return Comparison(
        folder=named,
        made=made,
        texts=len(texts),
        original=measured[0],
        compressed=measured[1],
        cosine=_turned_cosine(one, other) if made.method == "static" else _cosine(one, other),
        neighbors=_shared_neighbors(one, other),
    )


def _cosine(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    return float((one * other).sum(axis=1).mean())


def _turned_cosine(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    """Mean cosine on the second half, after the rotation of `other` that fits the first half best.

    The orthogonal Procrustes problem (Schönemann 1966).
    """
    half = (len(one) + 1) // 2
    left, _, right = np.linalg.svd(other[:half].T @ one[:half], full_matrices=False)
    return _cosine(one[half:], other[half:] @ (left @ right))


def _shared_neighbors(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    """Mean share of the nearest rows that both name for a row; 0 with fewer than two rows."""
    k = min(NEIGHBORS, len(one) - 1)
    if k < 1:
        return 0.0
    nearest = []
    for vectors in (one, other):
        cosines = vectors @ vectors.T
        np.fill_diagonal(cosines, -np.inf)
        nearest.append(np.argpartition(-cosines, k - 1, axis=1)[:, :k])
    shared = [len(np.intersect1d(a, b)) for a, b in zip(*nearest, strict=True)]
    return float(np.mean(shared)) / k


@dataclass(frozen=True, eq=False)
class Ranked:
    """How a system ranks with an encoder.

    Attributes:
        recall: (lists) float64, R@10 on valid.
        users: (lists) whose list it is.
        alone: NDCG@10 of the text vectors alone on valid; None without an encoder.
    """

    recall: npt.NDArray[np.float64]
    users: npt.NDArray[np.int64]
    alone: float | None


def ranked(
    model: str | Path,
    tables: Tables,
    config: Config,
    cache: Path | None = None,
    progress: Progress = silent,
) -> Ranked:
    """Fit on train rows with an encoder, "none" for none, and judge the lists on valid.

    Raises:
        DataError, ModelError: as `kgrank.serving.training.train`.
    """
    text = config.text.model_copy(update={"model": None if model == "none" else str(model)})
    fit = config.fit.model_copy(update={"refit": False})
    changed = config.model_copy(update={"fit": fit, "text": text})
    bundle = train(tables, changed, cache=cache, progress=progress)
    scores, users = valid_lists(bundle, tables, progress)
    alone = bundle.facts["choices"].get("embedding", {}).get("valid_ndcg@10")
    return Ranked(scores.recall[10], users, alone)


def with_ranks(comparison: Comparison, original: Ranked, compressed: Ranked) -> Comparison:
    """The comparison with what the rankings become; both are of the same users."""
    difference = paired_bootstrap(compressed.recall, original.recall, original.users)
    before, after = float(original.recall.mean()), float(compressed.recall.mean())
    return replace(
        comparison,
        original=replace(comparison.original, recall=before, alone=original.alone),
        compressed=replace(comparison.compressed, recall=after, alone=compressed.alone),
        lost=-difference.mean / before if before else 0.0,
        interval=(difference.low, difference.high) if np.isfinite(difference.low) else None,
    )


def _refuse(comparison: Comparison, most_loss: float, force: bool) -> None:
    lost = comparison.lost
    if force or lost is None or lost <= most_loss:
        return
    raise LossError(
        f"{comparison.made.method}: found R@10 on valid of {comparison.compressed.recall:.4f} "
        f"against {comparison.original.recall:.4f} with {comparison.made.start}, "
        f"{lost:.1%} less; allowed: {most_loss:.1%}. Nothing was written. Choose another method or "
        "keep more layers, allow more with --most-loss, or keep it all the same with --force.",
        comparison,
    )
