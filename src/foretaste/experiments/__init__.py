"""What is done with a spec, one file each: measure, predict, audit, kernels, trajectories and the engine."""
