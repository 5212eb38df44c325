"""python -m data_tools.subset: see data_tools/dataset/subset.py."""

import sys

from data_tools.dataset.subset import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
