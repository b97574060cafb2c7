"""kgrank: knowledge-graph-augmented recommendations for shops.

    import kgrank as kr

    tables = kr.read_tables("shop/")
    bundle = kr.train(tables)
    bundle.save("models/")
    kr.Recommender.load("models/").recommend(["u-1"], n=10)

Every name is loaded when it is first used, so that `import kgrank` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kgrank.errors import (
    BundleError,
    ConfigError,
    DataError,
    KgrankError,
    ModelError,
    StoreError,
    UnknownIdError,
)

if TYPE_CHECKING:
    from kgrank.config import Config, read_config
    from kgrank.fusion.metrics import evaluate
    from kgrank.kg.embeddings import EmbeddingStore
    from kgrank.kg.graph import KnowledgeGraph
    from kgrank.kg.tables import Tables, read_tables
    from kgrank.serving.bundle import Bundle
    from kgrank.serving.explanation import Explanation
    from kgrank.serving.recommender import Recommender
    from kgrank.serving.training import train

    __version__: str

__all__ = [
    "Bundle",
    "BundleError",
    "Config",
    "ConfigError",
    "DataError",
    "EmbeddingStore",
    "Explanation",
    "KgrankError",
    "KnowledgeGraph",
    "ModelError",
    "Recommender",
    "StoreError",
    "Tables",
    "UnknownIdError",
    "__version__",
    "evaluate",
    "read_config",
    "read_tables",
    "train",
]

_HOMES = {
    "Bundle": "kgrank.serving.bundle",
    "Config": "kgrank.config",
    "EmbeddingStore": "kgrank.kg.embeddings",
    "Explanation": "kgrank.serving.explanation",
    "KnowledgeGraph": "kgrank.kg.graph",
    "Recommender": "kgrank.serving.recommender",
    "Tables": "kgrank.kg.tables",
    "evaluate": "kgrank.fusion.metrics",
    "read_config": "kgrank.config",
    "read_tables": "kgrank.kg.tables",
    "train": "kgrank.serving.training",
}


def __getattr__(name: str) -> Any:
    """Load a public name at its first use (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("kgrank")
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'kgrank' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
