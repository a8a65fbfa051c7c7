"""Where a run is started (a laptop, GPUs, Slurm, Cloud TPU, GKE), and the commands and files of each place."""
