"""The scenarios that come with loadgen, a file each. Copy one to make your own: `loadgen run ./mine.py`."""
