"""What the codec asks of each kind of value."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, TypeVar

from cgfedrec.wire.values import Field, Value

V = TypeVar("V", bound=Value)


class Kind(ABC, Generic[V]):
    """How one kind of value becomes bytes.

    The bytes are those of the numbers, after a header that is the codec's. Where their number does not follow from the
    field, the header says in four bytes how many of something there are. That is then checked before it is believed.
    """

    too_many: ClassVar[str | None] = None
    """What is wrong with a message whose header says more than `most`, of a kind whose header says how many."""

    @property
    def counts(self) -> bool:
        """Whether a header says how many of something follow."""
        return self.too_many is not None

    @abstractmethod
    def code(self, field: Field) -> int:
        """What stands for the kind in a header: one byte."""

    def axes(self, field: Field) -> tuple[int, ...]:
        """What stands in a header for the shape."""
        return field.shape

    def most(self, field: Field) -> int:
        """The highest number that a header may say."""
        return 0

    @abstractmethod
    def encode(self, value: V, field: Field) -> tuple[bytes, int]:
        """The bytes of a value, and what its header says how many there are; 0 where it says nothing.

        Raises:
            ValueError: for a value that does not keep what it promises, without the field's name.
        """

    @abstractmethod
    def size(self, field: Field, count: int) -> int:
        """How many bytes a value has, where the header says ``count``."""

    @abstractmethod
    def decode(self, payload: bytes, field: Field, count: int) -> V:
        """The value of as many bytes as `size` says, which may come from anyone.

        Raises:
            ValueError: for bytes that are no such value, without the field's name.
        """
