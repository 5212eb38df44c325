"""QUERY -> SHARDS: a list of concepts becomes WebDataset shards and one manifest.

Read `build.py` first: it is the whole flow on one page. No torch here, and nothing of `pipeline`.
"""
