"""What a fine-tuned encoder's heads say: click, purchase, rating and sentiment, made again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from kgrank.encoders.finetuning import FACTS, HEADS, FinetuneSettings
from kgrank.encoders.finetuning_tasks import heads_of
from kgrank.encoders.folders import read_json
from kgrank.encoders.next_product import HistoryRule
from kgrank.encoders.pairs import PairHead
from kgrank.encoders.text import TextEncoder
from kgrank.errors import ModelError

PAIR_TASKS = ("click", "purchase")


@dataclass(frozen=True, eq=False)
class Predictor:
    """A fine-tuned encoder with its heads.

    Attributes:
        encoder: gives the vectors.
        heads: task → head.
        settings: those it was fine-tuned with.
        classes: names of the sentiments.
    """

    encoder: TextEncoder
    heads: Mapping[str, nn.Module]
    settings: FinetuneSettings
    classes: tuple[str, ...]

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto") -> Predictor:
        """Load what `kgrank finetune` wrote.

        Args:
            folder: the encoder's.
            device: "cpu", "cuda" or "auto".

        Raises:
            ModelError: the folder is no fine-tuned encoder with heads, or is damaged.
        """
        path = Path(folder)
        facts = read_json(_facts(path))
        if not facts or not (path / HEADS).is_file():
            raise ModelError(
                f"{folder}: found no {HEADS if facts else _facts(path).name}; allowed: the folder "
                "of an encoder fine-tuned for click, purchase, rating or sentiment. Make one with "
                "`kgrank finetune`."
            )
        try:
            stated, tasks = dict(facts["settings"]), dict(facts["tasks"])
            classes = tuple(facts["classes"])
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"{_facts(path)}: found nothing of settings, tasks and classes ({error!r}); "
                "allowed: what `kgrank finetune` wrote there. Fine-tune it again."
            ) from None
        settings = FinetuneSettings.from_dict(stated, str(_facts(path)))
        encoder = TextEncoder.load(folder, device, settings.max_tokens)
        heads = heads_of(tasks, encoder.dim, settings.negatives, len(classes))
        try:
            heads.load_state_dict(load_file(path / HEADS))
        except (SafetensorError, RuntimeError) as error:
            raise ModelError(
                f"{path / HEADS}: found heads that do not fit the encoder ({error}); allowed: "
                "those it was fine-tuned with. Fine-tune it again."
            ) from error
        return cls(encoder, dict(heads.to(encoder.device).items()), settings, classes)

    def pairs(
        self, task: str, histories: Sequence[Sequence[str]], texts: Sequence[str]
    ) -> npt.NDArray[np.float32]:
        """Probability that each user takes a product, among as many drawn ones as in training.

        Args:
            task: "click" or "purchase".
            histories: n lists of product texts, the newest first; what is beyond
                `finetune.history` is not read. Who has none counts as a zero vector.
            texts: n product texts.

        Returns:
            (n) float32.

        Raises:
            ModelError: the task is another, the encoder was not fine-tuned for it, or the lengths
                differ.
        """
        if task not in PAIR_TASKS:
            raise ModelError(
                f"task: found {task!r}; allowed: {' or '.join(PAIR_TASKS)}. Name one of them."
            )
        head = self._head(task, PairHead)
        if len(histories) != len(texts):
            raise ModelError(
                f"found {len(histories)} histories and {len(texts)} texts; allowed: as many"
            )
        window = self.settings.history
        distinct = list(dict.fromkeys([*texts, *(t for h in histories for t in h[:window])]))
        place = {text: number for number, text in enumerate(distinct)}
        vectors = torch.from_numpy(self.encoder.encode(distinct))
        history = np.full((len(texts), window), -1, np.int64)
        for row, words in enumerate(histories):
            for column, text in enumerate(words[:window]):
                history[row, column] = place[text]
        rule = HistoryRule(window, self.settings.power)
        products = vectors[[place[text] for text in texts]]
        with torch.no_grad():
            device = self.encoder.device
            odds = head(rule.users(vectors, history).to(device), products.to(device))
        return np.asarray(torch.sigmoid(odds).cpu(), np.float32)

    def ratings(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """The rating each text comes with, on the scale of `finetune.scale`: (n) float32.

        Raises:
            ModelError: the encoder was not fine-tuned for ratings.
        """
        said = self._said("rating", texts)[:, 0]
        low, high = self.settings.scale
        return np.asarray(low + (high - low) * said.clamp(0.0, 1.0), np.float32)

    def sentiments(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """The probability of each of `classes` for each text, (n × classes) float32.

        Raises:
            ModelError: the encoder was not fine-tuned for sentiment.
        """
        return np.asarray(torch.softmax(self._said("sentiment", texts), dim=1), np.float32)

    def _said(self, task: str, texts: Sequence[str]) -> torch.Tensor:
        head = self._head(task, nn.Linear)
        vectors = torch.from_numpy(self.encoder.encode(texts)).to(self.encoder.device)
        with torch.no_grad():
            found: torch.Tensor = head(vectors).cpu()
        return found

    def _head(self, task: str, kind: type[nn.Module]) -> nn.Module:
        head = self.heads.get(task)
        if not isinstance(head, kind):
            raise ModelError(
                f"found no head for {task!r}; allowed: one this encoder was fine-tuned for, "
                f"{', '.join(self.heads)}. Fine-tune it with --task {task}."
            )
        return head


def _facts(folder: Path) -> Path:
    return folder / f"{FACTS}.json"
