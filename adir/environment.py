"""Make harmless what the caller's shell hands to a process: text encoding, output streams, home folder, plotting backend.

Only the standard library is imported here, as `adir` calls this before anything else.
"""

import codecs
import errno
import gc
import getpass
import io
import locale
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


def settle() -> None:
    """Call once, at the start of a program: `adir` behaves alike in a notebook, a cron job, a container and a cluster."""
    require_utf8()
    steady_streams()
    require_home()
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
def importing() -> Iterator[None]:
    """While active, nothing is looked for that could be freed: packages make a million objects, and these stay. For the import
    of large ones; diffusers' takes 1.2 s less of 7."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def require_utf8() -> None:
    """Start this program again in Python's UTF-8 mode where the locale is another (LC_ALL=C, ISO-8859-1).

    Python would read and write configuration, records and names of files in that locale's encoding. The terminal keeps
    its encoding.
    """
    encodings = {codecs.lookup(name).name for name in (sys.getfilesystemencoding(), locale.getencoding())}
    if sys.flags.utf8_mode or encodings == {"utf-8"}:
        return
    if sys.flags.ignore_environment or os.environ.get("PYTHONUTF8") == "1":  # what is set here would not be heard
        return
    os.environ["PYTHONUTF8"] = "1"
    if sys.stdout is not None:
        os.environ.setdefault("PYTHONIOENCODING", sys.stdout.encoding)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def steady_streams() -> None:
    """Replace stdout and stderr by streams that no character and no closed pipe stops; open those that are closed."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream: TextIO | None = getattr(sys, name)
        if stream is None:  # closed by the caller (>&-): else the next file that is opened would have its number
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            stream = open(number, "w" if number else "r", closefd=False)
        setattr(sys, name, steady(stream) if number else stream)


def steady(stream: TextIO) -> TextIO:
    """The same stream, which replaces the characters that its encoding lacks, and outlives its reader."""
    if not isinstance(stream, io.TextIOWrapper):  # a notebook's or a test's
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


def require_home() -> None:
    """Set HOME and USER where neither the environment nor the password file knows them, as in containers run by number."""
    if not os.environ.get("HOME"):
        os.environ.pop("HOME", None)  # empty, it would stand for /
        if os.path.expanduser("~") == "~":  # caches would be put into a folder of that name
            os.environ["HOME"] = str(own_folder())
            print(
                f"warning: no home folder; caches are kept in {os.environ['HOME']}: set HOME to keep them elsewhere",
                file=sys.stderr,
            )
    if not os.access(
        os.path.expanduser("~"), os.W_OK
    ):  # libraries would complain at length; what is in it is still read
        os.environ.setdefault("MPLCONFIGDIR", str(own_folder() / "matplotlib"))
        os.environ.setdefault("WANDB_CACHE_DIR", str(own_folder() / "wandb"))
    try:
        getpass.getuser()
    except (OSError, KeyError):
        os.environ["USER"] = str(os.getuid())


def own_folder() -> Path:
    """A folder of this user alone, the same each time; a new one where another user has taken its name."""
    folder = Path(tempfile.gettempdir()) / f"adir-home-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if folder.is_symlink() or status.st_uid != os.getuid() or status.st_mode & 0o022:
        return Path(tempfile.mkdtemp(prefix="adir-home-"))
    return folder
