"""A transformer as an ONNX graph, with weights of 32 or of 8 bits."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from kgrank.encoders.runtimes import ONNX_FILE
from kgrank.extras import needs

_EXPORTING = ("onnx", "onnxscript", "onnxruntime")


def need_exporter() -> None:
    """See that what exports a graph is installed.

    Raises:
        ModelError: it is not.
    """
    for module in _EXPORTING:
        needs(module, "onnx", "the export of an encoder")


def write_onnx(folder: Path, model: Any, *, small: bool) -> None:
    """Write `onnx/model.onnx`: the model as a graph, its weights in 8 bits if `small`.

    Args:
        folder: an encoder's; the folder in it is made.
        model: a transformer that gives `last_hidden_state`, in evaluation mode.
        small: whether weights are rounded.

    Raises:
        OSError: the folder cannot be written to.
    """
    path = folder / ONNX_FILE
    path.parent.mkdir()
    if not small:
        export_graph(model, path)
        return
    whole = path.with_name("whole.onnx")
    export_graph(model, whole)
    round_weights(whole, path)
    whole.unlink()


def export_graph(model: Any, path: Path) -> None:
    """Write a transformer as a graph of `OnnxRuntime`'s kind, in one file, which 2 GB limit."""
    import torch

    class Hidden(torch.nn.Module):
        """The model with one result."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden: torch.Tensor = self.model(
                input_ids=input_ids, attention_mask=attention_mask
            ).last_hidden_state
            return hidden

    texts, tokens = torch.export.Dim("texts"), torch.export.Dim("tokens")
    given = {"input_ids": {0: texts, 1: tokens}, "attention_mask": {0: texts, 1: tokens}}
    example = torch.ones((2, 8), dtype=torch.long)
    with _quiet(), torch.no_grad():
        torch.onnx.export(
            Hidden().eval(),
            (example, example.clone()),
            path,
            input_names=list(given),
            output_names=["last_hidden_state"],
            dynamic_shapes=given,
            external_data=False,
            verbose=False,
        )


def round_weights(whole: Path, path: Path) -> None:
    """Write a graph with its weights in 8 bits; activations are rounded as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        # 7 bits of the 8: with all of them, processors without VNNI overflow summing products.
        quantize_dynamic(
            whole, path, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing that the exporter prints, warns of or logs inside; what it raises says enough."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
