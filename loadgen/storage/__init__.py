"""The database beside others, on one file and with the same statements. Run `python -m loadgen.storage`."""
