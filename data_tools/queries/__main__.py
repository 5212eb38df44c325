"""python -m data_tools.queries queries=default out_dir=data/mine ...: this stage alone."""

import sys

if __name__ == "__main__":
    from data_tools.build import main

    sys.exit(main(sys.argv[1:], stage="queries"))
