"""From the bytes of a sample to pixels and token ids."""
