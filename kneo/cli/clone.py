"""An operator's own Git clone: created, read and committed to. The only module that uses GitPython.

The controller reads trusted content elsewhere, with the git command. Here the operator's own identity, hooks and
signing settings apply, because the commit is the operator's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from git import GitCommandError, InvalidGitRepositoryError, NoSuchPathError, Repo
from git.exc import GitCommandNotFound

from kneo.errors import Invalid, KneoError, NotFound
from kneo.settings import forget_calling_repository

MAIN = "main"

FALLBACK_NAME, FALLBACK_EMAIL = "kneo", "kneo@localhost"
"""The author of commits where Git has no identity configured."""


@dataclass(frozen=True)
class GitAccess:
    """Git options and variables that log in for a push."""

    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


OWN_ACCESS = GitAccess()
"""The operator's own keys, credential helpers and configuration."""


class Clone:
    """One working copy. Created by ``create`` or ``find``."""

    def __init__(self, repo: Repo) -> None:
        if repo.working_tree_dir is None:
            msg = f"{repo.git_dir} is a bare repository; this needs a clone with files."
            raise Invalid(msg)
        self._repo = repo
        self.root = Path(repo.working_tree_dir)
        repo.git.update_environment(GIT_TERMINAL_PROMPT="0")

    @classmethod
    def create(cls, folder: Path) -> Clone:
        """Create an empty repository whose first branch is ``main``.

        Raises:
            Invalid: git refused.
        """
        forget_calling_repository()
        try:
            # No template: an operator's templates (hooks, say) are for code repositories. GitPython asks for
            # confirmation because a template may bring hooks; an empty one brings none.
            repo = Repo.init(folder, mkdir=True, initial_branch=MAIN, template="", allow_unsafe_options=True)
            return cls(repo)
        except (GitCommandError, GitCommandNotFound, OSError) as error:
            raise _refused(f"{folder} cannot be made a Git repository", error) from error

    @classmethod
    def find(cls, start: Path) -> Clone:
        """Open the repository of a folder.

        Raises:
            NotFound: the folder is in no repository.
        """
        forget_calling_repository()
        try:
            return cls(Repo(start, search_parent_directories=True))
        except (InvalidGitRepositoryError, NoSuchPathError) as error:
            msg = f"{start} is not in a Git repository."
            raise NotFound(
                msg, hint="Run this inside a clone of the config repository, or create one with kneo init."
            ) from error

    def head(self) -> str | None:
        """Return the commit that is checked out; None before the first one."""
        return self._repo.head.commit.hexsha if self._repo.head.is_valid() else None

    def resolve(self, name: str) -> str | None:
        """Return the commit of a branch, a tag, a remote branch or an expression such as ``HEAD~1``."""
        try:
            return str(self._repo.git.rev_parse("--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"))
        except GitCommandError:
            return None

    def branch(self) -> str | None:
        """Return the branch that is checked out; None without one."""
        return None if self._repo.head.is_detached else self._repo.active_branch.name

    def origin(self) -> str | None:
        """Return the address of the remote ``origin`` without any credentials in it."""
        if "origin" not in [remote.name for remote in self._repo.remotes]:
            return None
        return _without_credentials(self._repo.remotes["origin"].url)

    def is_dirty(self, *paths: Path) -> bool:
        """Return whether these files, or any tracked ones, differ from the last commit. New files count when named."""
        try:
            return bool(
                self._repo.git.status("--porcelain", "--", *map(str, paths)) if paths else self._repo.is_dirty()
            )
        except GitCommandError as error:
            raise _refused("git status failed", error) from error

    def switch(self, branch: str) -> None:
        """Check out a branch, which begins at the present commit when it does not exist.

        Raises:
            Invalid: git refused, for example because changes would be lost.
        """
        known = branch in [head.name for head in self._repo.heads]
        try:
            self._repo.git.switch(*([] if known else ["--create"]), branch)
        except GitCommandError as error:
            raise _refused(f"The branch {branch} cannot be checked out", error) from error

    def commit(self, paths: Iterable[Path], message: str, *, plain: bool = False) -> str:
        """Commit these files only, and return the commit's id.

        Args:
            paths: Files and folders of the clone.
            message: Subject and body.
            plain: Leave out the operator's hooks and commit signing, for the first commit of a generated repository.

        Raises:
            Invalid: git refused, or there is nothing to commit.
        """
        named = [str(path) for path in paths]
        options = ["--no-verify", "--no-gpg-sign"] if plain else []
        try:
            self._repo.git.add("--", *named)
            commit = ["commit", "--quiet", *options, "--message", message, "--", *named]
            self._repo.git.execute(["git", *self._identity(), *commit])
        except GitCommandError as error:
            raise _refused("git commit failed", error) from error
        made = self.head()
        assert made is not None, "a commit was just made"
        return made

    def push_url(self) -> str:
        """Return the push address of ``origin``.

        Raises:
            Invalid: there is no ``origin``.
        """
        try:
            return str(self._repo.git.remote("get-url", "--push", "origin"))
        except GitCommandError as error:
            raise _refused("This clone has no remote repository called origin", error) from error

    def push(self, branch: str, access: GitAccess = OWN_ACCESS) -> None:
        """Push a branch to ``origin``.

        Args:
            branch: The name of the branch.
            access: Git options and variables that log in, in addition to the operator's own settings.

        Raises:
            Invalid: git refused.
        """
        command = ["git", *access.options, "push", "--quiet", "--set-upstream", "origin", branch]
        try:
            self._repo.git.execute(command, env=dict(access.environment))
        except GitCommandError as error:
            raise _refused(f"The branch {branch} cannot be pushed", error) from error

    def read(self, commit: str, path: str, *, max_bytes: int) -> bytes | None:
        """Return a file of a commit; None where it does not exist.

        Args:
            commit: The id of the commit, as of ``resolve``.
            path: The path from the repository's root.
            max_bytes: The largest file that is read.

        Raises:
            Invalid: it is larger.
        """
        blob = f"{commit}:{path}"
        try:
            if self._repo.git.cat_file("-t", blob) != "blob":
                return None
            if int(self._repo.git.cat_file("-s", blob)) > max_bytes:
                msg = f"{path} of the commit {commit[:12]} is larger than {max_bytes} bytes."
                raise Invalid(msg, code="LimitExceeded", file=path)
            content = self._repo.git.cat_file("blob", blob, stdout_as_string=False, strip_newline_in_stdout=False)
        except GitCommandError:
            return None
        assert isinstance(content, bytes), "requested as bytes"
        return content

    def names(self, commit: str, path: str) -> tuple[str, ...] | None:
        """Return the paths of the files below a folder of a commit, sorted; None where it does not exist."""
        try:
            listing = str(self._repo.git.ls_tree("-r", "-z", f"{commit}:{path}"))
        except GitCommandError:
            return None
        entries = (entry.partition("\t") for entry in listing.split("\0") if entry)
        return tuple(sorted(name for about, _, name in entries if " blob " in about))

    def close(self) -> None:
        self._repo.close()

    def _identity(self) -> Sequence[str]:
        """Return the options of a git command that needs an identity: a fallback where none is configured."""
        try:
            self._repo.git.var("GIT_AUTHOR_IDENT")
            self._repo.git.var("GIT_COMMITTER_IDENT")
        except GitCommandError:
            return ["-c", f"user.name={FALLBACK_NAME}", "-c", f"user.email={FALLBACK_EMAIL}"]
        return []


def _without_credentials(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}" if separator else url


def _refused(what: str, error: Exception) -> KneoError:
    output = str(getattr(error, "stderr", "") or error).strip()
    # GitPython wraps the output of git in lines of its own.
    output = output.removeprefix("stderr:").strip().strip("'").strip()
    return Invalid(f"{what}: {output or 'git gave no reason'}.".replace("..", "."))
