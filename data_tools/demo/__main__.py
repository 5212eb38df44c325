"""python -m data_tools.demo out_dir=runs/demo/data [recipe=demo_smoke] [demo.num_labels=60] ...

Builds a data set from nothing but npm packages: emoji in six art styles are drawn, served on
127.0.0.1 as a small Wikimedia Commons, searched, crawled and packed; a seventh style becomes the
evaluation sets in out_dir/eval. Overrides are those of data_tools.build, and demo.NAME=VALUE
(data_tools/demo/config.py).
"""

# Worker processes import this module again: nothing may be imported above the guard.
if __name__ == "__main__":
    import sys

    from data_tools.demo.flow import main

    sys.exit(main(sys.argv[1:]))
