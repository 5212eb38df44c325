"""What a finished data set is: manifest, shards, scores, and the checks that it is whole.

The only room of data_tools that pipeline enters.
"""
