"""The learned channel: a graph encoder trained to rank, from a history, what came next.

A row is a moment of a user's train time: the events before it are the history, the next ones on
items not met before are the targets. The loss is a softmax over the catalogue but for the history,
of the cosine of the history's vector and each item's; beyond `FULL_SOFTMAX` items over the targets
and shared negatives, drawn by popularity and corrected by the probability of the draw (Bengio and
Senécal, 2008). What is chosen again is not learned here: the repeat channel tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from kgrank.errors import ModelError
from kgrank.fusion.channels import DenseFeatures
from kgrank.fusion.evidence import Evidence, Progress
from kgrank.fusion.history import Decay, Histories
from kgrank.fusion.loop import Loop, Sink, Trained
from kgrank.fusion.metrics import list_metrics
from kgrank.fusion.model import exclude
from kgrank.fusion.queries import Queries
from kgrank.fusion.settings import LearnSettings
from kgrank.kg.building import GraphSettings
from kgrank.kg.entities import entity_vectors

if TYPE_CHECKING:
    from torch_geometric.data import HeteroData

    from kgrank.kg.gnn import GraphEncoder, GraphInput

FULL_SOFTMAX = 20_000  # items
NEGATIVES = 4_096  # shared by a batch, in a larger catalogue
CHUNK = 4_000_000  # rows × items whose scores are held at a time: 16 MB
WALK_EVERY = 4  # batches for which one walk over the graph serves, at most
WALKS = 24  # walks of an epoch, at least, but for one a batch
MOST_STEPS = 500  # of an epoch: a larger shop has larger batches, since each step costs its items
WINDOW = 50  # events of a history in order of time
MOST_NEXT = 10  # targets in order of time: a twentieth of a mean history, so many at most
MOMENTS = 8  # rows a user and epoch, at most
UNORDERED = 300  # events of a history, and targets, where the order of events says nothing
TEMPERATURE, TEMPERATURE_UNORDERED = 0.1, 0.2  # divide the cosines
JUDGED_CELLS = 20_000_000  # valid queries × items that an epoch is judged on
JUDGED = 2_000  # valid queries, at most
OVERSAMPLING, POWER_STEPS = 16, 3  # of the randomized decomposition


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
    report: Progress = lambda stage, done, total: None

    def learn(
        self,
        evidence: Evidence,
        start: sp.csr_matrix | None,
        *,
        ordered: bool,
        queries: Queries,
        epochs: int | None = None,
    ) -> tuple[DenseFeatures, Decay, Trained]:
        """Train an encoder on the events of `evidence` and the graph's facts.

        What comes back are the items' vectors, what events were weighed by, and how it went.

        Args:
            evidence: train events and the items' words.
            start: item–item weights whose largest singular vectors the items begin with; None in
                a process that is joined to one which has them.
            ordered: whether the order of a user's events says something.
            queries: valid queries, to stop early.
            epochs: train exactly so many instead; the training's name is "learned refit" then.

        Raises:
            ModelError: training diverges, a checkpoint is damaged, or another process has ended.
        """
        from kgrank.kg.gnn import GraphInput, graph_encoder

        histories = evidence.histories
        words = evidence.features.words
        frequency = np.bincount(words.indices, minlength=words.shape[1])
        graph = GraphInput.of(
            self.data, histories.by_kind(), words[:, np.flatnonzero(frequency > 1)].tocsr()
        )
        if graph.n_items != histories.n_items or self.graph.encoder == "none":
            raise ModelError(
                f"found a graph of {graph.n_items} items for {histories.n_items} items and encoder "
                f"{self.graph.encoder!r}; allowed: the same items, and an encoder."
            )
        torch.manual_seed(self.settings.seed)
        dim = min(self.graph.dim, histories.n_items)
        vectors = None if start is None else leading(start, dim, self.settings.seed)
        encoder = graph_encoder(self.graph.encoder, graph, dim, self.graph.hops, vectors)
        window = WINDOW if ordered else UNORDERED
        module = NextItems(
            encoder, window, len(histories.kind_names), power=0.5 if ordered else 0.0
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
            identity=_identity(self.graph, graph, histories),
            sinks=self.sinks,
            report=self.report,
            stop_after=epochs,
        )
        trained = loop.run()
        encoder.draw(None)
        with torch.no_grad():
            sources, targets = encoder()
        form = DenseFeatures(targets.cpu(), sources.cpu(), entity_vectors(encoder, graph))
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


def _identity(settings: GraphSettings, graph: GraphInput, histories: Histories) -> str:
    """What a checkpoint, and each of several processes, must have been trained on."""
    digest = sha256(repr(settings.as_dict()).encode())
    for array in (histories.starts, histories.items, histories.kinds):
        digest.update(array.tobytes())
    for array in (graph.relations, graph.tails, graph.known.indices, graph.words.indices):
        digest.update(array.tobytes())
    for kind in graph.data.edge_types:
        if "user" not in (kind[0], kind[2]):  # those are in the histories
            digest.update(repr(kind).encode())
            digest.update(graph.data[kind].edge_index.numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Rows:
    """Some moments of an epoch.

    Attributes:
        history: (n_rows × window) int64 item numbers, newest first.
        weights: (n_rows × window) bool: whether there is such an event.
        kinds: (n_rows × window) int64 kind of each event.
        targets: (n_rows × n_next) int64 item numbers.
        real: (n_rows × n_next) bool: whether there is such a target.
        negatives: (n_negatives) int64 item numbers; None = all items.
        walks: whether this batch walks the graph, and moves what is learned there.
    """

    history: npt.NDArray[np.int64]
    weights: npt.NDArray[np.bool_]
    kinds: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    real: npt.NDArray[np.bool_]
    negatives: npt.NDArray[np.int64] | None
    walks: bool


class NextItems(nn.Module):
    """The encoder with what its histories are weighted by, and the temperature.

    Args:
        encoder: gives the items' vectors.
        window: events of a history.
        n_kinds: kinds of events.
    """

    def __init__(self, encoder: GraphEncoder, window: int, n_kinds: int, *, power: float) -> None:
        super().__init__()
        self.encoder = encoder
        ages = torch.arange(1, window + 1, dtype=torch.float32)
        self.age = nn.Parameter(-power * torch.log(ages))
        self.kind = nn.Parameter(torch.zeros(n_kinds))
        self.shared: Tensor  # what the last walk over the graph found
        self.register_buffer("shared", torch.zeros_like(encoder.target))

    def decay(self, histories: Histories) -> Decay:
        """What each event weighs; kinds of which nothing was learned weigh 1."""
        ages = torch.exp(self.age.detach()).tolist()
        kinds = torch.exp(self.kind.detach()).tolist()
        return Decay(kinds=dict(zip(histories.kind_names, kinds, strict=True)), ages=tuple(ages))


class NextItemTask:
    """What `Loop` trains for the learned channel.

    Args:
        module: what is learned.
        histories: train events.
        ordered: whether the order of a user's events says something; if not, every epoch draws
            which of them are the history.
        judged: valid queries that tell how good the module is.
        batch: rows a step, where an epoch has no more than MOST_STEPS.
        seed: of all draws.
        device: where the module lies.
    """

    def __init__(
        self,
        module: NextItems,
        histories: Histories,
        *,
        ordered: bool,
        judged: Queries,
        batch: int,
        seed: int,
        device: str,
    ) -> None:
        self.module, self.histories, self.ordered = module, histories, ordered
        self.judged, self.batch, self.seed, self.device = judged, batch, seed, device
        self.temperature = TEMPERATURE if ordered else TEMPERATURE_UNORDERED
        mean_length = len(histories.items) / max(1, int((np.diff(histories.starts) > 0).sum()))
        self.n_next = max(1, min(MOST_NEXT, round(mean_length / 20))) if ordered else UNORDERED
        users = histories.users()
        self.first = histories.starts[users]
        self.last = histories.starts[users + 1]
        later = np.flatnonzero(np.arange(len(users)) > self.first)
        if ordered:  # without an order, which events are first is drawn with each epoch
            later = later[first_time(histories)[later]]
        self.later, self.of = later, users[later]
        popularity = np.bincount(histories.items, minlength=histories.n_items) ** 0.75
        expected = NEGATIVES * popularity / max(popularity.sum(), 1e-12)
        self.inclusion = np.minimum(expected + 1e-3, 1.0)
        self._waiting: Tensor | None = None  # `module.shared` with its gradients since

    def batches(self, epoch: int) -> Sequence[Rows]:
        """The moments of an epoch, MOMENTS a user at most, in random order."""
        self.module.encoder.draw(epoch)
        return _Epoch(self, epoch)

    @property
    def settled(self) -> bool:
        """Whether no gradient waits for the next walk over the graph."""
        return self._waiting is None or self._waiting.grad is None

    def loss(self, batch: Rows, share: slice) -> Tensor:
        """Mean over rows of the mean over their targets of −log softmax.

        On a batch that does not walk the graph, what words and graph bring is what the last walk
        found; the gradients for it wait, and the next walk carries them to their parameters.
        """
        module, at = self.module, self.device
        if batch.walks:
            shared = module.encoder.shared()
        else:
            self._waiting = shared = self._held()
        vectors: tuple[Tensor, Tensor] = module.encoder(shared)
        rows = np.arange(len(batch.history))[share]
        real = torch.from_numpy(batch.weights[rows]).to(at)
        kinds = torch.from_numpy(batch.kinds[rows]).to(at)
        history = torch.from_numpy(batch.history[rows]).to(at)
        users = nn.functional.embedding_bag(
            history,
            vectors[0],
            mode="sum",
            per_sample_weights=torch.exp(module.age + module.kind[kinds]) * real,
        )
        users = nn.functional.normalize(users, dim=1) / self.temperature
        wanted = torch.from_numpy(batch.targets[rows]).to(at)
        counted = torch.from_numpy(batch.real[rows]).to(at).float()
        counted = counted / counted.sum(1, keepdim=True).clamp(min=1.0) / len(batch.history)
        if batch.negatives is None:
            met = torch.where(real, history, history[:, :1])
            loss = cast(Tensor, _Softmax.apply(users, vectors[1], met, wanted, counted))  # type: ignore[no-untyped-call]
        else:
            blocked = torch.cat([wanted, torch.where(real, history, wanted[:, :1])], 1)
            loss = self._sampled(users, vectors[1], batch.negatives, blocked, wanted, counted)
        if batch.walks:
            if self._waiting is not None and self._waiting.grad is not None:
                carried = (shared * self._waiting.grad).sum()
                loss = loss + (carried - carried.detach())
            module.shared.copy_(shared.detach())
            self._waiting = None
        return loss

    def _held(self) -> Tensor:
        """What the last walk found, as a leaf on which gradients gather."""
        if self._waiting is None:
            return self.module.shared.clone().requires_grad_()
        return self._waiting

    def _sampled(
        self,
        users: Tensor,
        targets: Tensor,
        negatives: npt.NDArray[np.int64],
        blocked: Tensor,
        wanted: Tensor,
        counted: Tensor,
    ) -> Tensor:
        """The loss over each row's targets and the shared negatives but for those `blocked`."""
        drawn = torch.from_numpy(negatives).to(self.device)
        inclusion = torch.from_numpy(np.log(self.inclusion[negatives])).float().to(self.device)
        own = torch.einsum("rd,rtd->rt", users, targets[wanted])
        scores = users @ targets[drawn].T - inclusion
        place = torch.full((len(targets),), len(drawn), device=self.device)
        place[drawn] = torch.arange(len(drawn), device=self.device)
        marks = torch.zeros(len(users), len(drawn) + 1, dtype=torch.bool, device=self.device)
        marks = marks.scatter_(1, place[blocked], True)[:, :-1]
        rest = scores.masked_fill(marks, -torch.inf).logsumexp(1, keepdim=True)
        return ((torch.logaddexp(rest, own) - own) * counted).sum()

    def judge(self) -> float:
        """NDCG@10 on the valid queries, by full ranking, with the learned weights of events."""
        sources, targets = self.module.encoder()
        histories = self.judged.histories
        history = histories.weights(self.judged.spans, self.module.decay(histories))
        total = 0.0
        size = max(1, CHUNK // len(targets))
        form = DenseFeatures(targets, sources)
        for start in range(0, len(self.judged), size):
            block = self.judged.take(np.arange(start, min(start + size, len(self.judged))))
            scores = form.scores(history[start : start + size]).cpu()
            top = exclude(scores, block.excluded).topk(min(10, scores.shape[1]), dim=1).indices
            total += float(list_metrics(top.numpy(), block.relevant, (10,)).ndcg[10].sum())
        return total / len(self.judged)


class _Softmax(torch.autograd.Function):
    """Σ over rows and targets of counted · −log softmax over all items but for those met.

    Scores are cosines over the temperature, so that no exponential overflows and one pass over them
    does. The gradients are worked out beside the loss, CHUNK scores at a time.
    """

    @staticmethod
    def forward(
        ctx: Any, users: Tensor, targets: Tensor, met: Tensor, wanted: Tensor, counted: Tensor
    ) -> Tensor:
        of_users, of_targets = torch.empty_like(users), torch.zeros_like(targets)
        loss = torch.zeros((), device=users.device)
        size = max(1, CHUNK // max(1, len(targets)))
        for start in range(0, len(users), size):
            part = slice(start, start + size)
            scores = users[part] @ targets.T
            own = scores.gather(1, wanted[part])
            scores.scatter_(1, met[part], -torch.inf).exp_()
            total = scores.sum(1, keepdim=True).clamp(min=1e-30)
            share = counted[part].sum(1, keepdim=True)
            loss += (share * total.log()).sum() - (counted[part] * own).sum()
            # d loss / d score = share · exp(score) / total − counted, here times total / share
            scores.scatter_add_(1, wanted[part], -counted[part] * total / share.clamp(min=1e-30))
            factor = share / total
            of_users[part] = (scores @ targets).mul_(factor)
            of_targets.addmm_(scores.T, users[part] * factor)
        ctx.save_for_backward(of_users, of_targets)
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        of_users, of_targets = ctx.saved_tensors
        return of_users * gradients[0], of_targets * gradients[0], None, None, None


def first_time(histories: Histories) -> npt.NDArray[np.bool_]:
    """(n_events) bool: whether the user has no earlier event on the item."""
    pair = histories.users() * histories.n_items + histories.items
    new = np.zeros(len(pair), bool)
    new[np.unique(pair, return_index=True)[1]] = True
    return new


class _Epoch(Sequence[Rows]):
    """The batches of one epoch, each made when it is asked for."""

    def __init__(self, task: NextItemTask, epoch: int) -> None:
        rng = np.random.default_rng((task.seed, epoch))
        self.task, self.epoch = task, epoch
        order = np.lexsort((rng.random(len(task.later)), task.of))
        users = task.of[order]
        first = np.flatnonzero(np.r_[True, users[1:] != users[:-1]])
        place = np.arange(len(users)) - np.repeat(first, np.diff(np.r_[first, len(users)]))
        moments = rng.permutation(task.later[order[place < MOMENTS]])
        n_batches = min(MOST_STEPS, max(1, round(len(moments) / task.batch)))
        self.moments = np.array_split(moments, n_batches)
        self.histories = task.histories
        if not task.ordered:
            shuffled = np.lexsort((rng.random(len(task.first)), task.first))
            self.histories = Histories(
                task.histories.starts,
                task.histories.items[shuffled],
                task.histories.kinds[shuffled],
                task.histories.times[shuffled],
                task.histories.kind_names,
                task.histories.n_items,
            )

        self.new = first_time(self.histories)

    def __len__(self) -> int:
        return len(self.moments)

    def __getitem__(self, number: int) -> Rows:  # type: ignore[override]
        task, histories = self.task, self.histories
        moments = self.moments[number]
        window = len(task.module.age)
        history, real, kinds = _before(histories, task.first[moments], moments, window)
        places = moments[:, None] + np.arange(task.n_next)
        is_target = places < task.last[moments][:, None]
        is_target &= self.new[np.where(is_target, places, 0)]
        targets = histories.items[np.where(is_target, places, 0)].astype(np.int64)
        negatives = None
        if histories.n_items > FULL_SOFTMAX:
            rng = np.random.default_rng((task.seed, self.epoch, number))
            drawn = rng.random(histories.n_items) < task.inclusion
            negatives = np.flatnonzero(drawn)
        every = min(WALK_EVERY, max(1, len(self) // WALKS))
        walks = number % every == 0 or number == len(self) - 1
        return Rows(history, real, kinds, targets, is_target, negatives, walks)


def _before(
    histories: Histories,
    first: npt.NDArray[np.int64],
    last: npt.NDArray[np.int64],
    window: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """The last `window` events of each span, newest first: items, whether there is one, kinds."""
    places = last[:, None] - 1 - np.arange(window)
    real = places >= first[:, None]
    places = np.where(real, places, 0)
    return histories.items[places].astype(np.int64), real, histories.kinds[places].astype(np.int64)
