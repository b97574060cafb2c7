"""A model's folder: checked, named by its content and loaded, without network and without pickles.

What the encoders of text and of pictures share.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import file_digest, sha256
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal
from xml.sax.saxutils import escape

from kgrank.errors import ModelError

if TYPE_CHECKING:
    import tokenizers

FETCH = "Nothing is downloaded: fetch a model first, as with `hf download NAME --local-dir FOLDER`."

_VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model")  # one of them holds the tokens
_STATED = ("sentence_bert_config.json", "config_sentence_transformers.json")


def decisive_files(folder: Path) -> tuple[str, ...]:
    """Patterns of the files that say how text becomes tokens, and tokens a vector.

    Raises:
        ModelError: modules.json cannot be understood.
    """
    named = [f"{path}/*" for _, path in read_modules(folder) if path]
    return (
        *("*token*.json", "vocab.*", "merges.txt", "*.model"),
        *("modules.json", "1_Pooling/config.json", "*_Dense/*", *named),
    )


def copy_text_files(folder: Path, to: Path) -> None:
    """Copy how text becomes tokens, and tokens a vector, to the letter.

    Raises:
        ModelError: modules.json cannot be understood.
        OSError: a file cannot be read or written.
    """
    patterns = (*decisive_files(folder), *_STATED)
    for path in {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}:
        copy = to / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def write_tokenizer(folder: Path, tokenizer: tokenizers.Tokenizer) -> None:
    """Write a tokenizer as one file, which is read without transformers; it cuts no text there.

    Raises:
        OSError: the folder cannot be written to.
    """
    truncation = tokenizer.truncation
    tokenizer.no_truncation()
    try:
        tokenizer.save(str(folder / "tokenizer.json"))
    finally:
        if truncation:
            tokenizer.enable_truncation(**truncation)


def check_weights(folder: Path) -> None:
    """See that the folder's weights are safetensors.

    Raises:
        ModelError: they are not; the message says how to convert them.
    """
    if any(folder.glob("*.safetensors")):
        return
    found = ", ".join(sorted(path.name for path in folder.glob("*.bin"))) or "no weights"
    raise ModelError(
        f"{folder} holds {found}; allowed: *.safetensors, because a .bin file is a pickle and "
        "may run code. If you trust its source, convert it once: "
        'python -c "from transformers import AutoModel; '
        f"AutoModel.from_pretrained('{folder}').save_pretrained('{folder}')\""
    )


def check_tokenizer(folder: Path) -> None:
    """See that the folder has a tokenizer; transformers would make one up, which knows no word.

    Raises:
        ModelError: it has none.
    """
    if not any(path for pattern in _VOCABULARIES for path in folder.glob(pattern)):
        raise ModelError(
            f"{folder} holds no tokenizer: found none of tokenizer.json, vocab.txt, vocab.json and "
            "*.model; allowed: the tokenizer that the model was trained with. Copy its files from "
            "the model's source, or choose another encoder if it has none because it reads single "
            "characters, as CANINE does."
        )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is no file.

    Raises:
        ModelError: it is no JSON, or no object.
    """
    content = _read(path)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ModelError(
            f"{path}: found a {type(content).__name__}; allowed: a JSON object, {{…}}. Get the "
            "file anew from its source."
        )
    return content


def read_modules(folder: Path) -> list[tuple[str, str]]:
    """What modules.json says comes after one another: names such as "Pooling", and their folders.

    A folder is relative, "" for the encoder's own. Nothing where there is no such file.

    Raises:
        ModelError: it is no list of modules, or names a folder elsewhere.
    """
    path = folder / "modules.json"
    content = _read(path)
    try:
        listed = [] if content is None else [entry["type"] for entry in list(content)]
        paths = [PurePosixPath(entry.get("path") or "") for entry in content or []]
        names = [name.rsplit(".", 1)[-1] for name in listed]
    except (AttributeError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path}: found something else than a list of modules ({error!r}); allowed: a list of "
            'objects with "type" and "path", as sentence-transformers writes it. Get the file anew '
            "from its source."
        ) from None
    for inside in paths:
        if inside.is_absolute() or ".." in inside.parts or not set("*?[").isdisjoint(str(inside)):
            raise ModelError(
                f"{path}: found the folder {str(inside)!r}; allowed: one within {folder}. Get the "
                "file anew from its source."
            )
    return [(name, "/".join(inside.parts)) for name, inside in zip(names, paths, strict=True)]


def _read(path: Path) -> Any:
    """A JSON file's content; None where there is no file.

    Raises:
        ModelError: it is no JSON.
    """
    try:
        return json.loads(path.read_text("utf-8")) if path.is_file() else None
    except ValueError as error:
        raise ModelError(
            f"{path} is no valid JSON ({error}); get it anew from its source"
        ) from None


def fingerprint_of(folder: Path, patterns: Sequence[str], settings: str) -> str:
    """sha256 (hex) over the files that decide a vector, by name, and the settings that do."""
    total = sha256(settings.encode())
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    for path in sorted(found):
        with path.open("rb") as file:
            content = file_digest(file, "sha256").hexdigest()
        total.update(f"\n{path.relative_to(folder).as_posix()} {content}".encode())
    return total.hexdigest()


def load_transformer(
    folder: Path, kind: str, reader: Literal["AutoTokenizer", "AutoImageProcessor"], **options: str
) -> tuple[Any, Any, bool]:
    """The folder's model in float32 and what makes its input.

    Args:
        folder: where the files are.
        kind: what messages call it, such as "text encoder".
        reader: the class of transformers that reads what makes the input.
        options: further arguments of `reader`.

    Returns:
        the model, the tokenizer or image processor, and whether the weights hold the model's pooler
        (True where it has none); one that they lack is left random.

    Raises:
        ModelError: something cannot be read, or weights are missing.
    """
    transformers: Any = import_module("transformers")
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        with quiet_transformers():
            read = getattr(transformers, reader).from_pretrained(str(folder), **local, **options)
            model, report = transformers.AutoModel.from_pretrained(
                str(folder),
                **local,
                use_safetensors=True,
                dtype="float32",
                output_loading_info=True,
            )
    except Exception as error:  # any of a dozen kinds, each meaning that the folder is unusable
        raise cannot_load(kind, folder, error) from error
    missing = sorted(report["missing_keys"])
    # The pooler is a head of pretraining that published folders often lack.
    needed = [key for key in missing if not key.startswith("pooler.")]
    if needed and needed[0].startswith("decoder."):  # its encoder alone was saved
        raise no_encoder(folder, model.config.model_type)
    if needed:
        raise ModelError(
            f"the weights in {folder} lack {len(needed)} tensors that config.json asks for "
            f"({needed[0]} …); get the folder anew from its source"
        )
    return model, read, not missing


def cannot_load(kind: str, folder: Path, error: Exception) -> ModelError:
    """What to say where transformers cannot load a folder."""
    said = f"cannot load the {kind} in {folder}: "
    if "trust_remote_code" in str(error):
        return ModelError(
            f"{said}found a model whose code lies beside its weights; allowed: one that "
            "transformers itself knows, since kgrank runs no code from a folder. Choose one."
        )
    return ModelError(f"{said}{error}")


def no_encoder(folder: Path, model_type: str) -> ModelError:
    """What to say of an encoder-decoder."""
    return ModelError(
        f"{folder} holds a {model_type} encoder-decoder, or a half of one; allowed: an encoder "
        "such as BERT, RoBERTa, MPNet or ModernBERT. Choose one."
    )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars or load reports from transformers inside; its settings as found after."""
    logging: Any = import_module("transformers.utils.logging")  # a module without types
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def prompt_tokens(config: Any) -> int:
    """How many tokens of a soft prompt stand before every text, as config.json states it."""
    return int(getattr(config, "prompt_tokens", 0))


def check_vocabulary(folder: Path, vocabulary: Mapping[str, int], rows: int, prompt: int) -> None:
    """See that a model has a row for each token, none of them a prompt's.

    Args:
        folder: where they are.
        vocabulary: token → number, of the tokenizer.
        rows: of the model's table of tokens.
        prompt: how many of these, the last ones, are a soft prompt's.

    Raises:
        ModelError: it has not.
    """
    if not vocabulary:
        raise ModelError(f"{folder}: found a tokenizer of no tokens; get the folder anew")
    largest, own = max(vocabulary.values()), rows - prompt
    if largest < own:
        return
    mend = (
        "The tokenizer belongs to another model, or tokens were added to it alone: get the folder "
        "anew from its source, or give the model a row for each with resize_token_embeddings."
    )
    if prompt:
        mend = "No token can be added behind a prompt: add it first, then learn the prompt."
    raise ModelError(
        f"{folder}: found token number {largest} in the tokenizer and {own} rows in the model's "
        f"table of tokens{', but for its prompt' if prompt else ''}; allowed: numbers below that. "
        f"{mend}"
    )


def write_figures(folder: Path, name: str, facts: Mapping[str, Any]) -> None:
    """Write what is told of a training, as `name`.json."""
    numbers = json.dumps(facts, indent=1, ensure_ascii=False)
    (folder / f"{name}.json").write_text(numbers + "\n", "utf-8")


def draw_epochs(path: Path, figures: Sequence[float], what: str, title: str) -> None:
    """Draw a figure by epoch as SVG: a line from epoch 0 on, above an axis that begins at 0.

    Args:
        path: of the file.
        figures: one an epoch, none below 0.
        what: the figure's name.
        title: of the drawing.
    """
    left, top, right, bottom = 70.0, 44.0, 580.0, 300.0  # of the plot, in a drawing of 600 × 350
    highest = max(*figures, 1e-9)
    step = 10.0 ** math.floor(math.log10(highest))
    step *= next(part for part in (0.2, 0.5, 1.0, 2.0) if highest / (step * part) <= 5)
    levels = [step * n for n in range(math.ceil(highest / step) + 1)]
    every = math.ceil(len(figures) / 15)  # epochs between two that are named

    def x(epoch: int) -> float:
        return left + (right - left) * epoch / max(len(figures) - 1, 1)

    def y(figure: float) -> float:
        return bottom - (bottom - top) * figure / levels[-1]

    grid = [f'<path d="M{left:g} {y(level):.1f}H{right:g}" stroke="#ddd"/>' for level in levels]
    sides = [
        f'<text x="{left - 8:g}" y="{y(level) + 4:.1f}" text-anchor="end">{level:g}</text>'
        for level in levels
    ]
    feet = [
        f'<text x="{x(n):.1f}" y="{bottom + 18:g}" text-anchor="middle">{n}</text>'
        for n in range(0, len(figures), every)
    ]
    places = [(x(n), y(figure)) for n, figure in enumerate(figures)]
    line = " ".join(f"{across:.1f},{down:.1f}" for across, down in places)
    dots = [f'<circle cx="{a:.1f}" cy="{d:.1f}" r="3" fill="#1f5fa8"/>' for a, d in places]
    middle = (top + bottom) / 2
    lines = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 600 350" role="img" fill="#222" '
        'font-family="system-ui,sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        '<rect width="600" height="350" fill="#fff"/>',
        f'<text x="325" y="26" text-anchor="middle" font-size="15">{escape(title)}</text>',
        '<text x="325" y="340" text-anchor="middle">epochs</text>',
        f'<text transform="translate(18 {middle:g}) rotate(-90)" text-anchor="middle">'
        f"{escape(what)}</text>",
        *(*grid, *sides, *feet),
        f'<polyline points="{line}" fill="none" stroke="#1f5fa8" stroke-width="2"/>',
        *dots,
        "</svg>",
    ]
    path.write_text("\n".join(lines) + "\n", "utf-8")
