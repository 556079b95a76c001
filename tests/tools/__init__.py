"""Tools: the demo, the benchmark and the picture of the README."""
