"""Low-rank additions whose ranks are shared out while they learn: AdaLoRA, by the package peft.

Zhang et al. 2023, "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning". Each
addition is P · diag(λ) · Q. All begin with half as many more entries of λ as are wanted on average;
in the first half of the training those that matter least are set to zero, wherever they are. The
penalty that keeps P and Q orthogonal is left out: it drowned what was to be learned, since
gradients are clipped.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kgrank.errors import ModelError

_NAME = "default"


class AdaptiveRanks(nn.Module):
    """The additions to a transformer, and what their importance was so far.

    The latter is held in buffers, so that a training that is resumed goes on to the bit.

    Args:
        model: the transformer; additions are put into its linear layers.
        rank: of the additions in the end, on average.

    Raises:
        ModelError: it has no linear layers.
    """

    def __init__(self, model: nn.Module, rank: int) -> None:
        from peft import AdaLoraConfig, AdaLoraModel

        super().__init__()
        linear = [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and "pooler" not in name  # it gives no token's vector
        ]
        if not linear:
            raise ModelError(
                "adalora: found an encoder without linear layers; allowed: a transformer with "
                "them. Take finetune.method=full."
            )
        wide = rank + (rank + 1) // 2
        self._config = AdaLoraConfig(
            target_modules=linear,
            init_r=wide,
            target_r=rank,
            lora_alpha=2 * wide,
            total_step=1,  # all of its schedule is set with the first step
        )
        adapt: Any = AdaLoraModel  # it has no types
        self._adapted = (adapt(model, self._config, _NAME),)  # a tuple is no submodule
        for name, part in self._parts().items():
            for kind in ("ipt", "unc"):
                self.register_buffer(_buffer(kind, name), torch.zeros_like(part))
            if "lora_E" in name:
                self.register_buffer(_buffer("kept", name), torch.ones(len(part), dtype=torch.bool))

    @property
    def adapted(self) -> Any:
        """The model of peft."""
        return self._adapted[0]

    def _parts(self) -> dict[str, Tensor]:
        """Name → P, λ or Q of every addition."""
        named = self.adapted.model.named_parameters()
        return {name: part for name, part in named if "lora_" in name and _NAME in name}

    def stepped(self, done: int, total: int) -> None:
        """Share out the ranks after a step of the optimizer, whose gradients still stand.

        Args:
            done: steps before this one.
            total: steps of the whole training.
        """
        config, allocator, parts = self._config, self.adapted.rankallocator, self._parts()
        config.total_step, config.tinit, config.tfinal = total, total // 10, total // 2
        held = dict(self.named_buffers())
        allocator.ipt = dict.fromkeys(parts)
        allocator.exp_avg_ipt = {name: held[_buffer("ipt", name)] for name in parts}
        allocator.exp_avg_unc = {name: held[_buffer("unc", name)] for name in parts}
        shared = {name: held[_buffer("kept", name)] for name in parts if "lora_E" in name}
        config.rank_pattern = {name: kept.tolist() for name, kept in shared.items()}
        for part in parts.values():
            if part.grad is None:
                part.grad = torch.zeros_like(part)
        self.adapted.update_and_allocate(done)
        for kind, averages in (("ipt", allocator.exp_avg_ipt), ("unc", allocator.exp_avg_unc)):
            for name, average in averages.items():
                held[_buffer(kind, name)].copy_(average)
        for name, kept in shared.items():
            kept.copy_(torch.tensor(config.rank_pattern[name]))


def _buffer(kind: str, name: str) -> str:
    return f"{kind}-{name}".replace(".", "-")
