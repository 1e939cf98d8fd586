"""The examples that need no provider really run, to the end, with the answers that people give."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kneo_process import Machine

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("KNEO_ENV", "KNEO_PROJECT_CONFIG", "KNEO_SERV_DATABASE_URL", "KNEO_SERV_IMPORT_ALLOW"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def start(kneo):
    def call(name, text="hello there"):
        answer = kneo("run", f"examples/{name}.yaml", "--input", text, "--json")
        assert answer.status == 0, answer
        return answer.json

    return call


@pytest.fixture
def resume(kneo):
    def call(paused, *decision):
        request = paused["metadata"]["pending_human_request"]["request_id"]
        answer = kneo("human", "resume", paused["continuation_id"], "--request-id", request, *decision, "--json")
        assert answer.status == 0, answer
        return answer.json

    return call


def offline(name):
    """Ask the built-in provider instead of the one that is named."""
    file = Path("examples", f"{name}.yaml")
    file.write_text(file.read_text().replace("provider: openai", "provider: dummy"))


@pytest.mark.parametrize("name", ["human_approval_workflow", "smoke_human_workflow"])
def test_what_is_approved_is_published(name, start, resume):
    paused = start(name)
    assert paused["status"] == "paused"
    ended = resume(paused, "--approve")
    assert ended["status"] == "succeeded"
    assert "hello there" in ended["output_text"]


def test_a_run_shows_the_answers_that_people_gave(start, resume, kneo):
    run_id = start("human_approval_workflow")["run_id"]
    waiting = kneo("runs", "get", run_id, "--json").json
    assert [(gate["status"], gate["votes"]) for gate in waiting["gates"]] == [("open", [])]
    resume(waiting, "--approve")
    [gate] = kneo("runs", "get", run_id, "--json").json["gates"]
    assert (gate["path"], gate["decision"], len(gate["votes"])) == ("approve", "approved", 1)
    shown = kneo("runs", "get", run_id).out
    assert all(text in shown for text in ("Gates", "approve", "approved", gate["actor"], gate["votes"][0]["at"]))


def test_what_is_edited_is_published_as_it_was_edited(start, resume):
    ended = resume(start("human_approval_workflow"), "--edit", "Another text.")
    assert ended["status"] == "succeeded"
    assert "Another text." in ended["output_text"]


@pytest.mark.parametrize("name", ["human_approval_workflow", "smoke_human_workflow"])
def test_what_is_rejected_is_not_published(name, start, resume, kneo):
    paused = start(name)
    assert resume(paused, "--reject")["status"] == "cancelled"
    steps = json.dumps(kneo("runs", "get", paused["run_id"], "--json").json["visited_steps"])
    assert "publish" not in steps


def test_three_reviewers_answer_at_the_same_time(start):
    offline("concurrent_review_workflow")
    ended = start("concurrent_review_workflow")
    assert ended["status"] == "succeeded"
    assert set(ended["metadata"]["outputs"]) == {"security", "accessibility", "performance"}


def test_the_graph_goes_the_way_that_the_words_decide(start, kneo):
    offline("graph_review_workflow")
    good, gap = start("graph_review_workflow"), start("graph_review_workflow", "please revise this")
    visited = [kneo("runs", "get", run["run_id"], "--json").json["visited_steps"] for run in (good, gap)]
    nodes = ["retrieve", "analyze", "review", "finalize"]
    assert visited[0] == nodes
    assert visited[1] == [*nodes[:3], "revise", nodes[3]]


def test_the_debate_ends(start):
    offline("group_chat_workflow")
    assert start("group_chat_workflow")["status"] == "succeeded"


def test_the_research_agent_runs_when_its_model_is_the_built_in_one(start):
    offline("research_agent")
    assert start("research_agent", "what is known")["status"] == "succeeded"


def test_a_provider_that_is_not_there_is_an_error_and_not_the_built_in_one(kneo):
    refused = kneo("run", "examples/concurrent_review_workflow.yaml", "--input", "hello", "--json")
    assert refused.status == 1
    assert refused.json["error"] == "provider_not_configured"
    assert "openai" in refused.json["message"]
    assert kneo("runs", "list", "--json").json["count"] == 0


@pytest.fixture
def platform(monkeypatch, folder):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("KNEO_SERV_PLATFORM", "examples.my_factory:build_platform")


@pytest.mark.parametrize("command", [("lint",), ("validate",), ("compile",)])
def test_commands_do_not_know_a_tool_of_nobodys_platform(command, kneo, folder):
    answer = kneo("spec", *command, "examples/lookup_agent.yaml", "--json")
    assert answer.status == 1
    assert "lookup_user" in answer.out


@pytest.mark.usefixtures("platform")
@pytest.mark.parametrize("command", [("lint",), ("validate",), ("compile",)])
def test_commands_know_the_tools_of_the_platform(command, kneo, folder):
    offline("lookup_agent")
    answer = kneo("spec", *command, "examples/lookup_agent.yaml")
    assert answer.status == (1 if command == ("lint",) else 0), answer  # that nothing calls the tool yet is a warning
    assert "E_TOOL_REF" not in answer.out
    assert not list(folder.rglob("*.sqlite"))


@pytest.mark.usefixtures("platform")
def test_a_spec_with_a_tool_of_the_platform_runs(start):
    offline("lookup_agent")
    assert start("lookup_agent")["status"] == "succeeded"


def test_a_platform_that_cannot_be_made_is_an_error(kneo, monkeypatch):
    monkeypatch.setenv("KNEO_SERV_PLATFORM", "examples.nowhere:build")
    answer = kneo("run", "examples/smoke_human_workflow.yaml", "--input", "x", "--json")
    assert answer.status == 1
    assert answer.json["error"] == "invalid_setting"


@pytest.mark.parametrize(
    ("program", "prints"),
    [
        ("run_lookup", r"run_id=run_\w+\nFinal answer: .*\n"),
        ("run_with_timeout", r"started run_\w+\nit ended as timed_out\n"),
    ],
)
def test_programs_say_how_their_run_ended(program, prints, tmp_path):
    offline("lookup_agent")
    env = Machine(tmp_path, f"sqlite:///{tmp_path}/own.sqlite").env
    command = [sys.executable, "-m", f"examples.{program}"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(prints, done.stdout)
