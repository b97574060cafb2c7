"""Pictures to vectors by a vision model from a local folder; nothing is ever downloaded.

The folder is what transformers saves for ViT, CLIP, SigLIP, DINOv2, ConvNeXt and their kin:
config.json, preprocessor_config.json (or processor_config.json) and *.safetensors.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import numpy as np
import pandas as pd
from pydantic import BeforeValidator

from kgrank.devices import choose_device, half_precision
from kgrank.encoders.cache import Rows, VectorCache
from kgrank.encoders.folders import (
    FETCH,
    check_weights,
    fingerprint_of,
    load_transformer,
)
from kgrank.encoders.pictures import Kind, Unread, check_pillow, decode, find_picture, read_bytes
from kgrank.errors import ModelError
from kgrank.progress import Count
from kgrank.settings import Section, check_columns

if TYPE_CHECKING:
    import torch
    from PIL import Image

_T = TypeVar("_T")
_R = TypeVar("_R")

_BATCH = {"cpu": 32, "cuda": 256}
_THREADS = min(4, os.cpu_count() or 1)
_AHEAD = 64  # pictures decoded before the model asks for them, at most
_DECISIVE = ("*.safetensors", "config.json", "preprocessor_config.json", "processor_config.json")
_DECODING = "pictures 1"  # to be counted up when `decode` gives other pixels
_log = logging.getLogger(__name__)


class ImageSettings(Section):
    """The `[image]` section: which picture of a product is seen, and by what.

    Attributes:
        model: a folder with a vision model; None, in TOML "none": pictures are not looked at.
        column: the column of items that names the picture's file, relative to the tables' folder;
            of a list the first.
        device: where the model runs; "auto" = a GPU where there is one.
    """

    model: Annotated[str | None, BeforeValidator(lambda v: None if v == "none" else v)] = None
    column: str = "image"
    device: Literal["auto", "cpu", "cuda"] = "auto"


def item_pictures(items: pd.DataFrame, settings: ImageSettings) -> list[str]:
    """The name of a picture's file per row of items; "" where there is none.

    Raises:
        ConfigError: `column` is no column of items.
    """
    check_columns("image.column", [settings.column], "items", items.columns)
    return [_first(value) for value in items[settings.column]]


def _first(value: Any) -> str:
    if isinstance(value, str):
        return value.split("|")[0].strip()
    if isinstance(value, (list, tuple, np.ndarray)):
        return _first(value[0]) if len(value) else ""
    return "" if pd.isna(value) else str(value)


@dataclass(frozen=True)
class ImageReport:
    """What it took to encode a list of pictures.

    Attributes:
        encoded: distinct pictures that the model saw now.
        reused: distinct pictures whose vectors were in the cache.
        unnamed: rows that name no picture.
        missing: rows whose file is not there.
        broken: rows whose file is no picture, or a damaged one.
        refused: rows whose path leaves the folder, or whose picture is too large.
        animated: rows whose picture moves; its first frame was taken.
    """

    encoded: int
    reused: int
    unnamed: int
    missing: int
    broken: int
    refused: int
    animated: int


@dataclass(frozen=True, eq=False)
class ImageEncoder:
    """A vision model.

    The model itself is loaded when it is first asked for a vector.

    Attributes:
        name: the folder as given.
        folder: where its files are.
        device: "cpu" or "cuda".
        fingerprint: sha256 (hex) over weights, config and preprocessing: two encoders with one
            fingerprint give a picture the same vector, up to rounding (a GPU computes in bfloat16:
            about 1e-2).
    """

    name: str
    folder: Path
    device: str
    fingerprint: str

    @classmethod
    def from_settings(cls, settings: ImageSettings) -> ImageEncoder | None:
        """The encoder that the settings name; None where they want none.

        Raises:
            ModelError: as `load`, but for what is wrong with the weights and the preprocessing:
                that shows when a vector is asked for.
        """
        return None if settings.model is None else cls._found(settings.model, settings.device)

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto") -> ImageEncoder:
        """Load an encoder from a folder, without the network and without running its code.

        Args:
            folder: holds the model.
            device: "cpu", "cuda", or "auto" = cuda where there is one.

        Raises:
            ModelError: the folder is missing or incomplete, holds no safetensors, is damaged, or
                its model gives pictures no vectors of their own; there is no such device; Pillow
                is not installed.
        """
        encoder = cls._found(folder, device)
        _ = encoder.dim
        return encoder

    @classmethod
    def _found(cls, name: str | Path, device: str) -> ImageEncoder:
        """The encoder as its folder states it, not loaded yet."""
        check_pillow()
        folder = Path(name)
        reads = any((folder / file).is_file() for file in _DECISIVE[2:])
        if not (folder / "config.json").is_file() or not reads:
            raise ModelError(
                f"no image encoder at {folder}; allowed: a local folder with config.json, "
                f"preprocessor_config.json and *.safetensors. {FETCH}"
            )
        check_weights(folder)
        fingerprint = fingerprint_of(folder, _DECISIVE, _DECODING)
        return cls(str(name), folder, choose_device(device), fingerprint)

    @cached_property
    def _loaded(self) -> tuple[Any, Any, bool]:
        """The model, its image processor, and whether the model's own pooling is trained."""
        # "pil" wherever there is one, so that vectors do not depend on torchvision being installed.
        model, processor, pools = load_transformer(
            self.folder, "image encoder", "AutoImageProcessor", backend="pil"
        )
        return model.to(self.device).eval(), processor, pools

    @cached_property
    def dim(self) -> int:
        """The width of a vector, found by showing the model a picture.

        Raises:
            ModelError: as `load`.
        """
        from PIL import Image

        _ = self._loaded
        try:
            shown = self._inputs(Image.linear_gradient("L").convert("RGB"))
            once, again = self._forward([shown]), self._forward([shown])
        except ModelError:
            raise
        except Exception as error:  # whatever a model of another kind stumbles over
            found = f"gives pictures no vectors ({error})"
        else:
            if np.allclose(once, again, atol=1e-4):
                return int(once.shape[1])
            found = "gives one picture different vectors"
        raise ModelError(
            f"the model in {self.folder} {found}; allowed: a vision model such as ViT, CLIP, "
            "SigLIP or DINOv2. Choose one of that kind."
        )

    def encode(
        self,
        names: Sequence[str],
        folder: Path,
        *,
        cache: VectorCache | None = None,
        progress: Count | None = None,
    ) -> tuple[np.ndarray, ImageReport]:
        """Vectors of length 1, one per picture; the zero vector where none can be read.

        Each distinct picture is encoded once, and not at all if the cache has its vector. Files
        are read and decoded in threads, ahead of the model. The first file of each kind that could
        not be read is named in a warning of the log.

        Args:
            names: n paths relative to `folder`, or "" = no picture. Nothing outside is read.
            folder: where the pictures lie.
            cache: where vectors are looked up and kept; None = nowhere.
            progress: called with (done, total) in distinct pictures that the cache lacks.

        Returns:
            (n, dim) float32, and what it took.

        Raises:
            ModelError: as `load`, or the model gives numbers that are not finite.
            OSError: the cache cannot be written to.
        """
        distinct = list(dict.fromkeys(filter(None, names)))
        with warnings.catch_warnings(), ThreadPoolExecutor(_THREADS) as pool:
            warnings.simplefilter("ignore")  # Pillow's words on odd files, which are counted here
            keys = dict(zip(distinct, _ahead(pool, partial(_key, folder), distinct), strict=True))
            name_of = {key: name for name, key in keys.items() if not isinstance(key, Unread)}
            there = list(name_of)
            unread: dict[bytes, Unread] = {}

            def embed(
                rows: Rows, progress: Count | None
            ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
                asked = [(name_of[there[row]], there[row]) for row in rows]
                vectors, moves, faults = self._embed(pool, folder, asked, progress)
                unread.update(faults)
                whole = np.array([key not in faults for _, key in asked], dtype=bool)
                return vectors, moves, whole

            width = (cache and cache.width(self.fingerprint)) or self.dim
            if cache is None:
                vectors, moves, whole = embed(np.arange(len(there)), progress)
                encoded = int(whole.sum())
            else:
                kept, encoded = cache.complete(self.fingerprint, there, width, embed, progress)
                vectors, moves = kept.all(), kept.cut
        faults = {}
        for name, key in keys.items():
            fault = key if isinstance(key, Unread) else unread.get(key)
            if fault is not None:
                faults[name] = fault
        _warn(faults)
        place: dict[bytes | Unread, int] = {key: row for row, key in enumerate(there)}
        nowhere = len(there)  # a row of zeros after the pictures
        rows = np.array([place.get(keys.get(name, b""), nowhere) for name in names], np.int64)
        kinds = Counter(faults[name].kind for name in names if name in faults)
        report = ImageReport(
            encoded=encoded,
            reused=len(there) - encoded - len(unread),
            unnamed=sum(not name for name in names),
            missing=kinds["missing"],
            broken=kinds["broken"],
            refused=kinds["refused"],
            animated=int(np.append(moves, False)[rows].sum()),
        )
        return np.concatenate([vectors, np.zeros((1, width), np.float32)])[rows], report

    def _embed(
        self,
        pool: Executor,
        folder: Path,
        asked: Sequence[tuple[str, bytes]],
        progress: Count | None,
    ) -> tuple[np.ndarray, np.ndarray, dict[bytes, Unread]]:
        """Vectors (n, dim) of files with their keys, which move (n,) bool, and what is not read."""
        vectors = np.zeros((len(asked), self.dim), np.float32)
        moves = np.zeros(len(asked), bool)
        unread: dict[bytes, Unread] = {}
        # Models that take pictures of any size get those of one size together.
        waiting: defaultdict[Any, list[tuple[int, dict[str, torch.Tensor]]]] = defaultdict(list)

        def see(batch: list[tuple[int, dict[str, torch.Tensor]]]) -> None:
            rows = [row for row, _ in batch]
            vectors[rows] = self._forward([inputs for _, inputs in batch])
            batch.clear()

        for row, found in enumerate(_ahead(pool, partial(self._read, folder), asked)):
            if isinstance(found, Unread):
                unread[asked[row][1]] = found
                continue
            inputs, moves[row] = found
            batch = waiting[tuple(value.shape for value in inputs.values())]
            batch.append((row, inputs))
            if len(batch) == _BATCH[self.device]:
                see(batch)
                if progress:
                    progress(row + 1, len(asked))
        for batch in waiting.values():
            if batch:
                see(batch)
        if progress:
            progress(len(asked), len(asked))
        return vectors, moves, unread

    def _read(
        self, folder: Path, asked: tuple[str, bytes]
    ) -> tuple[dict[str, torch.Tensor], bool] | Unread:
        """The model's input for a file, and whether the picture moves."""
        name, key = asked
        try:
            data = read_bytes(find_picture(folder, name))
            if sha256(data).digest() != key:
                raise Unread("broken", "it changed while it was read")
            image, moves = decode(data)
            return self._inputs(image), moves
        except Unread as fault:
            return fault
        except Exception as error:  # a size that the model's preprocessing does not take
            return Unread("broken", str(error))

    def _inputs(self, image: Image.Image) -> dict[str, torch.Tensor]:
        """What the model takes for one picture, (1, …) each."""
        found: Any = self._loaded[1](images=image, return_tensors="pt")
        return dict(found)

    def _forward(self, pictures: list[dict[str, torch.Tensor]]) -> np.ndarray:
        """Vectors of length 1 of pictures whose inputs are of one shape: (b, dim) float32."""
        import torch

        model, _, pools = self._loaded
        inputs = {
            name: torch.cat([picture[name] for picture in pictures]).to(self.device)
            for name in pictures[0]
        }
        with torch.inference_mode(), half_precision(self.device):
            if hasattr(model, "get_image_features"):  # CLIP and SigLIP with their text half
                output = model.get_image_features(**inputs)
            else:
                output = model(**inputs)
            pooled = output.pooler_output if pools and "pooler_output" in output else None
            if pooled is None:
                hidden = output.last_hidden_state  # (b, tokens, dim), or (b, dim, height, width)
                pooled = hidden.mean((2, 3)) if hidden.ndim == 4 else hidden[:, 0]
            unit = torch.nn.functional.normalize(pooled.float().flatten(1), dim=1)
        array: np.ndarray = unit.cpu().numpy()
        if not np.isfinite(array).all():
            raise ModelError(
                f"the encoder in {self.folder} gives numbers that are not finite: its weights are "
                "damaged or made for another precision. Get the folder anew from its source."
            )
        return array


def _key(folder: Path, name: str) -> bytes | Unread:
    """sha256 of the file's content."""
    try:
        return sha256(read_bytes(find_picture(folder, name))).digest()
    except Unread as fault:
        return fault


def _ahead(pool: Executor, function: Callable[[_T], _R], things: Iterable[_T]) -> Iterator[_R]:
    """What the function gives for each thing, in order; only a few are worked on ahead."""
    waiting: deque[Future[_R]] = deque()
    for thing in things:
        waiting.append(pool.submit(function, thing))
        if len(waiting) > _AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _warn(faults: Mapping[str, Unread]) -> None:
    """Name the first file of each kind in the log."""
    first: dict[Kind, str] = {}
    for name, fault in faults.items():
        first.setdefault(fault.kind, f"{name!r}: {fault}")
    counts = Counter(fault.kind for fault in faults.values())
    for kind, shown in first.items():
        _log.warning("%d picture files %s; the first is %s", counts[kind], kind, shown)
