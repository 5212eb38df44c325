"""Stand-ins for the search servers that the project does not own, for its tests alone."""
