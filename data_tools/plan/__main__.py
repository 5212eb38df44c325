"""python -m data_tools.plan queries.path=my_queries.txt out_dir=data/mine ...: see estimate.py."""

import sys

from data_tools.plan.estimate import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
