// A program that makes calls itself after people approved them: the client is generated from the OpenAPI of a service.
import createClient from "openapi-fetch";
import type { paths } from "./kneo.js";

const kneo = createClient<paths>({
  baseUrl: process.env.KNEO_URL!,
  headers: { Authorization: `Bearer ${process.env.KNEO_API_KEY}` },
});

const wait = { wait: "50s" };

type Arguments = Record<string, unknown>;

/** Wait for people, make the call with the arguments that they decided, report the result, and return it as it was checked. */
export async function guarded<A extends Arguments>(
  tool: string, given: A, key: string, make: (decided: A) => Promise<unknown>,
): Promise<unknown> {
  const body = { environment: "prod", bundle: "payments", tool, arguments: given };
  const header = { "Idempotency-Key": key };
  let call = checked(await kneo.POST("/v1/calls", { params: { query: wait, header }, body }));
  const params = { path: { call_id: call.id } };
  while (call.status === "running" || call.status === "waiting") {
    call = checked(await kneo.GET("/v1/calls/{call_id}", { params: { ...params, query: wait } }));
  }
  if (call.status === "allowed") {
    const begun = checked(await kneo.POST("/v1/calls/{call_id}/begin", { params }));
    const report = await make(begun.arguments as A).then(
      (result) => ({ result }),
      (failure: unknown) => ({ error: String(failure) }),
    );
    call = checked(await kneo.POST("/v1/calls/{call_id}/result", { params, body: report }));
    while (call.status !== "ended") {
      call = checked(await kneo.GET("/v1/calls/{call_id}", { params: { ...params, query: wait } }));
    }
  }
  if (call.outcome !== "success") throw new Error(`${call.id} is ${call.outcome ?? call.status}`);
  return call.result;
}

function checked<T>(answer: { data?: T; error?: unknown }): T {
  if (answer.data === undefined) throw new Error(JSON.stringify(answer.error));
  return answer.data;
}

const deleted = await guarded("delete_branch", { branch: "old" }, "pr-17", async ({ branch }) => `deleted ${branch}`);
console.log(deleted);
