"""SecureSums: the step of the wire by which a server learns sums, and no single upload."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec

import torch
from torch import Tensor

from cgfedrec.errors import RunError, check, no_count, not_positive
from cgfedrec.wire.bounds import LARGEST, Bounds
from cgfedrec.wire.messages import Upload
from cgfedrec.wire.secure.fixed import FixedPoint
from cgfedrec.wire.secure.neighbours import Traffic
from cgfedrec.wire.sums import Sum
from cgfedrec.wire.values import Field
from cgfedrec.wire.wire import Step, Wire

CLIPPED = "clipped numbers"
"""The value that tells how many numbers were beyond the range. Like all others it is only known as a sum."""
MOST_BITS = LARGEST.bit_length() - 1


class SecureSums(Step):
    """The server learns what is sent only as a sum over clients: exact, modulo two to a stated number of bits.

    Whole numbers of known bounds keep the bits of what their sum can reach. Floating-point numbers are clipped to a
    range and rounded to the nearest step. How many were clipped is told as ``secure/clipped``.

    In a simulation it is simulated: the integers are those of the protocol, without the masks, which would cancel
    anyway. Bytes are counted as the protocol sends them (Bonawitz et al. 2017, with the neighbours of Bell et al.
    2020), keys and shares included. Over a network (`cgfedrec.deploy.masked`), or where it is to be (``masked``),
    clients play the whole protocol, and the sums are the same.

    Args:
        largest: The largest magnitude of a floating-point number; what is beyond is clipped.
        fraction_bits: Bits after the point of such a number.
        bits: Of such a number in all, from 8 to 40. The sum over all clients must fit.
        least_clients: Fewer than so many clients' sum is not opened: the run stops.
        neighbours: With how many others each client agrees on masks: all, where there are no more.
        masked: Whether clients of a simulation make keys, masks and shares too: the same results, and much slower.

    Raises:
        InputError: for settings out of range.
    """

    sums_only = True

    def __init__(
        self,
        largest: float = 16.0,
        fraction_bits: int = 14,
        bits: int = 32,
        least_clients: int = 3,
        neighbours: int = 64,
        masked: bool = False,
    ) -> None:
        check(
            not_positive("wire.steps: SecureSums.largest", largest, 2.0**20),
            no_count("wire.steps: SecureSums.fraction_bits", fraction_bits, 0, 30),
            no_count("wire.steps: SecureSums.bits", bits, 8, MOST_BITS),
            no_count("wire.steps: SecureSums.least_clients", least_clients, 2),
            no_count("wire.steps: SecureSums.neighbours", neighbours, 2, 1024),
        )
        self.fixed = FixedPoint(largest, fraction_bits, bits)
        check(self._too_many(2))
        self.least_clients, self.neighbours, self.masked = least_clients, neighbours, masked

    def problems(self, fields: Mapping[str, Field], clients: int) -> Iterator[str]:
        if clients < self.least_clients:
            yield (
                f"wire.steps: SecureSums opens no sum of fewer than {self.least_clients:,} clients (least_clients), "
                f"and {clients:,} take part"
            )
        if (too_many := self._too_many(clients)) and any(_is_float(field) for field in fields.values()):
            yield too_many
        for name, field in fields.items():
            if why := _no_sum(field):
                yield f"wire.steps: SecureSums cannot add up {name!r}: {why}"

    def _too_many(self, clients: int) -> str | None:
        fixed = self.fixed
        if fixed.levels < 1:
            return f"wire.steps: SecureSums: all numbers up to {fixed.largest:g} are 0 with {fixed.fraction_bits} bits"
        if clients <= fixed.most_clients:
            return None
        return (
            f"wire.steps: SecureSums: {fixed.bits} bits hold the sum of at most {fixed.most_clients:,} clients' "
            f"numbers up to {fixed.largest:g} with {fixed.fraction_bits} bits after the point, and there are "
            f"{clients:,}; {fixed.bits_for(clients)} bits would (bits), or a smaller range (largest, fraction_bits)"
        )

    def fields(self, fields: Mapping[str, Field]) -> Mapping[str, Field]:
        """As of any step. Raises `RunError` for fields that appear later in a run and cannot be added up."""
        sent: dict[str, Field] = {}
        numbers = 0
        for name, field in fields.items():
            if why := _no_sum(field):
                raise RunError(f"wire.steps: SecureSums cannot add up {name!r}: {why}")
            sent[name] = field
            if _is_float(field):
                sent[name] = self.fixed.field(field)
                numbers += sent[name].bounds.largest.numel()  # type: ignore[union-attr]
        if numbers:
            most = torch.tensor([min(numbers * self.fixed.most_clients, LARGEST)])
            sent[CLIPPED] = Field((1,), torch.int64, bounds=Bounds(most))
        return sent

    def forward(self, upload: Upload, round: int, seed: int) -> Upload:
        """As of any step. Raises `NotFiniteError` for numbers that are not finite."""
        fields = upload.fields
        values = dict(upload.values)
        clipped: Tensor | None = None
        for name, field in fields.items():
            if _is_float(field):
                values[name], beyond = self.fixed.encode(name, values[name], upload.clients)
                clipped = beyond if clipped is None else clipped + beyond
        if clipped is not None:
            values[CLIPPED] = clipped[:, None]
        return Upload.of_fields(upload.clients, values, self.fields(fields))

    def opened(self, total: Sum, fields: Mapping[str, Field]) -> Sum:
        """As of any step.

        Raises:
            RunError: for a sum of too few clients, or of too many, and for one that leaves its bounds, which only
                messages that are none could make.
        """
        if total.clients < self.least_clients:
            raise RunError(
                f"{total.clients} clients have sent something, and SecureSums opens no sum of fewer than "
                f"{self.least_clients} (least_clients)"
            )
        sent = self.fields(fields)
        if CLIPPED in sent and (too_many := self._too_many(total.clients)):
            raise RunError(too_many)
        told, values = dict(total.told), {}
        for name, field in sent.items():
            assert field.bounds is not None
            whole = of_residues(total.values[name], field.bounds)
            if problem := field.bounds.problem(whole[None]):
                raise RunError(f"the sum of {name!r} cannot be one of what clients send: {problem}")
            if name == CLIPPED:
                told["secure/clipped"] = int(whole)
            elif _is_float(fields[name]):
                values[name] = self.fixed.decode(whole)
            else:
                values[name] = whole
        return Sum(values, total.clients, told)

    def traffic(self, clients: int) -> tuple[int, int]:
        return Traffic(clients, self.neighbours).nbytes


def masking(wire: Wire) -> SecureSums | None:
    """The step whose messages clients are to mask, if there is one.

    Raises:
        InputError: where it is not the last one, or masks cannot be made here.
    """
    steps = [step for step in wire.steps if isinstance(step, SecureSums)]
    if not steps:
        return None
    place = None
    if len(steps) > 1 or wire.steps[-1] is not steps[0]:
        place = "wire.steps: masks are put on what SecureSums sends: there must be one, and it must be the last step"
    check(place, no_masks())
    return steps[0]


def no_masks() -> str | None:
    """Why no masks can be made here, if that is so."""
    if find_spec("cryptography") is not None and find_spec("Crypto") is not None:
        return None
    return "wire.steps: the masks of SecureSums need cryptography and pycryptodome: pip install 'cgfedrec[secure]'"


def _is_float(field: Field) -> bool:
    return field.dtype.is_floating_point


def _no_sum(field: Field) -> str | None:
    """Why no secure sum of such a field can be had, if that is so."""
    if field.sparse:
        return "only some of its rows travel, and which ones they are says what a client has"
    if not _is_float(field) and field.bounds is None:
        return "nothing says what its sum can reach (Field.bounds)"
    if field.bounds is not None and field.bounds.bits is not None and field.bounds.bits > MOST_BITS:
        return f"its numbers take {field.bounds.bits} bits, and at most {MOST_BITS} can be masked"
    return None


def of_residues(total: Tensor, bounds: Bounds) -> Tensor:
    """The sum `[...]` that is meant by one modulo 2^bits, number by number, `[...]`, int64."""
    widths = bounds.widths.to(total.device)
    possible = torch.ones_like(widths) << widths
    residues = total & (possible - 1)
    if not bounds.signed:
        return residues
    return torch.where(2 * residues >= possible, residues - possible, residues)
