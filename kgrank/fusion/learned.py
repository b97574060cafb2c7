"""The learned channel: a graph encoder trained to rank, from a history, what came next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch

from kgrank.errors import ModelError
from kgrank.fusion.channels import DenseFeatures
from kgrank.fusion.evidence import Evidence
from kgrank.fusion.history import Decay, Histories
from kgrank.fusion.next_items import UNORDERED, NextItems, NextItemTask
from kgrank.fusion.queries import Queries
from kgrank.kg.building import GraphSettings
from kgrank.kg.entities import entity_vectors
from kgrank.loop import Loop, Sink, Trained
from kgrank.processes import agreed, follow
from kgrank.progress import Progress, silent
from kgrank.settings import LearnSettings

if TYPE_CHECKING:
    from hashlib import _Hash

    from torch_geometric.data import HeteroData

    from kgrank.kg.gnn import GraphInput

WINDOW = 50  # events of a history in order of time
JUDGED_CELLS = 20_000_000  # valid queries × items that an epoch is judged on
JUDGED = 2_000  # valid queries, at most
OVERSAMPLING, POWER_STEPS = 16, 3  # of the randomized decomposition


class Start(NamedTuple):
    """What the items' vectors begin with.

    Attributes:
        weights: (n_items × n_items) CSR, whose largest singular vectors their own parts are.
        text: how far text vectors are heard beside them, 0 to 1.
    """

    weights: sp.csr_matrix
    text: float


@dataclass(frozen=True, eq=False)
class Learner:
    """Makes the learned channel.

    Attributes:
        data: the graph for PyTorch Geometric; its behaviours are not read.
        graph: which encoder, of what size (the `[kg]` section).
        settings: how it is trained (the `[learn]` section).
        device: "cpu" or "cuda".
        checkpoints: folder for the checkpoint; none is written if None.
        resume: go on from a checkpoint that lies there.
        sinks: where figures go.
        report: told of progress.
    """

    data: HeteroData
    graph: GraphSettings
    settings: LearnSettings
    device: str = "cpu"
    checkpoints: Path | None = None
    resume: bool = False
    sinks: Sequence[Sink] = ()
    report: Progress = silent

    def learn(
        self,
        evidence: Evidence,
        start: Start | None,
        *,
        ordered: bool,
        queries: Queries,
        epochs: int | None = None,
    ) -> tuple[DenseFeatures, Decay, Trained]:
        """Train an encoder on the events of `evidence` and the graph's facts.

        What comes back are the items' vectors, what events were weighed by, and how it went.

        Args:
            evidence: train events, and the items' words and text vectors.
            start: what the items begin with; None in a process that is joined to one which has it.
            ordered: whether the order of a user's events says something.
            queries: valid queries, to stop early.
            epochs: train exactly so many instead; the training's name is "learned refit" then.

        Raises:
            ModelError: training diverges, a checkpoint is damaged, or another process has ended.
        """
        from kgrank.kg.gnn import GraphInput, LightEncoder, graph_encoder

        histories = evidence.histories
        words = evidence.features.words
        frequency = np.bincount(words.indices, minlength=words.shape[1])
        graph = GraphInput.of(
            self.data,
            histories.by_kind(),
            words[:, np.flatnonzero(frequency > 1)].tocsr(),
            _texts(evidence, start),
        )
        if graph.n_items != histories.n_items or self.graph.encoder == "none":
            raise ModelError(
                f"found a graph of {graph.n_items} items for {histories.n_items} items and encoder "
                f"{self.graph.encoder!r}; allowed: the same items, and an encoder."
            )
        torch.manual_seed(self.settings.seed)
        dim = min(self.graph.dim, histories.n_items)
        vectors = None if start is None else leading(start.weights, dim, self.settings.seed)
        encoder = graph_encoder(self.graph.encoder, graph, dim, self.graph.hops, vectors)
        window = WINDOW if ordered else UNORDERED
        module = NextItems(
            encoder,
            window,
            len(histories.kind_names),
            timed=ordered and bool(np.isfinite(histories.times).any()),
            power=0.5 if ordered else 0.0,
        ).to(self.device)
        encoder.to_device(self.device)
        n_judged = max(1, min(JUDGED, JUDGED_CELLS // histories.n_items))
        task = NextItemTask(
            module,
            histories,
            ordered=ordered,
            judged=queries.sample(n_judged, self.settings.seed),
            batch=self.settings.batch,
            seed=self.settings.seed,
            device=self.device,
        )
        loop = Loop(
            task,
            self.settings,
            "learned" if epochs is None else "learned refit",
            folder=self.checkpoints,
            resume=self.resume,
            identity=f"{_identity(self.graph, graph, histories)} {_begun(start, queries)}",
            sinks=self.sinks,
            report=self.report,
            stop_after=epochs,
        )
        trained = loop.run()
        encoder.draw(None)
        with torch.no_grad():
            shared = encoder.shared()
            sources, targets = encoder(shared)
            sums = torch.stack(encoder.sums(shared)).norm(dim=2).cpu().numpy()
        lengths = sums if isinstance(encoder, LightEncoder) else None
        entities = entity_vectors(encoder, graph)
        form = DenseFeatures(targets.cpu(), sources.cpu(), entities, lengths)
        return form, module.decay(histories), trained


def leading(
    weights: sp.csr_matrix, dim: int, seed: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The item–item weights at rank `dim`: B ≈ sources · targetsᵀ, each (n_items × dim) float32.

    A randomized singular value decomposition (Halko, Martinsson and Tropp, 2011). Each pair of
    columns has the sign that makes the largest target positive.
    """
    matrix, turned = weights.tocsr(), weights.T.tocsr()
    width = min(dim + OVERSAMPLING, *weights.shape)
    drawn = np.random.default_rng(seed).standard_normal((weights.shape[1], width))
    basis, _ = np.linalg.qr(matrix @ drawn.astype(np.float32))
    for _ in range(POWER_STEPS):
        other, _ = np.linalg.qr(turned @ basis)
        basis, _ = np.linalg.qr(matrix @ other)
    left, values, right = np.linalg.svd((turned @ basis).T, full_matrices=False)
    left, right = (basis @ left)[:, :dim], right[:dim].T
    sign = np.sign(right[np.abs(right).argmax(axis=0), np.arange(right.shape[1])])
    scale = np.sqrt(values[:dim]) * sign
    return (left * scale).astype(np.float32), (right * scale).astype(np.float32)


def _texts(evidence: Evidence, start: Start | None) -> torch.Tensor:
    """The text vectors as far as they are heard, (n_items × n_numbers), as process 0 has them."""
    vectors = evidence.features.vectors
    heard = start is not None and start.text > 0 and vectors is not None
    n_numbers = int(agreed(vectors.shape[1] if vectors is not None and heard else 0))
    texts = torch.zeros(evidence.histories.n_items, n_numbers)
    if start is not None and vectors is not None and heard:
        texts = torch.from_numpy(vectors * np.float32(start.text))
    follow(texts)
    return texts


def _identity(settings: GraphSettings, graph: GraphInput, histories: Histories) -> str:
    """What a checkpoint, and each of several processes, must have been trained on."""
    digest = sha256(repr(settings.as_dict()).encode())
    for array in (histories.starts, histories.items, histories.kinds, histories.times):
        digest.update(array.tobytes())
    if histories.values is not None:
        digest.update(histories.values.tobytes())
    for matrix in (graph.known, graph.words):
        _feed(digest, matrix)
    for array in (graph.relations, graph.tails):
        digest.update(array.tobytes())
    digest.update(graph.texts.numpy().tobytes())
    for kind in graph.data.edge_types:
        if "user" not in (kind[0], kind[2]):  # those are in the histories
            digest.update(repr(kind).encode())
            digest.update(graph.data[kind].edge_index.numpy().tobytes())
    return digest.hexdigest()


def _begun(start: Start | None, queries: Queries) -> int:
    """A hash of what process 0 alone has, in all: what it begins with, and is judged on."""
    digest = sha256()
    if start is not None:
        _feed(digest, start.weights)
        digest.update(repr(float(start.text)).encode())
    for matrix in (queries.relevant, queries.excluded):
        _feed(digest, matrix)
    for array in (queries.spans.first, queries.spans.last, queries.users):
        digest.update(array.tobytes())
    return int(agreed(float(int(digest.hexdigest()[:12], 16))))  # 48 bits: a float holds them


def _feed(digest: _Hash, matrix: sp.csr_matrix) -> None:
    for array in (matrix.indptr, matrix.indices, matrix.data):
        digest.update(array.tobytes())
