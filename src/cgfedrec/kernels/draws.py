"""What is drawn at random for many users: items outside their lists, and the order of their samples.

Every draw is the one that `cgfedrec.random` defines: a hash of who draws, when, and at which position.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cgfedrec.kernels.compiled import compiled, inlined

# The numbers of `cgfedrec.random`, once more: machine code is made anew where a file of this folder changes, no other.
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2 = np.uint64(0x94D049BB133111EB)
SEARCHED = 32
"""Items of a catalogue that are written down in the time that a search for one takes."""
ONE, HALF, FIRST, SECOND, THIRD = (np.uint64(number) for number in (1, 32, 30, 27, 31))  # else numba takes to floats


@inlined
def drawn(state: np.uint64, position: np.uint64) -> np.uint64:
    """`random.bits` with one counter more than those of ``state``."""
    mixed = state + GOLDEN * (position + ONE)
    mixed = (mixed ^ (mixed >> FIRST)) * MIX_1
    mixed = (mixed ^ (mixed >> SECOND)) * MIX_2
    return mixed ^ (mixed >> THIRD)


@compiled
def outside(
    starts: NDArray[np.int64],
    listed: NDArray[np.integer],
    users: NDArray[np.int64],
    states: NDArray[np.uint64],
    times: NDArray[np.int64],
    num_items: int,
    items: NDArray[np.int64],
) -> None:
    """Draw items that are in no list of a user's own: different ones each time, every set equally likely.

    Floyd's algorithm (Bentley and Floyd 1987) draws places among a user's other items.

    Args:
        starts: `[users + 1]`, as of `cgfedrec.data.lists.Lists`.
        listed: `[entries]`, ascending and different within each list.
        users: `[rows]`: whose lists.
        states: `[rows]`: `random.bits` of each user's draws, of which positions count through all.
        times: `[rows]`: how often each draws.
        num_items: Of the catalogue; every user has as many others as are drawn at a time.
        items: `[sum of times, number]`: into it go the items of each time.
    """
    number = items.shape[1]
    others, line = np.empty(num_items, np.int64), 0
    for row in range(len(users)):
        mine = listed[starts[users[row]] : starts[users[row] + 1]]
        free = num_items - len(mine)
        are_many = SEARCHED * number * times[row] > num_items
        if are_many:
            fill(mine, others[:free])
        for time in range(times[row]):
            for place in range(number):
                last = free - number + place
                random = drawn(states[row], np.uint64(time * number + place)) >> HALF
                chosen = np.int64((random * np.uint64(last + 1)) >> HALF)
                for earlier in range(place):
                    if items[line, earlier] == chosen:
                        chosen = last  # which no earlier position could draw
                        break
                items[line, place] = chosen
            for place in range(number):
                chosen = items[line, place]
                items[line, place] = others[chosen] if are_many else chosen + before(mine, chosen)
            line += 1


@compiled
def fill(mine: NDArray[np.integer], others: NDArray[np.int64]) -> None:
    """All items that are not listed, in ascending order."""
    behind = 0
    for item in range(len(mine) + len(others)):
        if behind < len(mine) and mine[behind] == item:
            behind += 1
        else:
            others[item - behind] = item


@inlined
def before(mine: NDArray[np.integer], place: int) -> int:
    """How many listed items stand before the item at a place, from 0, among those that are not listed."""
    low, left = 0, len(mine)
    while left > 0:  # a search by halves, without a branch that a processor would have to guess
        half = (left + 1) // 2
        others = mine[low + half - 1] - (low + half - 1)  # that stand before this listed one
        low += half if others <= place else 0
        left -= half
    return low


@compiled
def batches(
    states: NDArray[np.uint64],
    samples: NDArray[np.int64],
    counts: NDArray[np.int64],
    positive: NDArray[np.bool_],
    firsts: NDArray[np.int64],
    items: NDArray[np.int64],
    targets: NDArray[np.float32],
    weights: NDArray[np.float32],
    sizes: NDArray[np.float32],
    ends: NDArray[np.bool_],
) -> None:
    """Shuffle clients' samples anew for each epoch, and cut them into batches.

    A client with s batches an epoch has batch t % s of its epoch t // s in step t, so those with more come first.

    Args:
        states: `[epochs, clients]`: `random.bits` of each one's order, of which positions are samples.
        samples: `[samples]`: items, one client's behind another's.
        counts: `[clients]`: how many each has.
        positive: `[most samples of a client]`: whether what stands there is an interaction.
        firsts: `[steps]`: the row of the first client's batch in each step; others follow.
        items: `[batches, width]`, of zeros like all of them; into it go the items of all steps' batches.
        targets: `[batches, width]`.
        weights: `[batches, width]`.
        sizes: `[batches]`.
        ends: `[batches]`.
    """
    width, most = items.shape[1], len(positive)
    keys, spare, room = np.empty(most, np.uint64), np.empty(most, np.uint64), np.empty(2 * most + 3, np.int64)
    start = 0
    for client in range(len(counts)):
        count = counts[client]
        steps = -(-count // width)
        low = np.uint64(0)  # in these bits of a key stands whose it is; enough random ones are left
        while low < np.uint64(count):
            low = low + low + ONE
        for epoch in range(len(states)):
            for place in range(count):
                random = drawn(states[epoch, client], np.uint64(place))
                keys[place] = (random | low) ^ low | np.uint64(place)
            sort(keys[:count], spare, room)
            for step in range(steps):
                row = firsts[epoch * steps + step] + client
                size = min(width, count - step * width)
                for place in range(size):
                    sample = np.int64(keys[step * width + place] & low)
                    items[row, place] = samples[start + sample]
                    targets[row, place] = positive[sample]
                    weights[row, place] = np.float32(1) / np.float32(size)
                sizes[row] = size
                ends[row] = step == steps - 1
        start += count


@compiled
def sort(keys: NDArray[np.uint64], spare: NDArray[np.uint64], room: NDArray[np.int64]) -> None:
    """Sort random keys in ascending order, in place. By their high bits each is at its place or close to it.

    Args:
        keys: `[keys]`.
        spare: `[at least keys]`: to work in.
        room: `[at least 2 * keys + 3]`: likewise.
    """
    shift, bins = np.uint64(63), 2
    while bins < len(keys):
        shift, bins = shift - ONE, 2 * bins
    ends = room[: bins + 1]
    ends[:] = 0
    for key in keys:
        ends[np.int64(key >> shift) + 1] += 1
    for one in range(bins):
        ends[one + 1] += ends[one]
    for key in keys:
        mine = np.int64(key >> shift)
        spare[ends[mine]] = key
        ends[mine] += 1
    for place in range(len(keys)):
        key = spare[place]
        while place > 0 and keys[place - 1] > key:
            keys[place] = keys[place - 1]
            place -= 1
        keys[place] = key
