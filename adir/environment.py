"""Functions that prepare the process in which `adir` runs.

They check the text encoding and set output streams, home folder, plotting backend and garbage
collection. `adir` calls `prepare_process` before it imports other packages, so this file imports
only the standard library.
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


def prepare_process() -> None:
    """Prepare the process, so that `adir` behaves the same in a notebook, container or cluster.

    Call this function once, at the start of a program.
    """
    require_utf8()
    use_tolerant_streams()
    require_user()
    # A notebook exports the name of its own plotting backend. matplotlib refuses that backend in
    # other processes, and our figures are only written to files.
    os.environ["MPLBACKEND"] = "agg"
    disable_bitsandbytes()


def disable_bitsandbytes() -> None:
    """Make `import bitsandbytes` fail in this process, as if the package were not installed.

    This shortens the imports from 9 s to 7 s. pip installs bitsandbytes because pyiqa requires it,
    and diffusers and peft then import it for 4-bit networks, which adir does not have. If your own
    backbone is a 4-bit network, call `sys.modules.pop("bitsandbytes")` before diffusers is
    imported.
    """
    sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]


@contextmanager
def garbage_collection_paused() -> Iterator[None]:
    """Pause garbage collection within the context.

    Use it for code that creates about a million objects and keeps them. It saves 1.2 s of the 7 s
    that the import of diffusers takes, and 0.8 s of the 2.0 s that reading 10,000 records takes.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            # These two calls move all objects to the oldest generation, which is rarely scanned.
            gc.freeze()
            gc.unfreeze()
            gc.enable()


def require_utf8() -> None:
    """Exit with status 2 unless Python decodes file names as UTF-8.

    In an ISO-8859-1 locale, for example, image ids made from file names would differ from those on
    other machines, and so would the noise drawn for each image. LC_ALL=C is accepted, because
    Python uses UTF-8 in this locale.
    """
    if sys.getfilesystemencoding() != "utf-8":
        print(
            f"adir: the encoding of this locale is {sys.getfilesystemencoding()}, but adir needs "
            "UTF-8: set PYTHONUTF8=1",
            file=sys.stderr,
        )
        sys.exit(2)


def use_tolerant_streams() -> None:
    """Replace stdout and stderr by streams that accept any character and survive a closed pipe.

    If the caller closed a standard stream, it is replaced by /dev/null.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        # None if the caller closed the stream (>&-). The next opened file would get its number.
        if getattr(sys, name) is None:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))
    sys.stdout, sys.stderr = tolerant_stream(sys.stdout), tolerant_stream(sys.stderr)


def tolerant_stream(stream: TextIO) -> TextIO:
    """Return a stream on the same file descriptor that keeps working after its reader has ended.

    The new stream replaces characters that its encoding lacks. If `stream` is not a TextIOWrapper,
    as in a notebook or a test, it is returned unchanged.
    """
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(PipeTolerantFile(stream.fileno(), "w", closefd=False)),  # type: ignore[type-var]
        encoding=stream.encoding,
        errors="replace" if stream.errors in ("strict", "surrogateescape") else stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class PipeTolerantFile(io.FileIO):
    """Raw file that discards what is written to it after its reader has ended.

    The first write that fails redirects the file descriptor to /dev/null. Therefore
    `adir run ... | head -1` finishes its work although `head` ends first.
    """

    def write(self, content: bytes) -> int | None:  # type: ignore[override]
        """Write the content, or discard it if the pipe or the terminal is closed."""
        try:
            return super().write(content)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):  # EIO: the terminal was closed
                raise
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            return super().write(content)


def require_user() -> None:
    """Set HOME and USER if neither the environment nor the password file defines them.

    They are undefined in a container that runs under a user id without a name. HOME becomes a
    temporary folder, and USER becomes the id.

    If a home folder is defined but not writable, matplotlib and W&B get a temporary folder for
    their caches. Files in the home folder are still read.
    """
    home = os.path.expanduser("~")
    if not os.access(home, os.W_OK):
        folder = tempfile.mkdtemp(prefix="adir-home-")
        if home == "~":  # libraries would create a folder named ~
            os.environ["HOME"] = folder
            print(
                f"warning: there is no home folder, so caches are in {folder}; set HOME to keep "
                "the caches",
                file=sys.stderr,
            )
        # Without these variables, matplotlib and W&B print many warnings.
        for name in ("MPLCONFIGDIR", "WANDB_CACHE_DIR"):
            os.environ.setdefault(name, folder)
    try:
        getpass.getuser()
    except (OSError, KeyError):
        os.environ["USER"] = str(os.getuid())
