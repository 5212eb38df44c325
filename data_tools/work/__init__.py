"""Shared by the stages: shares of a Slurm array, worker processes, progress, the User-Agent."""
