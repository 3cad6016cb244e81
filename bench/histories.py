"""How many simulated histories keep every invariant, what they covered, and how many a second.

python -m bench.histories --count 100000        many, on all cores, with a table of what met what
python -m bench.histories --seed 4711           one, as a story
python -m bench.histories --seed 4711 --shrink  the shortest that still fails in the same way
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter

from tests.simulation.history import draw, play, shrink
from tests.simulation.known import SEEDS

_CHUNK = 50
Met = Counter[tuple[str, str]]


def tell(seed: int, *, is_shrunk: bool) -> int:
    """The story of one seed. Gives the exit status: 1 where it breaks an invariant."""
    history = draw(seed)
    violation = play(history).violation
    if is_shrunk and violation is not None:
        invariant = violation.invariant

        def fails(one: object) -> bool:
            found = play(one).violation  # type: ignore[arg-type]
            return found is not None and found.invariant == invariant

        history = shrink(history, fails)
    print(history.described(), play(history).story(), sep="\n")
    return 1 if violation is not None else 0


def play_chunk(first: int) -> tuple[dict[int, str], Met]:
    broken, met = {}, Met()
    for seed in range(first, first + _CHUNK):
        outcome = play(draw(seed))
        met.update(outcome.met)
        if outcome.violation is not None:
            broken[seed] = outcome.violation.invariant
    return broken, met


def table(met: Met) -> str:
    """Steps by faults: how often each fault struck at each step."""
    steps = sorted({step for step, _ in met})
    faults = sorted({fault for _, fault in met})
    lines = [f"{'':<16}" + "".join(f"{fault[:11]:>12}" for fault in faults)]
    lines += [f"{step:<16}" + "".join(f"{met[step, fault] or '.':>12}" for fault in faults) for step in steps]
    return "\n".join(lines)


def many(first: int, count: int) -> int:
    """Play that many histories. Gives the exit status."""
    begun = time.monotonic()
    broken: dict[int, str] = {}
    met = Met()
    with multiprocessing.Pool(os.cpu_count()) as pool:
        for some, theirs in pool.imap_unordered(play_chunk, range(first, first + count, _CHUNK)):
            broken |= some
            met.update(theirs)
    seconds = time.monotonic() - begun
    print(table(met))
    print(
        f"\n{count:,} histories in {seconds:.0f} s: {count / seconds:.0f} a second on {os.cpu_count()} cores"
    )
    for invariant, number in Counter(broken.values()).most_common():
        seeds = sorted(seed for seed, which in broken.items() if which == invariant)
        print(f"{invariant}: broken by {number}, such as seeds {', '.join(map(str, seeds[:8]))}")
    return 1 if broken else 0


def known() -> int:
    """What `tests/simulation/known.py` should list."""
    for first in range(SEEDS.start, SEEDS.stop, _CHUNK):
        for seed, invariant in play_chunk(first)[0].items():
            if seed in SEEDS:
                print(f'    {seed}: "{invariant}",')
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.histories", description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="the first seed of --count")
    parser.add_argument("--seed", type=int, help="tell the story of this one")
    parser.add_argument("--shrink", action="store_true", help="the shortest that fails like --seed")
    parser.add_argument("--known", action="store_true", help="what tests/simulation/known.py should list")
    given = parser.parse_args()
    if given.known:
        return known()
    if given.seed is not None:
        return tell(given.seed, is_shrunk=given.shrink)
    return many(given.first, given.count)


if __name__ == "__main__":
    sys.exit(main())
