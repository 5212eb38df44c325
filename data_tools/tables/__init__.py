"""Tables between the stages: their schemas, reading in batches, sorting, scratch databases."""
