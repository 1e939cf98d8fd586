"""What HTTP alone costs: a service that answers the human flow's requests and does nothing, in the same framework."""

from __future__ import annotations

from typing import Annotated

from fastapi import Body, FastAPI

app = FastAPI()

Said = Annotated[dict[str, object], Body()]


@app.get("/livez")
def livez() -> dict[str, str]:
    return {"status": "ok"}


@app.post("/v1/runs")
def create_run(body: Said) -> dict[str, object]:
    return {"continuation_id": body["input"], "metadata": {"pending_human_request": {"request_id": "r"}}}


@app.post("/v1/human-tasks/{continuation_id}/resume")
def resume(continuation_id: str, body: Said) -> dict[str, object]:
    return {"output_text": f"{continuation_id} (draft) (published)", "status": body["decision"]}
