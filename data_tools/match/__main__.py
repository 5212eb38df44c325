"""python -m data_tools.match source=pool pool=laion 'sources.pool.paths=[...]' ... [--task I/N]:
this stage alone."""

import sys

if __name__ == "__main__":
    from data_tools.build import main

    sys.exit(main(sys.argv[1:], stage="match"))
