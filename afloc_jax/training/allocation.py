"""How the memory of the host is given back: hardly, while a run trains on its CPU.

A step of XLA on CPUs takes its temporaries from malloc and frees them. glibc returns so large a block to the system at
once, and the next step waits for it to be cleared, page by page (docs/training.md, "On a CPU", has what that costs).
Here freed memory stays with the process, in one arena, so that every thread finds it again.
"""

import ctypes
import sys

# malloc.h of glibc
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_NEVER = -1


def keep_freed_memory() -> bool:
    """Lets this process keep the memory that it frees; says whether its C library can.

    To be called before threads start, because a thread stays with the arena of its first block. `malloc_trim` still
    gives memory back. The variables of glibc's malloc (GLIBC_TUNABLES) are overruled.
    """
    change = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if change is None:  # macOS, musl
        return False
    return all(change(*pair) == 1 for pair in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER)))
