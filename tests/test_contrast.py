from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cgfedrec.structure import exact
from cgfedrec.structure.contrast import contrast
from cgfedrec.structure.exact import EPSILON


def oracle(table: Tensor, labels: Tensor, temperature: float, base_temperature: float) -> Tensor:
    """The definition, term by term, over the whole n x n matrix of one client."""
    unit = F.normalize(table, dim=1)
    itself = torch.eye(len(table), dtype=torch.bool)
    positive = (labels[:, None] == labels) & ~itself
    similarity = unit @ unit.T / temperature
    others = similarity.exp().masked_fill(itself, 0).sum(1) + EPSILON * math.exp(1 / temperature)
    log_probability = similarity - others.log()[:, None]
    means = [
        row[mine].mean() if mine.any() else row.sum() * 0 for row, mine in zip(log_probability, positive, strict=True)
    ]
    return -(temperature / base_temperature) * torch.stack(means).mean()


@pytest.mark.parametrize("kept", [0, 2**20], ids=["computed twice", "kept"])
@pytest.mark.parametrize("items", [7, 40, 130])
@pytest.mark.parametrize("clusters", [1, 4, 200])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_loss_and_gradient_are_autograd_s(
    items: int, clusters: int, temperature: float, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "TILE", 32)
    monkeypatch.setattr(exact, "KEPT", kept)
    generator = torch.Generator().manual_seed(items + clusters)
    table = torch.randn(2, items, 6, dtype=torch.float64, generator=generator).requires_grad_()
    labels = torch.randint(clusters, (items,), generator=generator)
    weights = torch.tensor([1.0, -2.5], dtype=torch.float64)
    ours = contrast(table, labels, temperature, 0.4)
    expected = torch.stack([oracle(rows, labels, temperature, 0.4) for rows in table])
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    (slope,) = torch.autograd.grad((ours * weights).sum(), table)
    (expected_slope,) = torch.autograd.grad((expected * weights).sum(), table)
    assert (slope - expected_slope).norm() <= 1e-12 * expected_slope.norm() + 1e-15


def coarse_oracle(table: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """The loss against prototypes, anchor by anchor, without the factor T / T0."""
    unit = F.normalize(table, dim=1)
    terms = []
    for anchor, row in enumerate(unit):
        rest = torch.arange(len(unit)) != anchor
        total, positive = torch.tensor(EPSILON * math.exp(1 / temperature), dtype=table.dtype), None
        for label in labels.unique():
            cluster = unit[rest & (labels == label)]
            if len(cluster):
                similarity = row @ cluster.mean(0) / temperature
                total = total + len(cluster) * similarity.exp()
                positive = similarity if label == labels[anchor] else positive
        terms.append(total.log() - positive if positive is not None else row.sum() * 0)
    return torch.stack(terms).mean()


@pytest.mark.parametrize("clusters", [1, 4, 30])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_prototypes_and_their_gradient_are_autograd_s(clusters: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(clusters)
    table = torch.randn(2, 40, 6, dtype=torch.float64, generator=generator).requires_grad_()
    labels = torch.randint(clusters, (40,), generator=generator)
    weights = torch.tensor([1.0, -2.5], dtype=torch.float64)
    ours = contrast(table, labels, temperature, 0.4, "prototypes")
    expected = torch.stack([coarse_oracle(rows, labels, temperature) for rows in table]) * temperature / 0.4
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    (slope,) = torch.autograd.grad((ours * weights).sum(), table)
    (expected_slope,) = torch.autograd.grad((expected * weights).sum(), table)
    assert (slope - expected_slope).norm() <= 1e-12 * expected_slope.norm() + 1e-15


def test_prototypes_are_exact_where_clusters_are_points_and_below_elsewhere() -> None:
    points = torch.randn(1, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 5
    for spread in (0.0, 0.5):
        table = points[:, labels] + spread * torch.randn(1, 40, 6, dtype=torch.float64)
        fine, coarse = (contrast(table, labels, kind=kind) for kind in ("exact", "prototypes"))
        assert coarse.item() == pytest.approx(fine.item()) if spread == 0 else coarse < fine


def test_float32_is_close_to_float64() -> None:
    table = torch.randn(1, 1000, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(1000) % 60
    slopes = []
    for dtype in (torch.float32, torch.float64):
        given = table.to(dtype).requires_grad_()
        slopes.append(torch.autograd.grad(contrast(given, labels).sum(), given)[0].double())
    assert (slopes[0] - slopes[1]).norm() < 1e-5 * slopes[1].norm()


def test_a_client_s_alignment_does_not_depend_on_its_cohort() -> None:
    table = torch.randn(3, 70, 8)
    labels = torch.arange(70) % 9
    together = contrast(table, labels)
    alone = torch.cat([contrast(rows[None], labels) for rows in table])
    assert together.equal(alone)


def test_anchors_without_positives_count_zero_but_count() -> None:
    table = torch.randn(1, 4, 3, dtype=torch.float64)
    paired = contrast(table, torch.tensor([0, 0, 1, 2]))
    assert contrast(table, torch.arange(4)).item() == 0
    assert paired.item() > 0
    torch.testing.assert_close(paired[0], oracle(table[0], torch.tensor([0, 0, 1, 2]), 0.1, 0.5))
