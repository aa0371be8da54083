"""Look-ups on a CPU: compiled kernels, PyTorch's operators, tables in fewer bytes."""
