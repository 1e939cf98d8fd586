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

from conformance.spec.corpus import Case, answer_of, cases, lay_out  # noqa: E402


def ask(case: Case, command: str) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lay_out(case, folder)
        environment = {"PATH": "/usr/bin:/bin", "HOME": name}
        call = [command, "spec", "validate", case.file, "--json"]
        ended = subprocess.run(
            call, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
    answer = answer_of(case, ended.stdout)
    return {"digest": case.digest, **answer.as_json()}


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
    sys.stdout.write(f"{len(kept)} answers in {file}\n")


if __name__ == "__main__":
    main(*sys.argv[1:3])
