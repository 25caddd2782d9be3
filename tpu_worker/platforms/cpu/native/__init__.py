"""C++ kernels for the CPU, compiled on first use for the very machine that runs them."""
