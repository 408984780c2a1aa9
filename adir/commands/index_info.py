"""`adir index info`: print what an index contains and whether it is damaged."""

from collections import Counter
from pathlib import Path

from adir.commands.index_build import described
from adir.errors import InputError, count_of
from adir.files import read_json
from adir.harness.running.grid import say
from adir.retrieval.index.builder import missing_shards, planned
from adir.retrieval.index.sharded import ShardedIndex


def main(folder: Path) -> int:
    """Read a whole index, print what it contains, and return 0.

    Raises InputError if the index is damaged or not finished.
    """
    if not (folder / "manifest.json").exists() and (folder / "index.json").exists():
        n_planned, n_missing = len(planned(folder)), len(missing_shards(folder))
        raise InputError(
            f"{folder}: this index is unfinished ({n_planned - n_missing} of {n_planned} planned "
            "shards exist); run `adir index build` again to finish the index"
        )
    index = ShardedIndex(folder)
    say(f"{folder}")
    say(described(index.manifest))
    n_bytes = sum(shard.path.stat().st_size for shard in index.shards)
    say(f"  {n_bytes / 1e6:.1f} MB, {n_bytes / max(len(index), 1):.0f} bytes per image")
    damage = index.damage()
    if damage:
        raise InputError(
            f"{damage[0]} ({count_of(len(damage), 'damaged shard')}); remove each damaged shard "
            "and run `adir index build` again"
        )
    licences = sum((shard.licences() for shard in index.shards), Counter[str]())
    for licence, count in sorted(licences.items(), key=lambda pair: (-pair[1], pair[0]))[:5]:
        say(f"  {count_of(count, 'image')} with licence {licence}")
    for path in sorted(folder.glob("approximate-*.json")):
        found = read_json(path)
        shares = ", ".join(f"{share:.3f} at K={k}" for k, share in found.get("recall", {}).items())
        say(f"  approximate search with {found['arguments']}: recall {shares}")
    rejects = {name: reason for shard in index.rejecting for name, reason in shard.rejects.items()}
    say(f"  {count_of(len(rejects), 'reject')}" + (", such as" if rejects else ""))
    for name, reason in list(rejects.items())[:5]:
        say(f"    {name}: {reason}")
    newer = len(planned(folder)) - len(index.manifest["shards"])
    if newer > 0:
        say(f"  {count_of(newer, 'planned shard')} not built; run `adir index build` again")
    say("  all shards match their checksums")
    return 0
