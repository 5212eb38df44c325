"""A finished data set: manifest, shards, scores, and the checks that it is complete.

pipeline imports no other package of data_tools but this one and data_tools.ground.
"""
