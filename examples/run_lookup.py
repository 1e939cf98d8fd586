"""Run a spec whose agent has a tool of your own. It needs the provider that the spec names.

python -m examples.run_lookup
"""

from __future__ import annotations

from examples.my_factory import build_platform


def main() -> None:
    """Ask, and show the answer or what went wrong."""
    with build_platform() as manager:
        result = manager.run_from_spec(
            input_text="What is the address of u-002?", spec_path="examples/lookup_agent.yaml", target="workflow"
        )
        print(f"run_id={result.run_id}")  # noqa: T201 - it is a program for people
        print(result.output_text or result.error)  # noqa: T201 - as above


if __name__ == "__main__":
    main()
