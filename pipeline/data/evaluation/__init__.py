"""Evaluation sets: folders in CLIP_benchmark's WebDataset layout."""
