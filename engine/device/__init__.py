"""The machine and the processes on it: ranks, devices, memory, compiling, and DeepSpeed."""
