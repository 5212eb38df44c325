"""How work is done: shares of an array, worker processes, progress."""
