"""Histories that break an invariant today, by seed: findings that are not mended yet.

`test_histories.py` demands that each of them still fails in this way: what is mended leaves the list.
`python -m bench.histories --known` prints it.
"""

SEEDS = range(2000)
KNOWN: dict[int, str] = {}
