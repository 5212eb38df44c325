"""Ranks: how each learns its place, how they find each other, and how they fail together."""
