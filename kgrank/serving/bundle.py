"""A fitted shop: everything that ranking and explaining need, in memory and on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from kgrank.config import Config
from kgrank.errors import BundleError, ConfigError
from kgrank.fusion.channels import Channel, DenseFeatures, Form, ItemItem, SparseFeatures
from kgrank.fusion.evidence import SPLITS, numbered
from kgrank.fusion.history import Decay, Histories
from kgrank.fusion.model import FusedModel, Head
from kgrank.fusion.prediction import Predictor
from kgrank.fusion.selection import Choice
from kgrank.fusion.training import Fit
from kgrank.fusion.weights import FusionWeights, ItemSide
from kgrank.kg.entities import EntityVectors, LightSteps
from kgrank.kg.graph import ItemEntityMatrix, KnowledgeGraph
from kgrank.kg.splits import SplitCuts, SplitSettings
from kgrank.kg.tables import Tables
from kgrank.kg.vocabulary import Vocabulary
from kgrank.loop import Trained
from kgrank.serving.bundle_folder import open_bundle, write_bundle
from kgrank.serving.rules import Rules

if TYPE_CHECKING:
    from kgrank.serving.training import Prepared

_RULES = "rules.json"
_FORMS = {"item_item": ItemItem, "features": SparseFeatures, "vectors": DenseFeatures}


@dataclass(frozen=True, eq=False)
class Bundle:
    """A fitted model with the histories, names and graph it speaks of.

    Attributes:
        config: the configuration it was fitted with.
        model: channels, gates and fusion weights.
        users: numbers the users.
        items: numbers the items.
        events: the histories, `user_id`, `item_id`, `event`, `timestamp` or `position`, `value`,
            `split` ("train" or "valid").
        item_table: the items as they were given.
        user_table: the users as they were given.
        graph: all facts, test events left out.
        cuts: how the events were split.
        source: where the tables came from; None for tables made in memory.
        facts: what was found while fitting: counts, choices, cross-fitted metrics on valid.
        rules: the shop's rules, which lists keep to unless a recommender is given others.
    """

    config: Config
    model: FusedModel
    users: Vocabulary
    items: Vocabulary
    events: pd.DataFrame
    item_table: pd.DataFrame
    user_table: pd.DataFrame
    graph: KnowledgeGraph
    cuts: SplitCuts
    source: Path | None
    facts: dict[str, Any]
    rules: Rules = field(default_factory=Rules.none)

    @classmethod
    def of(
        cls, tables: Tables, config: Config, prepared: Prepared, fitted: Fit, rules: Rules
    ) -> Bundle:
        """The bundle of a finished fit."""
        split = prepared.cuts.apply(tables.events)
        events = split[split["split"] != "test"].reset_index(drop=True)
        encoded, pictures = prepared.encoded, prepared.pictures
        facts = {
            "rows": {name: int((prepared.splits == n).sum()) for n, name in enumerate(SPLITS[:2])},
            "users": len(prepared.users),
            "items": len(prepared.items),
            "edges": prepared.graph.n_edges,
            "text_encoder": prepared.encoder,
            "text_vectors": asdict(encoded) if encoded else None,
            "image_encoder": prepared.image_encoder,
            "image_vectors": asdict(pictures) if pictures else None,
            "choices": {name: _choice_to_json(choice) for name, choice in fitted.choices.items()},
            "learned": _trained_to_json(fitted.trained) if fitted.trained else None,
            "fusion": {
                head: {"method": fused.method, "valid_ndcg@10": fused.ndcg}
                for head, fused in fitted.fused.items()
            },
            "tasks": {task: head.facts for task, head in fitted.tasks.found.items()},
            "tasks_left_out": dict(fitted.tasks.left_out),
        }
        return cls(
            config=config,
            model=fitted.model,
            users=prepared.users,
            items=prepared.items,
            events=events,
            item_table=tables.items,
            user_table=tables.users,
            graph=prepared.graph,
            cuts=prepared.cuts,
            source=tables.source.resolve() if tables.source else None,
            facts=facts,
            rules=rules,
        )

    @cached_property
    def numbered_events(self) -> tuple[Histories, npt.NDArray[np.int8]]:
        """The events by user, in order of time, and the split of each: 0 = train, 1 = valid."""
        return numbered(self.events, self.users, self.items)

    @property
    def histories(self) -> Histories:
        """The events by user, in order of time."""
        return self.numbered_events[0]

    @cached_property
    def item_entities(self) -> ItemEntityMatrix:
        """Which graph edges stand behind each entry of the graph channel's features."""
        return self.graph.item_entity_matrix(self.items)

    @cached_property
    def names(self) -> dict[str, str]:
        """Item id → title, or the id where there is none."""
        table = self.item_table
        return {i: t or i for i, t in zip(table["item_id"], table["title"], strict=True)}

    def save(self, models: str | Path) -> Path:
        """Write the bundle into a models folder and make it the current one.

        Returns:
            the bundle's folder, `models/<UTC>-<hash>`.
        """
        fusion = self.facts["fusion"]
        manifest = {
            "config": self.config.as_dict(),
            "metrics": {
                head: {"valid_ndcg@10": found["valid_ndcg@10"].get(found["method"])}
                for head, found in fusion.items()
            },
            "rows": {
                **self.facts["rows"],
                **{name: self.facts[name] for name in ("users", "items", "edges")},
            },
            "source": str(self.source) if self.source else None,
            "cuts": _cuts_to_json(self.cuts),
            "channels": [
                {
                    "name": channel.name,
                    "form": next(f for f, kind in _FORMS.items() if isinstance(channel.form, kind)),
                    "decay": _decay_to_json(channel.decay),
                }
                for channel in self.model.channels
            ],
            "heads": {
                head: {"trend": weights.trend, "cold_bias": weights.cold_bias}
                for head, weights in self.model.heads.items()
            },
            "predictors": {
                head: predictor.as_json() for head, predictor in self.model.predictors.items()
            },
            "facts": self.facts,
        }
        return write_bundle(Path(models), self._write, manifest)

    def _write(self, folder: Path) -> None:
        side = self.model.side
        weights: dict[str, np.ndarray] = {
            "side.popularity": side.popularity,
            "side.trend": side.trend,
            "side.cold": side.cold.astype(np.uint8),
        }
        for head, fusion in self.model.heads.items():
            for part in ("weight", "slope", "cold"):
                weights[f"head.{head}.{part}"] = getattr(fusion, part)
        for head, predictor in self.model.predictors.items():
            weights[f"head.{head}.base"] = predictor.base
        arrays: dict[str, dict[str, np.ndarray]] = {"weights": weights, **{f: {} for f in _FORMS}}
        for channel in self.model.channels:
            name, form = channel.name, channel.form
            if isinstance(form, DenseFeatures):
                arrays["vectors"][name] = form.values.cpu().numpy()
                if form.sources is not None:
                    arrays["vectors"][f"{name}.sources"] = form.sources.cpu().numpy()
                if form.entities is not None:
                    form.entities.save(folder / _entities(name))
                    if form.entities.items is not None:
                        form.entities.items.save(folder / _tails(name))
                    if form.entities.steps is not None:
                        arrays["vectors"][f"{name}.base"] = form.entities.steps.base
                        arrays["vectors"][f"{name}.steps"] = form.entities.steps.weights
                if form.lengths is not None:
                    arrays["vectors"][f"{name}.lengths"] = form.lengths
            else:
                sparse = form.weights if isinstance(form, ItemItem) else form.values
                file = arrays["item_item" if isinstance(form, ItemItem) else "features"]
                file[f"{name}.indptr"] = sparse.indptr.astype(np.int64)
                file[f"{name}.indices"] = sparse.indices.astype(np.int32)
                file[f"{name}.data"] = sparse.data.astype(np.float32)
                file[f"{name}.shape"] = np.array(sparse.shape, np.int64)
        for name, content in arrays.items():
            contiguous = {key: np.ascontiguousarray(value) for key, value in content.items()}
            save_file(contiguous, folder / f"{name}.safetensors")
        self.graph.save(folder / "graph")
        self.item_table.to_parquet(folder / "items.parquet", index=False)
        self.user_table.to_parquet(folder / "users.parquet", index=False)
        self.events.to_parquet(folder / "events.parquet", index=False)
        ids = pd.DataFrame({"user_id": self.users.ids()})
        ids.to_parquet(folder / "user_ids.parquet", index=False)
        if len(self.rules):
            text = json.dumps(self.rules.content, ensure_ascii=False, indent=1)
            (folder / _RULES).write_text(text, "utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Bundle:
        """Read a bundle's folder, or the current one of a models folder; every byte is checked.

        Raises:
            BundleError: something is missing, damaged, too large or of an unknown format.
        """
        folder, manifest = open_bundle(Path(path))
        try:
            return cls._read(folder, manifest)
        except (KeyError, ValueError, TypeError, OSError, SafetensorError, ConfigError) as error:
            raise BundleError(
                f"{folder}: found a bundle whose parts do not fit together ({error}); allowed: "
                "one written by this version. Train it again."
            ) from error

    @classmethod
    def _read(cls, folder: Path, manifest: Mapping[str, Any]) -> Bundle:
        arrays = {n: load_file(folder / f"{n}.safetensors") for n in ("weights", *_FORMS)}
        for file, content in arrays.items():
            for name, values in content.items():
                if not np.isfinite(values).all():
                    raise ValueError(
                        f"{file}.safetensors holds numbers that are not finite: {name}"
                    )
        weights = arrays["weights"]
        side = ItemSide(
            weights["side.popularity"], weights["side.trend"], weights["side.cold"].astype(bool)
        )
        heads = {
            cast(Head, head): FusionWeights(
                weights[f"head.{head}.weight"],
                weights[f"head.{head}.slope"],
                weights[f"head.{head}.cold"],
                float(scalars["trend"]),
                float(scalars["cold_bias"]),
            )
            for head, scalars in manifest["heads"].items()
        }
        names = [entry["name"] for entry in manifest["channels"]]
        entities = {
            name: replace(
                EntityVectors.load(folder / _entities(name)),
                items=EntityVectors.load(folder / _tails(name))
                if _tails(name) in manifest["files"]
                else None,
            )
            for name in names
            if _entities(name) in manifest["files"]
        }
        channels = tuple(
            Channel(
                entry["name"],
                _decay_from_json(entry["decay"]),
                _form(
                    entry["form"],
                    entry["name"],
                    arrays[entry["form"]],
                    entities.get(entry["name"]),
                ),
            )
            for entry in manifest["channels"]
        )
        predictors = {
            cast(Head, head): Predictor.from_json(values, weights[f"head.{head}.base"])
            for head, values in manifest.get("predictors", {}).items()  # none in older bundles
        }
        if set(heads) != {"new", "all", *predictors}:
            raise ValueError(f"the heads are {sorted(heads)}")
        if any(predictor.base.shape != side.cold.shape for predictor in predictors.values()):
            raise ValueError("not one base for each item")
        if any(len(head.vector()) != 3 * len(channels) + 2 for head in heads.values()):
            raise ValueError("not one fusion weight for each channel")
        items = pd.read_parquet(folder / "items.parquet")
        users = pd.read_parquet(folder / "user_ids.parquet")
        return cls(
            config=Config.from_dict(manifest["config"], "manifest.json"),
            model=FusedModel(channels, side, heads, predictors),
            users=Vocabulary.from_ids(users["user_id"], "user"),
            items=Vocabulary.from_ids(items["item_id"], "item"),
            events=pd.read_parquet(folder / "events.parquet"),
            item_table=items,
            user_table=pd.read_parquet(folder / "users.parquet"),
            graph=KnowledgeGraph.load(folder / "graph"),
            cuts=_cuts_from_json(manifest["cuts"]),
            source=Path(manifest["source"]) if manifest["source"] else None,
            facts=manifest["facts"],
            rules=_rules(folder / _RULES) if _RULES in manifest["files"] else Rules.none(),
        )


def _rules(path: Path) -> Rules:
    return Rules.from_dict(json.loads(path.read_text("utf-8")), path.name)


def _entities(channel: str) -> str:
    """The file of a channel's entity vectors; there is none where it has none."""
    return f"{channel}.entities.parquet"


def _tails(channel: str) -> str:
    """The file of the vectors of items that facts lead to; there is none where none does."""
    return f"{channel}.tails.parquet"


def _form(
    kind: str, name: str, arrays: Mapping[str, np.ndarray], entities: EntityVectors | None
) -> Form:
    if kind == "vectors":
        sources = arrays.get(f"{name}.sources")
        if entities is not None and f"{name}.steps" in arrays:
            steps = LightSteps(arrays[f"{name}.base"], arrays[f"{name}.steps"])
            entities = replace(entities, steps=steps)
        return DenseFeatures(
            torch.from_numpy(arrays[name]),
            None if sources is None else torch.from_numpy(sources),
            entities,
            arrays.get(f"{name}.lengths"),
        )
    data = arrays[f"{name}.data"]
    shape = tuple(int(n) for n in arrays[f"{name}.shape"])
    sparse = sp.csr_matrix((data, arrays[f"{name}.indices"], arrays[f"{name}.indptr"]), shape)
    sparse.check_format(full_check=True)
    return ItemItem(sparse) if kind == "item_item" else SparseFeatures(sparse)


def _choice_to_json(choice: Choice) -> dict[str, Any]:
    ridge = asdict(choice.ridge) if choice.ridge else None
    decay = _decay_to_json(choice.decay)
    steps = choice.steps._asdict() if choice.steps else None
    return {"decay": decay, "ridge": ridge, "steps": steps, "valid_ndcg@10": choice.ndcg}


def _trained_to_json(trained: Trained) -> dict[str, Any]:
    return {n: list(v) if isinstance(v, tuple) else v for n, v in asdict(trained).items()}


def _decay_to_json(decay: Decay) -> dict[str, Any]:
    finite = {
        k: v for k, v in asdict(decay).items() if not isinstance(v, float) or math.isfinite(v)
    }
    return {k: v for k, v in finite.items() if v is not None}


def _decay_from_json(values: Mapping[str, Any]) -> Decay:
    tables: dict[str, Any] = {n: tuple(v) for n, v in values.items() if isinstance(v, list)}
    return Decay(**{**values, **tables})


def _cuts_to_json(cuts: SplitCuts) -> dict[str, Any]:
    by_user = cuts.by_user.model_dump() if cuts.by_user else None
    return {
        "valid_from": cuts.valid_from,
        "test_from": cuts.test_from,
        "by_user": by_user,
        "of_train": cuts.of_train,
    }


def _cuts_from_json(values: Mapping[str, Any]) -> SplitCuts:
    by_user = SplitSettings(**values["by_user"]) if values["by_user"] else None
    of_train = values.get("of_train", False)  # not in older bundles
    return SplitCuts(values["valid_from"], values["test_from"], by_user, of_train)
