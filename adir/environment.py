"""Correct what a process inherits from the shell: text encoding, output streams, home folder,
plotting backend.

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
    """Make `adir` behave alike in a notebook, a cron job, a container and a cluster.

    Call once, at the start of a program.
    """
    require_utf8()
    steady_streams()
    require_user()
    # A notebook exports its own backend, which matplotlib refuses elsewhere. Our figures need none.
    os.environ["MPLBACKEND"] = "agg"
    leave_out_bitsandbytes()


def leave_out_bitsandbytes() -> None:
    """Make `import bitsandbytes` fail in this process, as if the package were not installed.

    pyiqa requires it. If it is installed, diffusers and peft import it (2 s of 9) for 4-bit
    networks, which we do not have. If your own backbone is a 4-bit network, call
    `sys.modules.pop("bitsandbytes")` before it imports diffusers.
    """
    sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]


@contextmanager
def uncollected() -> Iterator[None]:
    """Pause garbage collection, for code that makes a million objects that stay.

    The import of diffusers takes 1.2 s less of 7; reading 10,000 records takes 1.2 s instead of
    2.0.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.freeze()
            gc.unfreeze()  # now all objects are in the oldest generation, which is rarely searched
            gc.enable()


def require_utf8() -> None:
    """End the program if file names are not UTF-8 (as in an ISO-8859-1 locale).

    Image ids would differ, and with them the noise that is drawn for each image. With LC_ALL=C,
    Python uses UTF-8.
    """
    if sys.getfilesystemencoding() != "utf-8":
        print(
            f"adir: this locale's encoding is {sys.getfilesystemencoding()}: set PYTHONUTF8=1",
            file=sys.stderr,
        )
        sys.exit(2)


def steady_streams() -> None:
    """Replace stdout and stderr by streams that survive any character and a closed pipe.

    Open the streams that are closed.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if (
            getattr(sys, name) is None
        ):  # closed by the caller (>&-): the next file to be opened would get this number
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))
    sys.stdout, sys.stderr = steady(sys.stdout), steady(sys.stderr)


def steady(stream: TextIO) -> TextIO:
    """Return the same stream, which replaces characters that its encoding lacks and survives the
    end of its reader.
    """
    if not isinstance(stream, io.TextIOWrapper):  # in a notebook or a test
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
    """A descriptor that changes to /dev/null when its reader ends, so that `adir run ...

    | head -1` does all of its work.
    """

    def write(self, content: bytes) -> int | None:  # type: ignore[override]
        """Write as a file does; once the pipe or the terminal is closed, discard the content."""
        try:
            return super().write(content)
        except OSError as error:
            if error.errno not in (
                errno.EPIPE,
                errno.EIO,
            ):  # the latter: a terminal that was closed
                raise
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            return super().write(content)


def require_user() -> None:
    """Set HOME and USER if neither the environment nor the password file has them, as in a
    container run by user number.

    If the home folder is read-only, libraries keep their caches in a temporary folder. Files in the
    home folder are still read.
    """
    home = os.path.expanduser("~")
    if not os.access(home, os.W_OK):
        folder = tempfile.mkdtemp(prefix="adir-home-")
        if home == "~":  # libraries would make a folder of that name
            os.environ["HOME"] = folder
            print(
                f"warning: no home folder; caches are in {folder}: set HOME to keep them",
                file=sys.stderr,
            )
        for name in ("MPLCONFIGDIR", "WANDB_CACHE_DIR"):  # without these, both print many lines
            os.environ.setdefault(name, folder)
    try:
        getpass.getuser()
    except (OSError, KeyError):
        os.environ["USER"] = str(os.getuid())
