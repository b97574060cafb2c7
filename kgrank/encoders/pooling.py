"""How token vectors become one vector: their mean or the first, and a projection where one is.

The folder says it as sentence-transformers does: modules.json names the modules in order, and
1_Pooling and a folder such as 2_Dense hold what each of the two needs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kgrank.encoders.folders import read_json, read_modules
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

        pickled = self.dense / "pytorch_model.bin"
        path = self.dense / "model.safetensors"
        if pickled.is_file() and not path.is_file():
            raise ModelError(
                f"{self.dense} holds {pickled.name}; allowed: {path.name}, because a .bin file is "
                "a pickle and may run code. If you trust its source, convert it once: "
                'python -c "import torch; from safetensors.torch import save_file; '
                f"save_file(torch.load('{pickled}', weights_only=True), '{path}')\""
            )
        stated = read_json(self.dense / "config.json")
        try:
            bias = bool(stated.get("bias", True))
            linear = nn.Linear(stated["in_features"], stated["out_features"], bias)
            weights = {name.removeprefix("linear."): t for name, t in load_file(path).items()}
            linear.load_state_dict(weights)
        except (OSError, SafetensorError, KeyError, RuntimeError, TypeError) as error:
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
    modules = read_modules(folder)
    names = [name for name, _ in modules]
    paths = dict(modules)
    if paths.get("Transformer"):
        raise ModelError(
            f"{folder}: found the transformer in its folder {paths['Transformer']!r}; allowed: "
            "config.json and its weights beside modules.json. Move its files there, and set the "
            'module\'s "path" to "".'
        )
    config = read_json(folder / (paths.get("Pooling") or "1_Pooling") / "config.json")
    modes = [key for key, on in config.items() if key.startswith("pooling_mode_") and on is True]
    mode = config.get("pooling_mode", "+".join(modes) or "pooling_mode_mean_tokens")
    modes_of: dict[str, Mode] = {
        **dict.fromkeys(("mean", "pooling_mode_mean_tokens"), "mean"),
        **dict.fromkeys(("cls", "pooling_mode_cls_token"), "cls"),
    }
    dense = [folder / path for name, path in modules if name == "Dense"]
    stated = read_json(dense[0] / "config.json") if dense else {}
    linear = not dense or stated.get("activation_function") == _IDENTITY
    known = modes_of.get(str(mode))
    if set(names) <= _KNOWN and known and len(dense) < 2 and linear:
        where = dense[0] if dense else None
        return Pooling(known, where, stated.get("out_features"))
    raise ModelError(
        f"{folder} pools by {mode} with the modules {', '.join(names) or 'none'}; allowed: mean "
        "or cls pooling, without further layers but for one linear projection. Choose an encoder "
        "of that kind."
    )


def write_projection(folder: Path, projection: torch.nn.Linear, mode: Mode) -> None:
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
    write_pooling(folder, projection.in_features, mode)
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Dense": DENSE, "Normalize": "3_Normalize"}
    modules = [
        {"idx": place, "name": str(place), "path": path, "type": _MODULES + name}
        for place, (name, path) in enumerate(paths.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules, indent=1) + "\n", "utf-8")


def write_pooling(folder: Path, width: int, mode: Mode) -> None:
    """Write how token vectors become one into an encoder's folder, where `read_pooling` looks.

    Args:
        folder: the encoder's.
        width: of a token's vector.
        mode: how.
    """
    said: dict[str, Any] = {"word_embedding_dimension": width}
    said |= {f"pooling_mode_{m}_token{'s' * (m == 'mean')}": m == mode for m in ("cls", "mean")}
    (folder / "1_Pooling").mkdir(exist_ok=True)
    text = json.dumps(said, indent=1) + "\n"
    (folder / "1_Pooling" / "config.json").write_text(text, "utf-8")
