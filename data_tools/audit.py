"""python -m data_tools.audit: see data_tools/dataset/audit.py."""

import sys

from data_tools.dataset.audit import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
