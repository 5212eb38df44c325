"""A WordNet dict folder of a few synsets, in the format of wndb(5WN)."""

from __future__ import annotations

from pathlib import Path

LICENCE = "  1 This software and database is being provided to you, the LICENSEE, by  \n"

# offset, category, type, words, pointers, gloss
NOUNS = [
    (100, 3, "n", ["entity"], [], "that which exists"),
    (200, 5, "n", ["animal", "beast"], [("@", 100)], "a living organism"),
    (
        300,
        5,
        "n",
        ["dog", "domestic_dog"],
        [("@", 200)],
        'a tame animal; "the dog barked all night"',
    ),
    (400, 5, "n", ["Canis", "genus_Canis"], [("@", 500)], "type genus"),
    (500, 14, "n", ["mammal_genus"], [("@", 100)], "a genus of mammals"),
    (600, 6, "n", ["crane"], [("@", 700)], "lifts and moves heavy objects"),
    (700, 6, "n", ["machine"], [("@", 100)], "a device"),
    (800, 5, "n", ["crane"], [("@", 200)], "large long-necked bird"),
    (900, 15, "n", ["Paris"], [("@i", 100)], "the capital of France"),
    (1000, 6, "n", ["fire_engine"], [("@", 700)], "a truck of the fire brigade"),
]
VERBS = [(100, 29, "v", ["breathe", "respire"], [], "draw air into the lungs")]
ADJECTIVES = [
    (100, 0, "a", ["red"], [], "of the colour of blood"),
    (200, 0, "s", ["galore(ip)"], [], 'in great numbers; "daffodils galore"'),
]
ADVERBS = [(100, 2, "r", ["DOG"], [], "as a dog would")]


def make(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    files = {"noun": NOUNS, "verb": VERBS, "adj": ADJECTIVES, "adv": ADVERBS}
    for name, synsets in files.items():
        data = [_data(*synset) for synset in synsets]
        (folder / f"data.{name}").write_text(LICENCE + "".join(data))
        senses: dict[str, list[int]] = {}
        for offset, _, _, words, _, _ in synsets:
            for word in words:
                senses.setdefault(word.lower(), []).append(offset)
        index = [_index(word, offsets) for word, offsets in sorted(senses.items())]
        (folder / f"index.{name}").write_text(LICENCE + "".join(index))
    return folder


def _data(offset: int, category: int, kind: str, words: list, pointers: list, gloss: str) -> str:
    lemmas = " ".join(f"{word} 0" for word in words)
    told = "".join(f" {symbol} {target:08d} n 0000" for symbol, target in pointers)
    frames = " 01 + 02 00" if kind == "v" else ""
    return (
        f"{offset:08d} {category:02d} {kind} {len(words):02x} {lemmas} {len(pointers):03d}{told}"
        f"{frames} | {gloss}  \n"
    )


def _index(word: str, offsets: list[int]) -> str:
    told = " ".join(f"{offset:08d}" for offset in offsets)
    return f"{word} n {len(offsets)} 1 @ {len(offsets)} 0 {told}  \n"
