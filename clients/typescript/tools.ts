// An agent's tools over MCP, with the official client.
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const client = new Client({ name: "orders", version: "1.0.0" });
await client.connect(
  new StreamableHTTPClientTransport(new URL(`${process.env.KNEO_URL}/v1/mcp/prod/payments`), {
    requestInit: { headers: { Authorization: `Bearer ${process.env.KNEO_API_KEY}` } },
  }),
);
console.log((await client.listTools()).tools.map((tool) => tool.name));
console.log(await client.callTool({ name: "lookup", arguments: { id: "7" } }));
console.log(await client.callTool({ name: "refund", arguments: { id: "7", amount: 20 } }));
await client.close();
