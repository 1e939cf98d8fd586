"""The config repository: a mirror of it, and immutable snapshots of its commits.

Everyone who can push to a repository chooses every byte that git returns: names, modes, sizes, history. So the git
command runs without the environment of this process, never checks anything out, never runs code of the repository, and
stops at bounds. The result is a snapshot of the relevant files, all of them plain; or an error with a code. Trust is
not decided here: a commit id identifies content; ``kneo.trust`` verifies signatures.
"""
