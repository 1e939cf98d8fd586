"""An MCP server of protocol 2025-06-18 over stdio, without any SDK: it knows no discovery, and asks during a call.

``--endless``: every page of its tools has another one. ``--rude``: answers a call with what is not a result.
"""

from __future__ import annotations

import json
import sys

TOOL = {"inputSchema": {"type": "object"}}
ASKS = {
    "elicit": ("elicitation/create", {"message": "Which?", "requestedSchema": {"type": "object", "properties": {}}}),
    "sample": ("sampling/createMessage", {"messages": [], "maxTokens": 1}),
    "roots": ("roots/list", {}),
}


def send(**message: object) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def call(name: str, arguments: dict) -> dict:
    if "--rude" in sys.argv:
        return {"content": "no list"}
    if name in ASKS:
        method, params = ASKS[name]
        send(id="own-1", method=method, params=params)
        answer = json.loads(sys.stdin.readline())
        return {"content": [{"type": "text", "text": json.dumps(answer.get("error", answer.get("result")))}]}
    image = {"type": "image", "data": "aGk=", "mimeType": "image/png"}
    return {"content": [{"type": "text", "text": f"{name} {json.dumps(arguments)}"}, image]}


def main() -> None:
    sys.stdout.write("Starting the server, which does not belong here\n\n")
    for line in sys.stdin:
        request = json.loads(line)
        params = request.get("params") or {}
        match request.get("method"):
            case "initialize":
                info = {"name": "legacy", "version": "1"}
                result = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": info}
                send(id=request["id"], result=result)
            case "tools/list":
                page = str(int(params.get("cursor") or 0) + 1)
                more = {"nextCursor": page} if "--endless" in sys.argv else {}
                send(id=request["id"], result={"tools": [{"name": f"say{page}", **TOOL}], **more})
            case "tools/call":
                send(id=request["id"], result=call(params["name"], params.get("arguments") or {}))
            case _ if "id" in request and "method" in request:
                send(id=request["id"], error={"code": -32601, "message": "Method not found"})


if __name__ == "__main__":
    main()
