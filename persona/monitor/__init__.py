"""What watches the process: figures, memory, alerts, and the tree of its tasks.

Nothing here knows a service: `app` hands it functions to look with and to act with.
"""
