"""Some of a transformer's layers, the others dropped."""

from __future__ import annotations

from typing import Any

from kgrank.errors import ConfigError, ModelError


def drop_layers(model: Any, n: int | None, keep: str) -> tuple[int, ...]:
    """Keep n layers of a transformer, in place.

    Dropping layers of a trained model is from Sajjad et al. 2023, "On the effect of dropping layers
    of pre-trained transformer models".

    Args:
        model: of transformers.
        n: how many stay; half of them, rounded up, if None.
        keep: "spread" or "first".

    Returns:
        Which stay, by number from 0; the first always does.

    Raises:
        ConfigError: there are not more than n layers.
        ModelError: what its layers are cannot be told, or there is only one.
    """
    from torch.nn import ModuleList

    config = model.config
    total = config.num_hidden_layers
    lists = [
        (name, part)
        for name, part in model.named_modules()
        if isinstance(part, ModuleList) and len(part) == total
    ]
    if len(lists) != 1:
        raise ModelError(
            f"found {len(lists)} lists of {total} layers in a {config.model_type} model; allowed: "
            "one. Choose an encoder such as BERT, RoBERTa, MPNet or ModernBERT, or the method "
            "static or int8."
        )
    if total < 2:
        raise ModelError(
            "found an encoder of a single layer; allowed: two or more, of which some can be "
            "dropped. Take the method static or int8."
        )
    n = n or (total + 1) // 2
    if n >= total:
        raise ConfigError(
            f"compress.layers: found {n}; allowed: 1 to {total - 1}, since the encoder has {total} "
            "layers. Keep fewer."
        )
    if keep == "first" or n == 1:
        kept = tuple(range(n))
    else:
        kept = tuple((place * (total - 1) + (n - 1) // 2) // (n - 1) for place in range(n))
    name, layers = lists[0]
    holder, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(holder), attribute, ModuleList([layers[i] for i in kept]))
    config.num_hidden_layers = n
    kinds = getattr(config, "layer_types", None)  # where layers differ in what they attend to
    if kinds:
        config.layer_types = [kinds[i] for i in kept]
    return kept
