"""On Slurm: `submit.py` checks and submits, the .sbatch files run on the nodes."""
