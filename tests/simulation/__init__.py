"""A simulated Duo tenant, and a simulated year of people and runs on it."""
