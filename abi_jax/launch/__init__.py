"""Many hosts from one configuration: what SLURM, GKE, a TPU VM or this machine is asked to run, checked before it is."""
