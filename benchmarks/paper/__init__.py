"""The paper's experiments, its ablations, controls and rivals: `python -m benchmarks.paper`."""
