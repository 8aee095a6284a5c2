"""Runs a command and prints its wall time and peak memory; a small process, because a child's peak begins at its parent's.

    python -S launch.py OUT_FILE COMMAND [ARGUMENT ...]
"""

import os
import sys
import time

started = time.perf_counter()
child = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(child, 0)
seconds = time.perf_counter() - started
with open(sys.argv[1], "w") as out:
    out.write(f"{os.waitstatus_to_exitcode(status)} {seconds} {usage.ru_maxrss * 1024} {usage.ru_utime + usage.ru_stime}")
