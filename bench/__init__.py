"""The benchmarks of each cell: latency, accuracy, footprint, capacity."""
