"""Twelve captions and six queries, matched, counted and balanced by hand."""

from __future__ import annotations

from fractions import Fraction

QUERIES = ["dog", "cat", "red car", "car", "ice hockey", "zebra"]

CAPTIONS = [
    "A dog and a cat.",
    "Dog!",
    "the dog's red car",
    "red cars",  # "car" and "red car" go on: in a word, no match
    "category theory",  # so does "cat"
    "A (cat) on a car",
    "ICE HOCKEY at night",
    "hockey on ice",
    "hot dog, cold dog",  # found twice, counted once
    "car car car",
    "Dog in a red\tcar",  # any white space is white space
    "a dog, a car",
]

# Positions in QUERIES, sorted, of what each caption holds.
QUERY_IDS: list[list[int]] = [
    [0, 1],
    [0],
    [0, 2, 3],
    [],
    [],
    [1, 3],
    [4],
    [],
    [0],
    [3],
    [0, 2, 3],
    [0, 3],
]

# dog in captions 0, 1, 2, 8, 10, 11; cat in 0, 5; red car in 2, 10; car in 2, 5, 9, 10, 11;
# ice hockey in 6; zebra in none. 16 matches in 9 captions.
COUNTS = [6, 2, 2, 5, 1, 0]

# t -> P(keep) of each caption: 1 - the product of (1 - p_e) over its queries.
KEEP_PROBABILITIES = {
    # p = 1/6, 1/2, 1/2, 1/5, 1
    1: [
        Fraction(7, 12),  # 1 - 5/6 * 1/2
        Fraction(1, 6),
        Fraction(2, 3),  # 1 - 5/6 * 1/2 * 4/5 = 1 - 20/60
        Fraction(0),
        Fraction(0),
        Fraction(3, 5),  # 1 - 1/2 * 4/5
        Fraction(1),
        Fraction(0),
        Fraction(1, 6),
        Fraction(1, 5),
        Fraction(2, 3),  # as caption 2
        Fraction(1, 3),  # 1 - 5/6 * 4/5
    ],
    # p = 1/3, 1, 1, 2/5, 1: what has cat, red car or ice hockey is kept for certain
    2: [
        Fraction(1),
        Fraction(1, 3),
        Fraction(1),
        Fraction(0),
        Fraction(0),
        Fraction(1),
        Fraction(1),
        Fraction(0),
        Fraction(1, 3),
        Fraction(2, 5),
        Fraction(1),
        Fraction(3, 5),  # 1 - 2/3 * 3/5
    ],
    # p = 1/2, 1, 1, 3/5, 1
    3: [
        Fraction(1),
        Fraction(1, 2),
        Fraction(1),
        Fraction(0),
        Fraction(0),
        Fraction(1),
        Fraction(1),
        Fraction(0),
        Fraction(1, 2),
        Fraction(3, 5),
        Fraction(1),
        Fraction(4, 5),  # 1 - 1/2 * 2/5
    ],
}

# t -> expected number kept. For t = 1 in 60ths: 35 + 10 + 40 + 36 + 60 + 10 + 12 + 40 + 20 = 263;
# for t = 2: 5 certain + 1/3 + 1/3 + 2/5 + 3/5; for t = 3: 5 + 1/2 + 1/2 + 3/5 + 4/5.
EXPECTED_KEPT = {1: Fraction(263, 60), 2: Fraction(20, 3), 3: Fraction(37, 5)}

# t -> share of the 16 matches that queries with fewer than t have: ice hockey's 1 below t = 2, with
# cat's and red car's 2 + 2 below t = 3, with car's 5 below t = 6.
TAIL_SHARE = {1: 0.0, 2: 1 / 16, 3: 5 / 16, 5: 5 / 16, 6: 10 / 16, 7: 1.0}
