"""python -m pipeline.data.keep_probability MANIFEST: see order/keep_probability.py."""

import sys

from pipeline.data.order.keep_probability import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
