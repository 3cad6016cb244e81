"""Histories that break an invariant today, by seed: findings that are not mended yet.

`test_histories.py` demands that each of them still fails in this way: what is mended leaves the list.
`python -m bench.histories --known` prints it.
"""

SEEDS = range(300)
KNOWN: dict[int, str] = {
    3: "lock",
    6: "lock",
    38: "lock",
    57: "ends well",
    60: "lock",
    70: "receipt",
    83: "lock",
    97: "lock",
    123: "lock",
    137: "no wipe",
    179: "receipt",
    187: "lock",
    196: "exit status",
    199: "lock",
    200: "lock",
    202: "no wipe",
    213: "lock",
    214: "lock",
    227: "lock",
    229: "lock",
    235: "lock",
    236: "lock",
    240: "ends well",
    241: "no wipe",
    251: "lock",
    257: "no wipe",
    267: "lock",
    268: "lock",
    269: "no wipe",
    273: "receipt",
    295: "lock",
}
