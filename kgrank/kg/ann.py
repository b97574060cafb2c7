"""An index file for the approximate search: which vectors may have the largest inner products.

A graph of near neighbours (HNSW: Malkov & Yashunin, "Efficient and robust approximate nearest
neighbor search using Hierarchical Navigable Small World graphs", 2018) as faiss-cpu has it, over
the vectors in float16.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kgrank.errors import ModelError
from kgrank.kg.segments import FileEntry, MappedFile

LINKS, BUILD_WIDTH, SEARCH_WIDTH = 32, 40, 128
"""HNSW's M, efConstruction and (at least) efSearch."""


def installed() -> bool:
    """Whether faiss is there."""
    return find_spec("faiss") is not None


def build_index(path: Path, blocks: Iterable[NDArray[np.float32]], max_norm: float) -> None:
    """Write an index whose labels are the places of the vectors, from 0.

    Args:
        path: the file to write.
        blocks: the vectors, (… × dim) float32, at least one.
        max_norm: the length of the longest.

    Raises:
        ModelError: faiss is not installed.
        OSError: the file cannot be written.
    """
    faiss, index = _faiss(), None
    # None is longer than 1 then, and so none beyond float16; the order stays the same.
    scale = np.float64(max_norm or 1.0)
    for block in blocks:
        scaled = (block / scale).astype(np.float32)
        if index is None:
            description = f"HNSW{LINKS}_SQfp16"
            index = faiss.index_factory(block.shape[1], description, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = BUILD_WIDTH
            index.train(scaled)
        index.add(scaled)
    try:
        faiss.write_index(index, str(path))
    except RuntimeError as error:  # faiss has no other errors
        raise OSError(f"{path}: {error}") from None


@dataclass(frozen=True, eq=False)
class Index:
    """An index file of the store, mapped; faiss is loaded at the first search."""

    mapped: MappedFile

    @property
    def entry(self) -> FileEntry:
        """What the manifest says of the file."""
        return self.mapped.entry

    @cached_property
    def _graph(self) -> Any:
        """faiss's index over the mapped bytes; what a search does not touch is not read again."""
        self.mapped.verify()  # once, for faiss trusts what it is given
        faiss, content = _faiss(), self.mapped.content
        reader = faiss.ZeroCopyIOReader(faiss.swig_ptr(content), len(content))
        return faiss.read_index(reader, faiss.IO_FLAG_MMAP_IFC)

    def search(self, queries: NDArray[np.float32], depth: int) -> NDArray[np.int64]:
        """The labels (n_queries × depth) of vectors with large inner products, -1 for none.

        Args:
            queries: (n_queries × dim) float32.
            depth: how many; the more are looked at, the fewer of the best are missed.

        Raises:
            ModelError: faiss is not installed.
            StoreError: the file is damaged.
        """
        graph = self._graph
        width = _faiss().SearchParametersHNSW(efSearch=max(SEARCH_WIDTH, 2 * depth))
        labels: NDArray[np.int64] = graph.search(queries, depth, params=width)[1]
        return labels


def _faiss() -> Any:
    if not installed():
        mend = 'Install it: pip install "kgrank[ann]".'
        raise ModelError(f"found no faiss; allowed: faiss-cpu, for the approximate search. {mend}")
    import faiss

    return faiss
