"""Adds conf/ to the wheel as data_tools/conf; everything else about the package is in setup.cfg."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConf(build_py):
    def run(self) -> None:
        super().run()
        # an editable install reads conf/ of the repository, so that edits there take effect
        if not self.editable_mode:
            target = Path(self.build_lib) / "data_tools" / "conf"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(Path(__file__).resolve().parent / "conf", target)


setup(cmdclass={"build_py": BuildWithConf})
