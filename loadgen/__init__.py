"""The load generator: open and closed models, honest percentiles, scenarios in a few lines of Python."""
