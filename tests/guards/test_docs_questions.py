"""The questions that newcomers ask: each has an answer on a page, under a heading that exists."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent)]

from test_docs_in_order import DOCS, places  # noqa: E402

ANSWERS = {
    "How do I install it without cloning and make?": "install/README.md#from-a-clone",
    "Which models work? How do I set a key? Which variables?": "guides/specs/models.md#providers",
    "What is a bundle, a release, a gate, a receipt?": "concepts/README.md#declare",
    "Is there a web UI? What do I see at the address that kneo up prints?": "guides/people/console.md#sign-in",
    "How does the controller get credentials for a private repository?": "guides/releases/git-access.md",
    "How do I release with two people, start to end?": "tutorials/first-release.md",
    "Which API role may do what? How do I make keys for people?": "operations/api-keys.md#create-a-key",
    "What are all keys of an environment file?": "reference/environment-file.md",
    "What are all keys of a spec?": "guides/specs/README.md",
    "How do I deploy it on a server, in a container, on Kubernetes, behind TLS?": "install/README.md",
    "How do I sign in with our identity provider?": "operations/oidc.md",
    "It says Stalled, AwaitingApproval. What now?": "guides/releases/README.md#reasons-of-conditions",
    "How do I roll back at night? What does a hold do to the next commit?": "guides/releases/README.md#roll-back-a-release",
    "Rotate a key; a person leaves; the root key is lost?": "guides/releases/keys.md#when-a-root-key-is-lost",
    "How do I show the question in my own application?": "tutorials/build-an-app.md",
    "How do I verify a webhook?": "guides/people/notify.md#verify-a-webhook",
    "How do I test a spec in CI?": "guides/specs/simulate.md#answers-files-as-tests",
    "What happens to running runs when I release, upgrade, lose the database?": "concepts/durability.md",
    "How large does it scale?": "operations/performance.md",
    "What is stable? Who is behind it? Where can I ask?": "project/status.md",
    "Why not Temporal, Argo CD, LangGraph?": "concepts/compare.md",
    "How do I get rid of it?": "operations/uninstall.md",
    "What does a run cost in tokens and money?": "guides/api/observability.md#see-what-agents-cost",
    "Which controls of our audit framework does it cover?": "security/controls.md",
}


@pytest.mark.parametrize("question", ANSWERS)
def test_the_question_has_an_answer(question: str) -> None:
    path, _, place = ANSWERS[question].partition("#")
    page = DOCS / path
    assert page.is_file()
    assert not place or place in places(page)
