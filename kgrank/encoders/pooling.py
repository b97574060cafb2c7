"""How token vectors become one vector: their mean or the first, and a projection where one is.

The folder says it as sentence-transformers does: modules.json names the modules in order, and
1_Pooling and a folder such as 2_Dense hold what each of the two needs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kgrank.encoders.folders import read_json
from kgrank.errors import ModelError

if TYPE_CHECKING:
    import torch

_KNOWN = {"Transformer", "Pooling", "Dense", "Normalize"}
_IDENTITY = "torch.nn.modules.linear.Identity"
_MODULES = "sentence_transformers.models."
DENSE = "2_Dense"  # where a projection is written

Mode = Literal["mean", "cls"]


@dataclass(frozen=True)
class Pooling:
    """What comes after the transformer.

    Attributes:
        mode: the "mean" of the token vectors, or that of the "cls" token.
        dense: the folder of a linear projection; None = there is none.
        dim: width of what comes out; None = that of the transformer.
    """

    mode: Mode
    dense: Path | None = None
    dim: int | None = None

    def projection(self) -> torch.nn.Linear | None:
        """The projection with its weights.

        Raises:
            ModelError: they cannot be read, or are not of the size that is stated.
        """
        if self.dense is None:
            return None
        from safetensors import SafetensorError
        from safetensors.torch import load_file
        from torch import nn

        stated = read_json(self.dense / "config.json")
        path = self.dense / "model.safetensors"
        try:
            bias = bool(stated.get("bias", True))
            linear = nn.Linear(stated["in_features"], stated["out_features"], bias)
            weights = {name.removeprefix("linear."): t for name, t in load_file(path).items()}
            linear.load_state_dict(weights)
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            raise ModelError(
                f"{path}: found a projection that cannot be read ({error}); allowed: safetensors "
                "with linear.weight and linear.bias of the sizes in config.json. Get the folder "
                "anew from its source."
            ) from error
        return linear.float()


def read_pooling(folder: Path) -> Pooling:
    """How the folder says token vectors become one; their mean where it says nothing.

    Raises:
        ModelError: it says something else.
    """
    modules = read_json(folder / "modules.json") or []
    names = [entry["type"].rsplit(".", 1)[-1] for entry in modules]
    config = read_json(folder / "1_Pooling" / "config.json")
    modes = [key for key, on in config.items() if key.startswith("pooling_mode_") and on is True]
    mode = config.get("pooling_mode", "+".join(modes) or "pooling_mode_mean_tokens")
    modes_of: dict[str, Mode] = {
        **dict.fromkeys(("mean", "pooling_mode_mean_tokens"), "mean"),
        **dict.fromkeys(("cls", "pooling_mode_cls_token"), "cls"),
    }
    dense = [
        folder / entry["path"]
        for entry, name in zip(modules, names, strict=True)
        if name == "Dense"
    ]
    stated = read_json(dense[0] / "config.json") if dense else {}
    linear = not dense or stated.get("activation_function") == _IDENTITY
    if set(names) <= _KNOWN and mode in modes_of and len(dense) < 2 and linear:
        where = dense[0] if dense else None
        return Pooling(modes_of[mode], where, stated.get("out_features"))
    raise ModelError(
        f"{folder} pools by {mode} with the modules {', '.join(names) or 'none'}; allowed: mean "
        "or cls pooling, without further layers but for one linear projection. Choose an encoder "
        "of that kind."
    )


def write_projection(folder: Path, projection: torch.nn.Linear, mode: str) -> None:
    """Write a projection into an encoder's folder, so that `read_pooling` finds it there.

    Args:
        folder: has the transformer already.
        projection: with a bias.
        mode: how token vectors become one before it.
    """
    from safetensors.torch import save_file

    where = folder / DENSE
    where.mkdir(exist_ok=True)
    sizes: dict[str, Any] = {
        "in_features": projection.in_features,
        "out_features": projection.out_features,
        "bias": projection.bias is not None,
        "activation_function": _IDENTITY,
    }
    (where / "config.json").write_text(json.dumps(sizes, indent=1) + "\n", "utf-8")
    tensors = {f"linear.{n}": t.detach().contiguous() for n, t in projection.named_parameters()}
    save_file(tensors, where / "model.safetensors", {"format": "pt"})
    pooling = folder / "1_Pooling"
    if not (pooling / "config.json").exists():
        pooling.mkdir(exist_ok=True)
        said = {"word_embedding_dimension": projection.in_features}
        said |= {f"pooling_mode_{m}": on for m, on in _modes(mode).items()}
        (pooling / "config.json").write_text(json.dumps(said, indent=1) + "\n", "utf-8")
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Dense": DENSE, "Normalize": "3_Normalize"}
    modules = [
        {"idx": place, "name": str(place), "path": path, "type": _MODULES + name}
        for place, (name, path) in enumerate(paths.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules, indent=1) + "\n", "utf-8")


def _modes(mode: str) -> dict[str, bool]:
    return {"cls_token": mode == "cls", "mean_tokens": mode == "mean"}
