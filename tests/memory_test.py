"""The commands' settings of glibc's memory: what is freed is kept, unless the user has settings of his own."""

import ctypes
import os
import subprocess
import sys

import pytest

# Prints how many bytes glibc has mapped for large blocks alone, and how many it keeps after one of 80 MB is freed.
SCRIPT = """
import ctypes, sys, unittest.mock
sys.modules["tensorflow"] = unittest.mock.MagicMock()  # It takes seconds to import, and has no part in this.
import sagan_tf.commands

class Info(ctypes.Structure):
    names = "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names]

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
libc.mallinfo2.restype = Info
before = libc.mallinfo2().hblkhd
block = libc.malloc(80_000_000)
mapped = libc.mallinfo2().hblkhd - before
libc.free(block)
print(mapped, libc.mallinfo2().fordblks)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc 2.33 or later only")
@pytest.mark.parametrize("settings", [{}, {"MALLOC_ARENA_MAX": "4"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=4"}])
def test_freed_memory_is_kept_unless_the_user_has_settings_of_his_own(settings):
    own = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_") and name != "GLIBC_TUNABLES"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env={**own, **settings}, capture_output=True, text=True, check=True)
    mapped, kept = map(int, done.stdout.split())
    if settings:
        assert mapped >= 80_000_000
        assert kept < 80_000_000
    else:
        assert mapped == 0
        assert kept >= 80_000_000
