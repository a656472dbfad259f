"""Modules whose state has no fixed size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class Growing(nn.Module):
    """A module with buffers whose length changes from round to round. It loads those of any length."""

    grows: tuple[str, ...] = ()
    """Their names."""

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any, **kwargs: Any) -> None:
        # Torch refuses a buffer of another length: each is first made as long as the one that is loaded into it.
        for name in self.grows:
            loaded = state_dict[prefix + name]
            setattr(self, name, self.get_buffer(name).new_empty(loaded.shape, dtype=loaded.dtype))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
