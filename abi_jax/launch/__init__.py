"""Many hosts from one configuration: what SLURM, GKE, TPU VMs or this machine is to run, checked before."""
