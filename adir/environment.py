"""Make harmless what the caller's shell hands to a process: text encoding, output streams, home folder, plotting backend.

Only the standard library is imported here, as `adir` calls this before anything else.
"""

import errno
import gc
import getpass
import io
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


def settle() -> None:
    """Call once, at the start of a program: `adir` behaves alike in a notebook, a cron job, a container and a cluster."""
    require_utf8()
    steady_streams()
    require_user()
    # A notebook exports its own backend, which matplotlib refuses outside of it. Our figures use no backend at all.
    os.environ["MPLBACKEND"] = "agg"
    leave_out_bitsandbytes()


def leave_out_bitsandbytes() -> None:
    """Let this process take bitsandbytes for a package that is not installed, in the import system's own way.

    pyiqa asks for it, and where it is installed diffusers and peft import it (2 s of 9) for 4-bit networks, of which there are
    none here. A backbone of a user's own that is one: `sys.modules.pop("bitsandbytes")` before it imports diffusers.
    """
    sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]


@contextmanager
def uncollected() -> Iterator[None]:
    """While active, nothing is looked for that could be freed. For what makes a million objects that stay: the import of large
    packages (diffusers' takes 1.2 s less of 7), and reading records (10,000 take 1.2 s instead of 2.0)."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.freeze()
            gc.unfreeze()  # what was frozen and thawed counts as old, and is not walked through soon either
            gc.enable()


def require_utf8() -> None:
    """End the program where names of files are not UTF-8 (an ISO-8859-1 locale): ids of pictures, and with them the noise that
    is drawn for each, would be others. Python takes UTF-8 by itself where there is no locale (LC_ALL=C)."""
    if sys.getfilesystemencoding() != "utf-8":
        print(f"adir: this locale's encoding is {sys.getfilesystemencoding()}: set PYTHONUTF8=1", file=sys.stderr)
        sys.exit(2)


def steady_streams() -> None:
    """Replace stdout and stderr by streams that no character and no closed pipe stops."""
    sys.stdout, sys.stderr = steady(sys.stdout), steady(sys.stderr)


def steady(stream: TextIO) -> TextIO:
    """The same stream, which replaces the characters that its encoding lacks, and outlives its reader."""
    if not isinstance(stream, io.TextIOWrapper):  # a notebook's, a test's, or none
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(Unread(stream.fileno(), "w", closefd=False)),  # type: ignore[type-var]
        encoding=stream.encoding,
        errors="replace" if stream.errors in ("strict", "surrogateescape") else stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class Unread(io.FileIO):
    """A descriptor that turns to /dev/null when its reader has gone: `adir run ... | head -1` does all of its work."""

    def write(self, content: bytes) -> int | None:  # type: ignore[override]
        """Write as a file does, or nowhere once the pipe or the terminal is closed."""
        try:
            return super().write(content)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):  # the latter: a terminal that was closed
                raise
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            return super().write(content)


def require_user() -> None:
    """Set HOME and USER where neither the environment nor the password file knows them, as in containers run by number."""
    if os.path.expanduser("~") == "~":  # caches would be put into a folder of that name
        os.environ["HOME"] = tempfile.mkdtemp(prefix="adir-home-")
        print(f"warning: no home folder; caches are in {os.environ['HOME']}: set HOME to keep them", file=sys.stderr)
    try:
        getpass.getuser()
    except (OSError, KeyError):
        os.environ["USER"] = str(os.getuid())
