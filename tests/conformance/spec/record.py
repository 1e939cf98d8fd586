"""Ask a published version what it says of the corpus, and keep the answers.

    python3.12 -m venv published && published/bin/pip install kneo-serv==1.2.0 fastapi==0.136.3
    python tests/conformance/spec/record.py 1.2.0 published/bin/kneo

Only codes, severities and paths are kept, never sentences.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from conformance.spec.corpus import COMMANDS, VERSIONS, Case, answer_of, cases, lay_out, without_sentences  # noqa: E402


def call(case: Case, command: str, verb: str) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lay_out(case, folder)
        environment = {"PATH": "/usr/bin:/bin", "HOME": name}
        said = [command, "spec", verb, case.file, "--json"]
        return subprocess.run(
            said, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
        )


def ask(case: Case, command: str) -> dict[str, object]:
    answer = answer_of(case, call(case, command, "validate").stdout)
    return {"digest": case.digest, **answer.as_json()}


def ask_whole(case: Case, command: str, verb: str) -> dict[str, object]:
    ended = call(case, command, verb)
    answer = without_sentences(json.loads(ended.stdout))
    return {"digest": case.digest, "status": ended.returncode, "answer": answer}


def record_commands(corpus: list[Case], program: str) -> None:
    """Record whole answers of the newest version."""
    known = {case.name: case for case in corpus}
    kept = {
        f"{verb} {name}": ask_whole(known[name], program, verb) for verb, names in COMMANDS.items() for name in names
    }
    lines = [f"  {json.dumps(name)}: {json.dumps(answer)}" for name, answer in sorted(kept.items())]
    (HERE / "recorded" / "commands.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main(version: str, command: str) -> None:
    corpus = cases()
    program = str(Path(command).absolute())
    with ThreadPoolExecutor(2) as pool:
        answers = pool.map(lambda case: ask(case, program), corpus)
        kept = {case.name: answer for case, answer in zip(corpus, answers, strict=True)}
    lines = [f"  {json.dumps(name)}: {json.dumps(answer)}" for name, answer in sorted(kept.items())]
    tool = json.dumps(f"kneo-serv {version}")
    text = f'{{"tool": {tool}, "answers": {{\n' + ",\n".join(lines) + "\n}}\n"
    file = HERE / "recorded" / f"{version}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    if version == VERSIONS[-1]:
        record_commands(corpus, program)
    sys.stdout.write(f"{len(kept)} answers in {file}\n")


if __name__ == "__main__":
    main(*sys.argv[1:3])
