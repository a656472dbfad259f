"""CGFedRec (arXiv 2602.21957), one client at a time: to be read beside the paper, from top to bottom.

    python examples/plain_cgfedrec.py

Every user is a client with a private model. In each round the clients train on what they alone know and send their
item tables to the server. The server averages the tables, clusters the items of the mean, and sends one thing back: the
cluster label of each item. In the next round every client pulls its own embeddings of items with one label together.

Nothing here is batched over clients or made fast. A test holds cgfedrec to the numbers that this file computes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Client(nn.Module):
    """One user's model: a table of item embeddings and a linear head. There is no user vector."""

    def __init__(self, items: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(items, dim)  # starts as N(0, 1)
        self.head = nn.Linear(dim, 1)

    def forward(self, items: Tensor) -> Tensor:
        """How much the user would like some items, `[batch]` to `[batch]`: logits, of which only the order counts."""
        return self.head(self.table(items)).squeeze(1)  # type: ignore[no-any-return]


def draw(
    history: Sequence[int], items: int, chance: random.Random, epochs: int = 2, negatives: int = 4
) -> list[TensorDataset]:
    """A client's samples of one round, shuffled anew for each epoch.

    A sample is an item and its target: 1 for an item that the client has, 0 for one of four others that it has not.
    """
    unseen = sorted(set(range(items)) - set(history))
    samples = []
    for item in history:
        samples.append((item, 1.0))
        samples += [(other, 0.0) for other in chance.sample(unseen, negatives)]
    shuffled = [zip(*chance.sample(samples, len(samples)), strict=True) for _ in range(epochs)]
    return [TensorDataset(torch.tensor(drawn), torch.tensor(targets)) for drawn, targets in shuffled]


def contrast(table: Tensor, labels: Tensor, temperature: float, base_temperature: float = 0.5) -> Tensor:
    """The supervised contrastive loss of a table `[items, dim]` with labels `[items]` (Khosla et al. 2020, equation 2).

    It is small where the embeddings of one label point in one direction, and those of others elsewhere.
    """
    unit = F.normalize(table, dim=1)
    similarity = unit @ unit.T / temperature  # [items, items]
    itself = torch.eye(len(table), dtype=torch.bool)
    positive = (labels[:, None] == labels) & ~itself
    # The published code adds 1e-6 after it has divided by the largest term, exp(1 / temperature).
    others = similarity.exp().masked_fill(itself, 0).sum(1) + 1e-6 * math.exp(1 / temperature)
    log_probability = similarity - others.log()[:, None]
    # An item that is alone with its label has no positives and counts 0.
    means = (positive * log_probability).sum(1) / positive.sum(1).clamp_min(1)
    return -(temperature / base_temperature) * means.mean()


def train(
    client: Client,
    epochs: Sequence[TensorDataset],
    labels: Tensor | None,
    lr: float = 0.1,
    table_lr: float = 13_456.0,
    reg: float = 0.005,
    temperature: float = 0.1,
    batch_size: int = 256,
) -> float:
    """One client's training in one round, in place, with the published settings for ML-100K.

    Args:
        client: Its table and head are changed.
        epochs: The samples of each epoch, in the order in which they are cut into batches.
        labels: `[items]`, or nothing before the server has found any.
        lr: Learning rate of the head.
        table_lr: Learning rate of the table: lr times the number of items times 80.
        reg: Weight of the contrast.
        temperature: Of the contrast.
        batch_size: Samples in a batch; the last one may be shorter.

    Returns:
        The mean loss of a sample, as the table's steps saw it.
    """
    head, table = torch.optim.SGD(client.head.parameters(), lr), torch.optim.SGD(client.table.parameters(), table_lr)
    total = 0.0
    for samples in epochs:
        for items, targets in DataLoader(samples, batch_size):
            for optimizer in (head, table):  # the table takes its step on the loss with the new head
                client.zero_grad()
                loss = F.binary_cross_entropy_with_logits(client(items), targets)
                if labels is not None:  # the head's gradient of this is zero: in its step it only takes time
                    loss = loss + reg * contrast(client.table.weight, labels, temperature)
                loss.backward()
                optimizer.step()
            total += loss.item() * len(items)
    return total / sum(map(len, epochs))


def mean(tables: Sequence[Tensor]) -> Tensor:
    """What the server makes of the uploads, each `[items, dim]`; summed in float64, where their order does not show."""
    total = sum(table.detach().double() for table in tables)
    return (total / len(tables)).float()  # type: ignore[union-attr]


def cluster(table: Tensor, clusters: int, centroids: Tensor | None, seed: int) -> tuple[Tensor, Tensor]:
    """Cluster the items of the mean table, from the centroids of the round before, so that labels keep their meaning.

    Returns:
        Labels `[items]`, which is all that goes down, and centroids `[clusters, dim]`, which stay with the server.
    """
    start = "k-means++" if centroids is None else centroids.numpy()
    model = MiniBatchKMeans(clusters, init=start, n_init=1, batch_size=max(1024, clusters), random_state=seed)
    labels = model.fit_predict(table.numpy())
    return torch.from_numpy(labels).long(), torch.from_numpy(model.cluster_centers_)


@torch.no_grad()
def rank(client: Client, target: int, candidates: Sequence[int]) -> int:
    """How many of the candidates the client puts before the target: 0 if it comes first."""
    return int((client(torch.tensor(candidates)) > client(torch.tensor([target]))).sum())


def main(users: int = 100, items: int = 60, groups: int = 6, rounds: int = 10, silent_rounds: int = 4) -> None:
    """Train on made-up data: every user likes the items of one group, and one item of each user is held out."""
    torch.manual_seed(0)
    chance = random.Random(0)
    liked = [chance.sample(range(user % groups, items, groups), 7) for user in range(users)]
    histories, held_out = [one[1:] for one in liked], [one[0] for one in liked]
    unseen = [sorted(set(range(items)) - set(history)) for history in histories]

    clients = [Client(items, dim=32) for _ in range(users)]  # each with a head of its own
    for client in clients:  # near zero, so that the mean table shows who touched what and not where tables began
        nn.init.normal_(client.table.weight, std=0.01)
    labels: Tensor | None = None
    centroids: Tensor | None = None
    for round in range(1, rounds + 1):
        down = labels if round > silent_rounds else None  # what the first rounds find is too rough to follow
        losses = [
            train(client, draw(history, items, chance), down, table_lr=6.0, reg=0.1, temperature=0.5)
            for client, history in zip(clients, histories, strict=True)
        ]
        up = [client.table.weight for client in clients]
        labels, centroids = cluster(mean(up), groups, centroids, seed=round)
        places = [rank(*one) for one in zip(clients, held_out, unseen, strict=True)]
        hits = sum(place < 10 for place in places) / users
        print(f"round {round:2}: loss {sum(losses) / users:.3f}, held-out item among the first ten for {hits:.0%}")


if __name__ == "__main__":
    main()
