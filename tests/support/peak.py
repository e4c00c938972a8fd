"""The memory that tests took."""

import resource
import sys


def peak() -> int:
    """The peak memory of this process in megabytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most // (2**20 if sys.platform == "darwin" else 2**10)
