"""Shards to model.

shards -> batch -> towers -> global loss -> engine step -> checkpoint -> evaluation -> export
"""
