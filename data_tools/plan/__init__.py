"""What a data set will cost, before anything is asked of anybody."""
