"""Numbers as people read them."""

UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3))


def size(count: float) -> str:
    """So many bytes in the unit that says them best, in powers of ten as disks are sold."""
    for unit, one in UNITS:
        if count >= one:
            return f"{count / one:.1f} {unit}" if count < 100 * one else f"{count / one:.0f} {unit}"
    return f"{count:.0f} bytes"
