"""Histories that break an invariant today, by seed: findings that are not mended yet.

`test_histories.py` demands that each of them still fails in this way: what is mended leaves the list.
`python -m bench.histories --known` prints it.
"""

SEEDS = range(300)
KNOWN: dict[int, str] = {
    1: "lock",
    5: "no wipe",
    11: "no wipe",
    16: "lock",
    39: "lock",
    92: "lock",
    99: "lock",
    114: "ends well",
    130: "no wipe",
    137: "ends well",
    161: "no wipe",
    163: "lock",
    165: "receipt",
    184: "lock",
    199: "no wipe",
    211: "lock",
    218: "lock",
    233: "no wipe",
    237: "ends well",
    240: "no wipe",
    241: "lock",
    254: "lock",
    268: "lock",
    271: "lock",
    282: "receipt",
    291: "lock",
    295: "lock",
}
