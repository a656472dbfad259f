from __future__ import annotations

import torch

from cgfedrec.kit.gather import Mailbox


def waiting(mailbox: Mailbox, *users: int) -> dict[int, float]:
    found = mailbox.of(torch.tensor(users))
    return {} if found is None else dict(zip(found.clients.tolist(), found.values["row"][:, 0].tolist(), strict=True))


def test_rows_wait_for_one_or_several_until_replaced_or_discarded() -> None:
    mailbox = Mailbox("row", 2)
    assert mailbox.of(torch.arange(5)) is None
    mailbox.put(torch.tensor([3, 1]), torch.tensor([[30.0, 0], [10, 0]]))
    mailbox.put(torch.tensor([4, 1, 0]), torch.tensor([[5.0, 0]]), torch.zeros(3, dtype=torch.int64))
    assert waiting(mailbox, 0, 1, 2, 3, 4) == {0: 5, 1: 5, 3: 30, 4: 5}
    assert mailbox.rows.shape == (2, 2)  # what was replaced waits for nobody and is gone
    mailbox.discard(torch.tensor([3, 2, 0]))
    assert waiting(mailbox, 0, 1, 2, 3, 4) == {1: 5, 4: 5}
    assert mailbox.rows.shape == (1, 2)


def test_its_state_is_as_long_as_it_was() -> None:
    mailbox, other = Mailbox("row", 2), Mailbox("row", 2)
    mailbox.put(torch.tensor([7, 2]), torch.tensor([[1.0, 0], [2, 0]]))
    other.put(torch.tensor([1]), torch.tensor([[9.0, 9]]))
    other.load_state_dict(mailbox.state_dict())
    assert waiting(other, 1, 2, 7) == {7: 1, 2: 2}
