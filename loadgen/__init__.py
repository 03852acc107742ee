"""The load generator: many clients of `persona.client`, honest figures. Run `python -m loadgen`."""
