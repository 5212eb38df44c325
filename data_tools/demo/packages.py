"""The demo's raw material: emoji art and emoji names from npm packages of pinned versions.

    @iconify-json/NAME  icons.json (name -> SVG body), info.json (licence), chars.json (code points)
    emojibase-data      en/data.json (CLDR labels and tags)

`npm pack` fetches a package and checks its integrity, and runs no code of it. The tgz is read
without being unpacked.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from data_tools.ground.aside import sync, sync_folder
from data_tools.tables.schema import DataError

PACKAGES = {
    "noto": "@iconify-json/noto@1.2.9",
    "noto-v1": "@iconify-json/noto-v1@1.2.5",
    "fluent-emoji-flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "fxemoji": "@iconify-json/fxemoji@1.2.2",
    "emojione": "@iconify-json/emojione@1.2.3",
    "openmoji": "@iconify-json/openmoji@1.2.29",
    "twemoji": "@iconify-json/twemoji@1.2.5",
    "emojibase": "emojibase-data@17.0.0",
}
NPM_TIMEOUT_S = 300


def fetch(names: list[str], cache: Path) -> None:
    """Fetch the packages that are not in `cache` yet, with one call of npm. Raises DataError if npm
    is missing or fails."""
    missing = [PACKAGES[name] for name in names if not _archive(name, cache).exists()]
    if not missing:
        return
    npm = shutil.which("npm")
    if npm is None:
        raise DataError(
            "npm is not on the PATH, and the demo's pictures are npm packages: install Node.js "
            "(apt-get install npm, or https://nodejs.org) and run again"
        )
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as aside:
        command = [npm, "pack", "--silent", "--pack-destination", aside, *missing]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=NPM_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise DataError(
                f"npm pack took more than {NPM_TIMEOUT_S} s: check the network and the registry "
                "(npm config get registry), then run again"
            ) from error
        if done.returncode:
            output = (done.stderr or done.stdout).strip()[-500:]
            raise DataError(
                f"npm pack failed with exit code {done.returncode}: {output}\ncheck the network "
                "and the registry (npm config get registry); by hand: npm pack "
                f"{' '.join(missing)}"
            )
        for file in Path(aside).iterdir():
            sync(file)
            os.replace(file, cache / file.name)
    sync_folder(cache)


def read_json(name: str, member: str, cache: Path) -> Any:
    """A JSON file of a package; None if the package has no such file. Raises DataError for a
    damaged package."""
    path = _archive(name, cache)
    try:
        with tarfile.open(path) as archive:
            try:
                file = archive.extractfile(f"package/{member}")
            except KeyError:
                return None
            return json.load(file) if file is not None else None
    except (OSError, tarfile.TarError, EOFError, ValueError) as error:
        raise DataError(f"{path} is not readable ({error}): delete it and run again") from error


def _archive(name: str, cache: Path) -> Path:
    """The file that npm writes for a package: "@scope/name@1.2.3" -> scope-name-1.2.3.tgz."""
    return cache / (PACKAGES[name].lstrip("@").replace("/", "-").replace("@", "-") + ".tgz")
