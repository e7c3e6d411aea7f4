"""Several machines: their workers, judging documents there, and running the benchmarks there."""
