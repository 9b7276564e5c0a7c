"""The compiler: one process for one module, that may do nothing else."""
