"""The tests, and the simulated Duo tenant that they run against."""
