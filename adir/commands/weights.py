"""`adir weights`: list, fetch or verify the pretrained weights of the networks."""

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from adir.errors import InputError
from adir.weights.cache import cache_dir
from adir.weights.registry import Entry, WeightsFile, entry, registry


def main(action: str, names: list[str]) -> int:
    """Run `adir weights ACTION NAME...` and return the exit status.

    Args:
        action: list, get or verify.
        names: entries of conf/weights/. If there are no names, `list` and `verify` take all
            entries, while `get` raises an error.

    Returns:
        0, or 1 if `verify` finds a wrong hash, if a named entry to verify is missing, or if `get`
        fails for some entries.

    Raises:
        InputError: if a name does not exist, if `get` has no names, or if `get` fails for all.
    """
    entries = [entry(name) for name in names] if names else list(registry().values())
    if action == "list":
        return show(entries)
    if action == "verify":
        return verify(entries, named=bool(names))
    if not names:
        raise InputError(f"`adir weights get` needs a NAME: choose from {', '.join(registry())}")
    return get(entries)


def show(entries: list[Entry]) -> int:
    """Print a table of entries, with size, licence, hash and path of each, and return 0."""
    rows = [
        (
            found.entry,
            "here" if found.missing() is None else "missing",
            found.size_text,
            found.licence or "licence unknown",
            pinned(found),
            str(found.path),
        )
        for found in entries
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print(
            "  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip()
        )
    print(
        f"ADIR_CACHE={cache_dir()}; `adir weights get NAME` fetches weights, `adir weights verify` "
        "checks their hashes"
    )
    return 0


def pinned(found: Entry) -> str:
    """Return a text with the start of a file's expected SHA-256 or of a repository's revision."""
    if isinstance(found, WeightsFile):
        return f"sha256 {'unknown' if found.sha256 is None else found.sha256[:12]}"
    return f"revision {found.mirrors[0].revision[:10]}"


def get(entries: list[Entry]) -> int:
    """Download the weights of all entries that are missing or have a wrong hash.

    A file with a wrong hash is renamed before it is downloaded again.

    Returns 0, or 1 if some entries failed. Raises InputError if all entries failed.
    """
    failures = []
    for found in entries:
        if found.missing() is None:
            wrong = found.verify()
            if wrong is None:
                print(f"{found.entry}: already here, {found.path}")
                continue
            print(f"{found.entry}: {wrong}")
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
        )
        # The bar is on stderr, so that another program can read stdout.
        with Progress(
            *columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True
        ) as bar:
            task = bar.add_task(found.entry, total=found.size)

            def show_progress(
                done: int, total: int | None, task: TaskID = task, bar: Progress = bar
            ) -> None:
                """Update the progress bar; `done` and `total` are bytes."""
                bar.update(task, completed=done, total=total)

            try:
                path = found.fetch(show_progress)
            except InputError as error:
                failures.append(f"{found.entry}: {error}" if len(entries) > 1 else str(error))
                continue
        print(f"{found.entry}: fetched and verified, {path}")
    if len(failures) == len(entries):
        raise InputError("; ".join(failures))
    for failure in failures:
        print(failure)
    return 1 if failures else 0


def verify(entries: list[Entry], named: bool) -> int:
    """Check the hashes of the entries that have been fetched, and return the exit status.

    Args:
        entries: entries to check.
        named: whether the user named the entries. If so, a missing entry is an error.

    Returns:
        0, or 1 if a hash is wrong or a named entry is missing.
    """
    status = 0
    for found in entries:
        missing = found.missing()
        if missing is not None:
            print(missing if named else f"{found.entry}: not here")
            status |= named
            continue
        wrong = found.verify()
        unpinned = (
            found.sha256 is None
            if isinstance(found, WeightsFile)
            else not any(found.weights.values())
        )
        right = "complete (no hash known)" if unpinned else "verified"
        print(f"{found.entry}: {right if wrong is None else f'WRONG ({wrong})'}, {found.path}")
        status |= wrong is not None
    return int(status)
