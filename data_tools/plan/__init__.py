"""What a data set will cost, computed before any server is asked."""
