"""Fine-tuning of a text encoder on what people chose and said.

What comes out is a folder that `TextEncoder.load` takes, with the heads and the numbers:

    config.json, model.safetensors, the tokenizer's files, how token vectors are pooled
    2_Dense/               the projection, where one was learned
    heads.safetensors      of click, purchase, rating and sentiment
    finetuning.json        settings, heads, metrics before and after, score after each epoch
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pandas as pd
from pydantic import Field, model_validator

from kgrank.devices import choose_device
from kgrank.encoders.folders import (
    copy_text_files,
    quiet_transformers,
    write_figures,
)
from kgrank.encoders.pooling import write_projection
from kgrank.encoders.soft_prompt import write_prompt
from kgrank.encoders.text import TextEncoder, TextSettings, item_texts
from kgrank.errors import ConfigError, DataError, Fault
from kgrank.files import check_new, new_folder
from kgrank.progress import Progress, silent
from kgrank.settings import LearnSettings, Section

if TYPE_CHECKING:
    from kgrank.encoders.augmenting import Translate
    from kgrank.encoders.tuned import TunedText
    from kgrank.loop import Sink

_NO_KINDS: Mapping[str, Collection[str]] = MappingProxyType({})
TASKS = ("next", "click", "purchase", "rating", "sentiment")
HEADS = "heads.safetensors"
FACTS = "finetuning"
RATES = {"full": 1.5e-4, "frozen": 1e-3, "lora": 5e-4, "adalora": 1e-3, "prompt": 3e-3}

Share = Annotated[float, Field(ge=0, lt=1)]


class FinetuneSettings(Section):
    """The `[finetune]` section: how a text encoder learns from events.

    Which text of a product is read, `[text] fields` says; which events are clicks, purchases and
    ratings, `[tasks]`.

    Attributes:
        method: "full": all weights; "lora": low-rank additions (pip install kgrank[peft]) that are
            merged into the weights in the end; "adalora": the same, of ranks that are shared out
            where they matter; "prompt": vectors that stand before every text, as further tokens
            (needs peft, too); "frozen": a linear projection of the vectors alone.
        embeddings: whether "full" moves the vectors of single tokens too.
        rank: of the additions; of "adalora" on average, in the end; of "prompt" how many vectors.
        max_tokens: a longer text is cut here while the encoder learns (or at the model's own
            limit, if that is lower); a prompt comes on top.
        history: events of a history, the newest.
        power: an event weighs (1 + age)^-power, age in events.
        temperature: divides the cosines of `next`.
        popularity: how far `next` takes off how often a product is chosen, 0 to 1.
        negatives: products drawn for each that was clicked or purchased.
        event_field: the column of events whose text is rated, such as a review; the product's text
            if None.
        label: the column of events that holds the class of a review's sentiment; by the rating if
            None.
        scale: lowest and highest rating.
        masked: probability that a token is hidden while the encoder learns.
        shuffled: how often a text's sentences change places while it learns.
        dropped: probability that an event of a history is dropped while it learns.
        joined: how often another user's history follows as an older one while it learns.
        epochs: passes over the texts (of "frozen": over the moments), at most.
        patience: epochs without a better score on valid after which training stops.
        encoded: texts a step that are encoded anew.
        rows: moments a step, at most.
        rate: highest learning rate; 1.5e-4 for "full", 5e-4 for "lora", 1e-3 for "adalora" and
            "frozen" and 3e-3 for "prompt" if left out.
        warmup: steps over which the rate rises.
        decay: AdamW's weight decay.
        seed: of everything that is drawn.
    """

    method: Literal["full", "frozen", "lora", "adalora", "prompt"] = "full"
    embeddings: bool = False
    rank: int = Field(default=8, ge=1)
    max_tokens: int = Field(default=32, ge=3)
    history: int = Field(default=10, ge=1, le=50)
    power: float = Field(default=1.0, ge=0)
    temperature: float = Field(default=0.1, gt=0)
    popularity: float = Field(default=0.0, ge=0, le=1)
    negatives: int = Field(default=4, ge=1)
    event_field: str | None = None
    label: str | None = None
    scale: tuple[float, float] = (1.0, 5.0)
    masked: Share = 0.0
    shuffled: Share = 0.0
    dropped: Share = 0.0
    joined: Share = 0.0
    epochs: int = Field(default=6, ge=1)
    patience: int = Field(default=2, ge=1)
    encoded: int = Field(default=64, ge=1)
    rows: int = Field(default=2_048, ge=1)
    rate: float | None = Field(default=None, gt=0)
    warmup: int = Field(default=10, ge=0)
    decay: float = Field(default=0.01, ge=0)
    seed: int = Field(default=0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _rises(self) -> FinetuneSettings:
        if self.scale[0] >= self.scale[1]:
            found = f"found scale {self.scale[0]:g} to {self.scale[1]:g}"
            raise ValueError(f"{found}; allowed: the lowest rating, then a higher one")
        return self

    def event_columns(self) -> dict[str, list[str]]:
        """Setting → the columns of events that it names."""
        named = {"finetune.event_field": self.event_field, "finetune.label": self.label}
        return {setting: [name] if name else [] for setting, name in named.items()}

    def learn(self) -> LearnSettings:
        """What the training loop is told."""
        return LearnSettings(
            epochs=self.epochs,
            patience=self.patience,
            rate=self.rate or RATES[self.method],
            warmup=self.warmup,
            decay=self.decay,
            seed=self.seed,
        )


@dataclass(frozen=True)
class Finetuned:
    """A finished fine-tuning.

    Attributes:
        folder: the encoder's.
        start: what it went on from: "minilm" or a folder.
        method: as of the settings.
        tasks: task → weight.
        before: task → metrics on valid before training (heads had learned nothing then).
        after: task → metrics on valid of what was kept.
        score: on valid before training and after each epoch: NDCG@10, AUC, 1 − RMSE as a share of
            the scale, and macro F1, by weight.
        loss: mean of each epoch.
        best_epoch: after which the weights stood that are kept, from 1.
        texts: distinct texts that were read.
        cut: of them, those longer than was read.
        unjudged: sentiment that train does not hold → rows of valid that have it, which are not in
            the metrics.
        learned: numbers that moved.
        seconds: of this run's training; what was done before a resume is not in it.
    """

    folder: str
    start: str
    method: str
    tasks: dict[str, float]
    before: dict[str, dict[str, float]]
    after: dict[str, dict[str, float]]
    score: tuple[float, ...]
    loss: tuple[float, ...]
    best_epoch: int
    texts: int
    cut: int
    unjudged: dict[str, int]
    learned: int
    seconds: float


def finetune(
    items: pd.DataFrame,
    events: pd.DataFrame,
    out: str | Path,
    settings: FinetuneSettings | None = None,
    *,
    tasks: Mapping[str, float],
    kinds: Mapping[str, Collection[str]] = _NO_KINDS,
    text: TextSettings | None = None,
    start: str | Path = "minilm",
    device: str = "auto",
    translate: Translate | None = None,
    resume: bool = False,
    sinks: Sequence[Sink] = (),
    progress: Progress = silent,
) -> Finetuned:
    """Fine-tune an encoder on train events and write its folder, whole or not at all.

    Valid events tell when to stop; test events are not read. The same tables, settings and start
    give the same weights to the bit on one machine's CPU, whether the training was cut short and
    resumed or not.

    Args:
        items: as in `Tables.items`.
        events: as in `Tables.events`, with a split and the columns that the settings name.
        out: a new folder. The checkpoint lies beside it while the training lasts.
        settings: the `[finetune]` section; its defaults if None.
        tasks: task → weight, of "next", "click", "purchase", "rating", "sentiment". An
            epoch is a pass over the one that weighs most (of equal ones, over that with the most
            batches), and holds of the others as many batches as they weigh beside it.
        kinds: "click", "purchase" and "rating" → the kinds of events that are so, for tasks other
            than "next".
        text: the `[text]` section, for the text of products and how their vectors are whitened.
        start: "minilm", or a folder that `TextEncoder.load` takes.
        device: "cpu", "cuda" or "auto".
        translate: says texts in other words, such as by translation there and back; half the time
            the encoder learns from those. It must give the same for the same texts.
        resume: go on from the checkpoint, if there is one of this very training; if it is of
            another, begin anew and say so (a warning is logged).
        sinks: where figures go.
        progress: told of each stage.

    Raises:
        ConfigError: `out` is there already; a task or column is unknown; peft is missing; a prompt
            leaves no room for a text; `translate` gives no list of as many texts.
        DataError: events have no split; there are none of a task's kind, a label is not allowed,
            all are of one class, or those of valid are of none that train holds.
        ModelError: the start is no encoder, its tokenizer has more entries than the model, or knows
            none of the words, or takes no prompt; training diverges; the checkpoint is damaged.
        OSError: the folder cannot be written.
    """
    import torch

    from kgrank.encoders.augmenting import in_other_words
    from kgrank.encoders.examples import Catalogue
    from kgrank.encoders.finetuning_tasks import objectives_of, read_examples
    from kgrank.encoders.objectives import Mixture
    from kgrank.encoders.tuned import TunedText
    from kgrank.loop import Loop

    settings, text, at = (
        settings or FinetuneSettings(),
        text or TextSettings(),
        choose_device(device),
    )
    named, out = str(out), check_new(out)
    _check_tasks(tasks)
    if "split" not in events:
        mend = "Say of each event which it is, as `Tables.with_split` does."
        raise DataError([Fault("events", None, "split", "none", "train, valid or test", mend)])
    progress("texts", 0, 1)
    seen = events[events["split"] != "test"]
    catalogue = Catalogue.of(item_texts(items, text))
    examples = read_examples(tasks, kinds, items, seen, catalogue, settings)
    torch.manual_seed(settings.seed)  # of weights that the folder lacks, too
    encoder = TextEncoder.load(start, at, settings.max_tokens)
    texts = tuple(dict.fromkeys([*catalogue.texts, *examples.texts()]))
    other = None if translate is None else in_other_words(translate, texts)
    model = TunedText(
        encoder,
        texts,
        len(catalogue.texts),
        method=settings.method,
        rank=settings.rank,
        embeddings=settings.embeddings,
        said_otherwise=other,
        masked=settings.masked,
        shuffled=settings.shuffled,
    )
    objectives, heads = objectives_of(tasks, model, catalogue, examples, settings, text.shrinkage)
    task = Mixture(model, objectives, heads.to(at), settings.seed)
    progress("texts", 1, 1)
    first = task.judge()
    before = task.figures()
    loop = Loop(
        task,
        settings.learn(),
        "fine-tuning",
        folder=out.with_name(f".{out.name}.training"),
        resume=resume,
        identity=_identity(
            [settings.as_dict(), text.as_dict(), list(tasks.items())],
            [encoder.fingerprint, texts, other],
            {name: sorted(of) for name, of in kinds.items()},
            seen,
        ),
        sinks=sinks,
        report=progress,
        after_step=None if model.ranks is None else model.ranks.stepped,
    )
    trained = loop.run()
    with torch.no_grad():
        after = task.figures()  # the table is of the best epoch, as all weights are
    done = Finetuned(
        folder=named,
        start=str(start),
        method=settings.method,
        tasks=dict(tasks),
        before=before,
        after=after,
        score=(first, *trained.valid),
        loss=trained.losses,
        best_epoch=trained.best_epoch,
        texts=len(texts),
        cut=sum(model.cut),
        unjudged=examples.unjudged,
        learned=sum(p.numel() for p in task.module.parameters() if p.requires_grad),
        seconds=trained.seconds,
    )
    about = {"settings": settings.as_dict(), "classes": examples.classes}
    _write(out, model, dict(heads.state_dict()), {**asdict(done), **about})
    return done


def _check_tasks(tasks: Mapping[str, float]) -> None:
    for name, weight in tasks.items():
        if name not in TASKS:
            raise ConfigError(
                f"task: found {name!r}; allowed: {', '.join(TASKS)}. Name one of them."
            )
        if not 0 < weight < float("inf"):
            raise ConfigError(
                f"task {name}: found the weight {weight:g}; allowed: above 0. Correct it, or "
                "leave the task out."
            )
    if not tasks:
        raise ConfigError(f"task: found none; allowed: {', '.join(TASKS)}. Name one of them.")


def _identity(
    settings: list[Any], read: list[Any], kinds: Mapping[str, list[str]], events: pd.DataFrame
) -> str:
    """What a checkpoint must have been trained on."""
    digest = sha256(json.dumps([settings, read, kinds]).encode())
    for name in events:  # a column may hold lists
        digest.update(repr(name).encode())
        column = events[name].astype("str")
        digest.update(pd.util.hash_pandas_object(column, index=False).to_numpy().tobytes())
    return digest.hexdigest()


def _write(out: Path, model: TunedText, heads: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write the encoder's folder, with the heads beside it."""
    from safetensors.torch import save_file

    encoder = model.merged()
    with new_folder(out) as folder:
        with quiet_transformers():
            transformer: Any = encoder.model
            transformer.cpu().save_pretrained(folder)
        copy_text_files(encoder.folder, folder)
        if facts["method"] == "prompt":
            write_prompt(encoder, folder)
        if encoder.projection is not None:
            write_projection(folder, encoder.projection.cpu(), encoder.pooling.mode)
        if heads:
            tensors = {name: tensor.cpu().contiguous() for name, tensor in heads.items()}
            save_file(tensors, folder / HEADS, {"format": "pt"})
        write_figures(folder, FACTS, facts)
