"""What an optimizer step costs in tokens, system by system; see `benchmarks.cost`."""
