"""What the learned channel is trained on: moments of users' train time, and what came next.

A row is a moment: the events before it are the history, the next ones on items not met before are
the targets. The loss is a softmax over the catalogue but for the history, of the cosine of the
history's vector and each item's; beyond `FULL_SOFTMAX` items over the targets and shared negatives,
drawn by popularity and corrected by the probability of the draw (Bengio and Senécal, 2008). What is
chosen again is not learned here: the repeat channel tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from kgrank.fusion.channels import DenseFeatures
from kgrank.fusion.history import Decay, Histories, Spans
from kgrank.fusion.metrics import list_metrics
from kgrank.fusion.model import exclude
from kgrank.fusion.queries import Queries

if TYPE_CHECKING:
    from kgrank.kg.gnn import GraphEncoder

FULL_SOFTMAX = 20_000  # items
NEGATIVES = 4_096  # shared by a batch, in a larger catalogue
CHUNK = 4_000_000  # rows × items whose scores are held at a time: 16 MB
WALK_EVERY = 4  # batches for which one walk over the graph serves, at most
WALKS = 24  # walks of an epoch, at least, but for one a batch
MOST_STEPS = 500  # of an epoch: a larger shop has larger batches, since each step costs its items
GAPS = 32  # of time between an event and the newest, in powers of two of a second
MOST_NEXT = 10  # targets in order of time: a twentieth of a mean history, so many at most
MOMENTS = 8  # rows a user and epoch, at most
TEMPERATURE, TEMPERATURE_UNORDERED = 0.1, 0.2  # divide the cosines
UNORDERED = 300  # events of a history, and targets, where the order of events says nothing


Events = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]  # of which row, and their numbers


@dataclass(frozen=True, eq=False)
class Rows:
    """Some moments of an epoch.

    Attributes:
        histories: whose events they are of.
        history: (n_rows) spans of the events before each moment.
        targets: (n_rows) spans in which the targets are.
        new: (n_events) bool: whether an event's item was not met before; the others are no targets.
        negatives: (n_negatives) int64 item numbers; None = all items.
        walks: whether this batch walks the graph, and moves what is learned there.
    """

    histories: Histories
    history: Spans
    targets: Spans
    new: npt.NDArray[np.bool_]
    negatives: npt.NDArray[np.int64] | None
    walks: bool

    def met(self, share: slice) -> Events:
        """The histories' events of a share of the rows."""
        return self.history[share].events()

    def wanted(self, share: slice) -> Events:
        """Those of their targets."""
        row, events = self.targets[share].events()
        return row[self.new[events]], events[self.new[events]]


class Pairs(NamedTuple):
    """Items of rows, row after row: (n_pairs) int64 each."""

    rows: Tensor
    items: Tensor


class NextItems(nn.Module):
    """The encoder with what its histories are weighted by, and the temperature.

    Args:
        encoder: gives the items' vectors.
        window: events of a history.
        n_kinds: kinds of events.
        timed: whether the time between events says something.
        power: an event weighs (1 + age)^-power at the start.
    """

    def __init__(
        self, encoder: GraphEncoder, window: int, n_kinds: int, *, timed: bool, power: float
    ) -> None:
        super().__init__()
        self.encoder = encoder
        ages = torch.arange(1, window + 1, dtype=torch.float32)
        self.age = nn.Parameter(-power * torch.log(ages))
        self.kind = nn.Parameter(torch.zeros(n_kinds))
        self.gap = nn.Parameter(torch.zeros(GAPS if timed else 1))
        self.shared: Tensor  # what the last walk over the graph found
        self.register_buffer("shared", torch.zeros_like(encoder.target))

    def decay(self, histories: Histories) -> Decay:
        """What each event weighs; kinds of which nothing was learned weigh 1."""
        ages, kinds, gaps = (
            torch.exp(p.detach()).tolist() for p in (self.age, self.kind, self.gap)
        )
        return Decay(
            kinds=dict(zip(histories.kind_names, kinds, strict=True)),
            ages=tuple(ages),
            gaps=tuple(gaps) if len(gaps) > 1 else None,
        )

    def event_weights(
        self,
        histories: Histories,
        events: npt.NDArray[np.int64],
        last: npt.NDArray[np.int64],
    ) -> Tensor:
        """What events weigh, (n_events) float32.

        Args:
            histories: whose events they are.
            events: (n_events) their numbers.
            last: (n_events) the end of the history that each is in, exclusive.
        """
        gaps = np.minimum(histories.gaps(last - 1, events), len(self.gap) - 1)
        found = (last - 1 - events, histories.kinds[events].astype(np.int64), gaps)
        ages, kinds, gaps_at = (torch.from_numpy(of).to(self.age.device) for of in found)
        return torch.exp(self.age[ages] + self.kind[kinds] + self.gap[gaps_at])


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

    def batches(self, epoch: int) -> Epoch:
        """The moments of an epoch, MOMENTS a user at most, in random order."""
        self.module.encoder.draw(epoch, self.seed)
        return Epoch(self, epoch)

    @property
    def settled(self) -> bool:
        """Whether no gradient waits for the next walk over the graph."""
        return self._waiting is None or self._waiting.grad is None

    def loss(self, batch: Rows, share: slice) -> Tensor:
        """Mean over rows of the mean over their targets of −log softmax.

        On a batch that does not walk the graph, what words and graph bring is what the last walk
        found; the gradients for it wait, and the next walk carries them to their parameters.
        """
        module, at, histories = self.module, self.device, batch.histories
        if batch.walks:
            shared = module.encoder.shared()
        else:
            self._waiting = shared = self._held()
        (row, events), (of_wanted, wanted_events) = batch.met(share), batch.wanted(share)
        met, wanted = histories.items[events], histories.items[wanted_events]
        sources, place = np.unique(met, return_inverse=True)
        needed = None if batch.negatives is None else np.union1d(batch.negatives, wanted)

        def moved(array: npt.NDArray[np.generic]) -> Tensor:
            kind = np.float32 if array.dtype.kind == "f" else np.int64
            return torch.from_numpy(array.astype(kind)).to(at)

        vectors = module.encoder(shared, moved(sources), None if needed is None else moved(needed))
        history = batch.history[share]
        users = nn.functional.embedding_bag(
            moved(place),
            vectors[0],
            moved(history.starts()),
            mode="sum",
            per_sample_weights=module.event_weights(histories, events, history.last[row]),
            include_last_offset=True,
        )
        users = nn.functional.normalize(users, dim=1) / self.temperature
        counted = moved(1.0 / (np.bincount(of_wanted)[of_wanted] * len(batch.history)))
        pairs = Pairs(moved(row), moved(met)), Pairs(moved(of_wanted), moved(wanted))
        if needed is None or batch.negatives is None:
            loss = cast(Tensor, _Softmax.apply(users, vectors[1], *pairs, counted))  # type: ignore[no-untyped-call]
        else:
            loss = self._sampled(users, vectors[1], batch.negatives, needed, *pairs, counted)
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
        needed: npt.NDArray[np.int64],
        met: Pairs,
        wanted: Pairs,
        counted: Tensor,
    ) -> Tensor:
        """The loss over each row's targets and the shared negatives but for those it met.

        Args:
            needed: (n_needed) int64, sorted: the negatives and all that is wanted, whose vectors
                `targets` holds.
        """
        column = np.full(len(self.inclusion), len(needed))
        column[needed] = np.arange(len(needed))
        columns = torch.from_numpy(column).to(self.device)
        inclusion = torch.from_numpy(np.log(self.inclusion[needed])).float().to(self.device)
        scores = users @ targets.T
        own = scores[wanted.rows, columns[wanted.items]]
        barred = torch.zeros(len(users), len(needed) + 1, dtype=torch.bool, device=self.device)
        barred[:, torch.from_numpy(~np.isin(needed, negatives)).nonzero()[:, 0]] = True
        for pairs in (met, wanted):
            barred[pairs.rows, columns[pairs.items]] = True
        rest = (scores - inclusion).masked_fill(barred[:, :-1], -torch.inf).logsumexp(1)
        return ((torch.logaddexp(rest[wanted.rows], own) - own) * counted).sum()

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
        ctx: Any, users: Tensor, targets: Tensor, met: Pairs, wanted: Pairs, counted: Tensor
    ) -> Tensor:
        of_users, of_targets = torch.empty_like(users), torch.zeros_like(targets)
        loss = torch.zeros((), device=users.device)
        share = torch.zeros(len(users), device=users.device).index_add_(0, wanted.rows, counted)
        size = max(1, CHUNK // max(1, len(targets)))
        ends = torch.arange(0, len(users) + size, size, device=users.device)
        of_met, of_wanted = (torch.searchsorted(p.rows, ends).tolist() for p in (met, wanted))
        for part, start in enumerate(range(0, len(users), size)):
            rows, its_met = slice(start, start + size), slice(*of_met[part : part + 2])
            its_wanted = slice(*of_wanted[part : part + 2])
            wanted_at = (wanted.rows[its_wanted] - start, wanted.items[its_wanted])
            scores = users[rows] @ targets.T
            own = scores[wanted_at]
            scores[met.rows[its_met] - start, met.items[its_met]] = -torch.inf
            total = scores.exp_().sum(1).clamp_(min=1e-30)
            counts = counted[its_wanted]
            loss += (share[rows] * total.log()).sum() - (counts * own).sum()
            # d loss / d score = share · exp(score) / total − counted, here times total / share
            factor = share[rows] / total
            scores.index_put_(wanted_at, -counts / factor[wanted_at[0]], accumulate=True)
            of_users[rows] = (scores @ targets).mul_(factor[:, None])
            of_targets.addmm_(scores.T, users[rows] * factor[:, None])
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


class Epoch(Sequence[Rows]):
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
                np.full(len(shuffled), np.nan),
                task.histories.kind_names,
                task.histories.n_items,
            )

        self.new = first_time(self.histories)

    def __len__(self) -> int:
        return len(self.moments)

    def __getitem__(self, number: int) -> Rows:  # type: ignore[override]
        task, histories = self.task, self.histories
        moments = self.moments[number]
        first, last = task.first[moments], task.last[moments]
        history = Spans(np.maximum(first, moments - len(task.module.age)), moments)
        targets = Spans(moments, np.minimum(last, moments + task.n_next))
        negatives = None
        if histories.n_items > FULL_SOFTMAX:
            rng = np.random.default_rng((task.seed, self.epoch, number))
            drawn = rng.random(histories.n_items) < task.inclusion
            negatives = np.flatnonzero(drawn)
        every = min(WALK_EVERY, max(1, len(self) // WALKS))
        walks = number % every == 0 or number == len(self) - 1
        return Rows(histories, history, targets, self.new, negatives, walks)
