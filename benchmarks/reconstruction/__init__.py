"""The parts of the benchmark `benchmarks/reconstruct.py`."""
