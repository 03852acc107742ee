"""`python -m loadgen.leash PARENT PROGRAM...`: become a program that is killed when its parent is gone.

A parent that is killed cleans up nothing, and its servers would go on. Not done between fork and exec: what
Python does there loses a signal that arrives meanwhile.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, program: list[str]) -> None:
    """Does not return. `parent` is the process that starts this one."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # It may have gone before it could be watched.
    if os.getppid() == parent:
        os.execv(program[0], program)  # noqa: S606 - what we were started for


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
