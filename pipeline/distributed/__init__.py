"""Ranks: who they are, how they find each other, how they fail together."""
