"""The repository, as a mirror and as immutable snapshots of it.

Everyone who can push to a repository chooses every byte that git returns: names, modes, sizes, history. So the git command runs
with nothing of this process's surroundings, never checks anything out, never runs what a repository brings, and stops at
bounds. What comes out is a snapshot of the few files we care about, all of them plain; or an error whose code says why not.

Trust does not begin here. A commit id names what was looked at; who vouches for a bundle is for ``kneo.trust`` to say.
"""

from controller.source.address import RepositoryAddress, parse_address
from controller.source.limits import SourceLimits
from controller.source.mirror import AllowedRewrite, Mirror
from controller.source.snapshot import Blob, SourceSnapshot, changed_paths

__all__ = [
    "AllowedRewrite",
    "Blob",
    "Mirror",
    "RepositoryAddress",
    "SourceLimits",
    "SourceSnapshot",
    "changed_paths",
    "parse_address",
]
