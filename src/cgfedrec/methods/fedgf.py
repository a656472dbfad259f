"""FedGF: graph filtering from secure sums (arXiv 2501.16888; its distributed power iteration is that of 2411.01931).

GF-CF (Shen et al., CIKM 2021, arXiv 2108.07567) scores by low-pass filters of the graph of items that users have in
common. Here that graph never exists. Clients add up how many have each item, then products of the graph with a basis of
few columns, which comes down again as the next basis. After some rounds it spans the graph's low frequencies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cgfedrec.errors import no_count, not_between
from cgfedrec.evaluation.ranking import gains
from cgfedrec.kit.basis import first_basis, orthonormal, projected
from cgfedrec.kit.sums import AddingClient, SumsInTurn, check_enough
from cgfedrec.method import MOST_DIM, Method
from cgfedrec.server import CLIENTS, READINGS
from cgfedrec.serving.filters import FilterReader
from cgfedrec.wire.bulletin import Bulletin
from cgfedrec.wire.messages import Broadcast, Upload
from cgfedrec.wire.values import Field

COUNT, PRODUCT, CHOOSE = "count", "product", "choose"
"""The sums, by the names of their fields on the wire: of items, of products with the basis, of judgements."""
JUDGED_BY = "ndcg@10"
"""The metric by which clients compare the candidates for alpha."""


class FedGFClient(AddingClient):
    """A client that adds to sums, and reads its own history through the filter that comes of them.

    Arguments are those of `Method.client`; of the private seed nothing is drawn.
    """

    serves_newcomers = True

    def __init__(self, method: FedGF, num_items: int, seed: int) -> None:
        super().__init__(len(method.sums()))
        self.method, self.num_items, self.seed = method, num_items, seed
        self.sums, self.rank = method.sums(), method.columns(num_items)
        self.at: int | None = None  # which sum the round is for
        self.kept: dict[str, Tensor] = {}

    def receive(self, broadcast: Broadcast | None, round: int) -> None:
        assert broadcast is not None
        self.at = int(broadcast.values["at"])  # type: ignore[arg-type]
        self.kept = {}
        for bulletin in broadcast.kept.values():
            self.kept |= {name: value.to(self.device) for name, value in bulletin.values.items()}  # type: ignore[union-attr]

    def upload(self) -> Upload:
        if self.at is None:
            # Nobody has asked yet. By this message, the largest, the capacity of the machine is planned.
            return Upload(self.users, {PRODUCT: torch.zeros(len(self.users), self.num_items, self.rank)})
        if self.at == len(self.sums):
            return Upload(self.users[:0])
        name = self.sums[self.at]
        value = {COUNT: self._marks, PRODUCT: self._product, CHOOSE: self._judgement}[name]()
        due = self.due(self.at)
        if due.all():
            return Upload(self.users, {name: value})
        return Upload(self.users[due], {name: value[due.to(value.device)]})

    def _marks(self) -> Tensor:
        """1 for each own item, `[clients, items]`."""
        clients, items, _ = self.own.history.entries()
        marks = torch.zeros(len(self.users), self.num_items)
        marks[clients, items] = 1
        return marks.to(self.device)

    def _product(self) -> Tensor:
        """Each client's share of G V, `[clients, items, rank]`: r (r^T V), with r its row of the weighted matrix."""
        history, weights = self.own.history, self._weights
        basis = self.kept.get("basis")
        if basis is None:
            basis = first_basis(self.shared_seed, self.num_items, self.rank).to(self.device)
        # r holds m^-1/2 twice, once for each r; weights hold the rest.
        shares = history.lengths.clamp_min(1).double().reciprocal().to(self.device)  # [clients]
        along = projected(history, weights, basis) * shares[:, None]  # [clients, rank]
        clients, items, _ = (part.to(self.device) for part in history.entries())
        product = torch.zeros(len(self.users), self.num_items, self.rank, device=self.device)
        product[clients, items] = (weights[items, None] * along[clients]).float()
        return product

    @property
    def _weights(self) -> Tensor:
        """n_i^-1/2, `[items]`, float64; 0 for items that too few clients have."""
        counts = self.kept["counts"].double()
        return counts.rsqrt().masked_fill(counts < self.method.least_clients, 0)

    def _judgement(self) -> Tensor:
        """What each candidate's ranking gains, then 1 for a client that could judge, `[clients, alphas + 1]`."""
        held_out = self.own.validation()
        judgement = torch.zeros(len(self.users), len(self.method.alphas) + 1)
        if held_out is not None:
            linear, ideal = self._filters()
            for column, alpha in enumerate(self.method.alphas):
                judgement[:, column] = gains(JUDGED_BY, (linear + alpha * ideal).float().cpu(), held_out)
            judgement[:, -1] = held_out.relevant.ge(0).any(1)
        return judgement.to(self.device)

    def _filters(self) -> tuple[Tensor, Tensor]:
        """The linear filter x V E V^T and the ideal one x D^-1/2 V V^T D^1/2, `[clients, items]` each, float64."""
        basis, spectrum, counts = (self.kept[name].double() for name in ("basis", "spectrum", "counts"))
        history, weights = self.own.history, self._weights
        linear = projected(history, torch.ones_like(weights), basis) * spectrum @ basis.T
        ideal = projected(history, weights, basis) @ basis.T * counts.sqrt()
        return linear, ideal

    @property
    def popular_now(self) -> Tensor:
        """`[items]`: how many clients have each; all alike before that has come down."""
        return self.kept.get("counts", torch.zeros(self.num_items, device=self.device))

    @property
    def structured(self) -> bool:
        return "basis" in self.kept

    def score(self) -> Tensor:
        if not self.structured:  # too early: no filter has come down, and all items are alike
            return torch.zeros(len(self.users), self.num_items, device=self.device)
        linear, ideal = self._filters()
        return (linear + self._alpha * ideal).float()

    @property
    def _alpha(self) -> float:
        """That which was chosen, or the first."""
        return self.method.alphas[int(self.kept.get("chosen", torch.tensor(0)))]

    def reader(self) -> FilterReader:
        basis, spectrum, counts = (self.kept[name].cpu().numpy() for name in ("basis", "spectrum", "counts"))
        return FilterReader(basis, spectrum, counts, self._alpha, self.method.least_clients)


class FedGFServer(SumsInTurn):
    """Makes weights of the first sum, the next basis of each product, and a choice of the last sum.

    Args:
        method: The settings.
        num_items: n.
        seed: The shared one.
    """

    counts: Tensor
    basis: Tensor
    spectrum: Tensor
    chosen: Tensor

    def __init__(self, method: FedGF, num_items: int, seed: int) -> None:
        rank = method.columns(num_items)
        super().__init__(method.sums(), method.least_clients, seed)
        self.method = method
        judged = Field((len(method.alphas) + 1,))
        self.fields = {COUNT: Field((num_items,)), PRODUCT: Field((num_items, rank)), CHOOSE: judged}
        self.register_buffer("counts", torch.zeros(num_items))
        self.register_buffer("basis", torch.zeros(num_items, rank))
        self.register_buffer("spectrum", torch.zeros(rank))
        self.register_buffer("chosen", torch.tensor(0))
        self.refresh()

    @property
    def products(self) -> int:
        """How many products have been summed."""
        return min(max(int(self.at) - 1, 0), self.method.iterations)

    @property
    def phase(self) -> str:
        if self.counting == PRODUCT:
            return f"power iteration {self.products + 1} of {self.method.iterations}"
        return self.counting

    def opened(self, name: str, total: Tensor) -> dict[str, float]:
        # Sums are rounded to float32 first, so that it does not show in which order clients were added up.
        if name == COUNT:
            self.counts = total.float()
            # With none, no filter would tell one item from another.
            check_enough(int((self.counts >= self.least_clients).sum()), len(self.counts), self.least_clients)
        elif name == PRODUCT:
            self.basis, self.spectrum = orthonormal(total.float())
        else:
            *gained, judges = total.tolist()
            # Where nobody could judge, all have gained 0, and of equals the first is chosen.
            self.chosen.fill_(gained.index(max(gained)))
            means = zip(self.method.readings, (gain / max(judges, 1) for gain in gained), strict=True)
            return {f"{CLIENTS}judged": judges} | {f"{READINGS}{name}": mean for name, mean in means}
        return {}

    def field(self, name: str) -> Field:
        return self.fields[name]

    def needed(self) -> dict[str, Bulletin]:
        sent = {}
        if int(self.at) > 0:
            sent["counts"] = Bulletin.of({"counts": self.counts})
        if self.products:
            sent[f"filter/{self.products}"] = Bulletin.of({"basis": self.basis, "spectrum": self.spectrum})
        if self.finished:
            sent["chosen"] = Bulletin.of({"chosen": self.chosen})
        return sent

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if not 0 <= int(self.chosen) < len(self.method.alphas):
            raise ValueError(f"there is no alpha {int(self.chosen)}")


@dataclass(frozen=True, kw_only=True)
class FedGF(Method):
    """FedGF (arXiv 2501.16888): products of the item graph with a basis go up, the next basis comes down.

    With X `[users, items]` of zeros and ones, m_u the items of user u and n_i the clients of item i, a client's row is
    r_i = x_i / sqrt(m_u n_i), and the graph is G = R^T R, as in GF-CF. A client adds r (r^T V) to G V: float32, all
    rows, as under a secure sum. The server makes V orthonormal by a singular value decomposition of G V, of which the
    singular values E are its estimate of the eigenvalues.

    Decided here, where the papers leave it open. The first V follows from the shared seed and does not travel. The
    client has no whole graph, so GF-CF's linear filter R^T R is V E V^T. Scores are those of GF-CF:
    x V E V^T + alpha x D^-1/2 V V^T D^1/2, with D the counts n. Alpha is chosen once V stands: every client sums up
    what each candidate would gain on its own validation item. Items that fewer than ``least_clients`` have take no part
    (the row of an item of one client would be that client's profile). A sum is opened when all clients have added to
    it, so that any participation ends at the same filter.
    """

    rank: int = 128
    """Columns of the basis; the number of items where that is less."""
    iterations: int = 3
    """q: how many products are summed."""
    alphas: tuple[float, ...] = (0.3, 0.0, 0.1, 1.0, 3.0)
    """Candidates for the weight of the ideal low-pass filter. Where clients hold nothing out to judge by, the first."""
    least_clients: int = 3
    """An item that fewer clients have takes no part."""
    local_epochs: int = 1

    def problems(self) -> Iterator[str | None]:
        yield no_count("method.rank", self.rank, most=MOST_DIM)
        yield no_count("method.iterations", self.iterations, most=100)
        if not self.alphas:
            yield "method.alphas: there is none; give at least one"
        wrong = [not_between("method.alphas", alpha, 0) for alpha in self.alphas]
        yield from wrong
        if not any(wrong):
            told = [f"{alpha:g}" for alpha in self.alphas]  # by which results name them
            for alpha in dict.fromkeys(told):
                if told.count(alpha) > 1:
                    yield f"method.alphas: {alpha} stands there {told.count(alpha)} times, to six digits; give it once"
        yield no_count("method.least_clients", self.least_clients)
        yield from super().problems()

    @property
    def readings(self) -> Mapping[str, Mapping[str, Any]]:
        return {f"alpha {alpha:g}": {"alphas": [alpha]} for alpha in self.alphas}

    def sums(self) -> list[str]:
        """The kinds of sums, in order."""
        sums = [COUNT, *[PRODUCT] * self.iterations]
        if len(self.alphas) > 1:
            sums.append(CHOOSE)
        return sums

    def columns(self, num_items: int) -> int:
        """Of the basis for so many items."""
        return min(self.rank, num_items)

    def client(self, num_items: int, seed: int) -> FedGFClient:
        return FedGFClient(self, num_items, seed)

    def server(self, num_items: int, seed: int) -> FedGFServer:
        return FedGFServer(self, num_items, seed)
