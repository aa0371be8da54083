"""Look-ups on a CUDA device: kernels written for a plan and compiled by Triton."""
