// Drives AWS's JavaScript client from another process, one JSON object per line each way.
//
// The first line configures the client: {"endpoint", "region", "maxAttempts"?}; credentials come from the environment,
// as they do for any program written on this client. Every other line is a call:
//   {"id", "operation", "input"}     bytes travel as {"base64": "..."}
//   {"cancel": id}                   aborts that call, if it is still running
// and is answered by lines carrying its id:
//   {"id", "event": "output", "output"}   the call's result; a stream's Body is left out and follows as parts
//   {"id", "event": "part", "bytes"}      one PayloadPart, written the moment the client hands it over
//   {"id", "event": "end"}                the stream ended as it should
//   {"id", "event": "error", "error"}     the call, or the stream, failed
// Calls run concurrently, so that the reader can see parts of one stream while another waits.
import { createInterface } from "node:readline";
import * as sagemaker from "@aws-sdk/client-sagemaker-runtime";

const send = (line) => process.stdout.write(JSON.stringify(line) + "\n");

const fromWire = (value) =>
  value !== null && typeof value === "object" && typeof value.base64 === "string"
    ? Buffer.from(value.base64, "base64")
    : value;

const toWire = (value) =>
  value instanceof Uint8Array ? { base64: Buffer.from(value).toString("base64") } : value;

const mapValues = (object, change) =>
  Object.fromEntries(Object.entries(object).map(([name, value]) => [name, change(value)]));

const ERROR_MEMBERS = ["OriginalStatusCode", "OriginalMessage", "LogStreamArn", "ErrorCode", "code"];

const describeError = (error) => ({
  name: error.name,
  message: error.message,
  fault: error.$fault,
  status: error.$metadata?.httpStatusCode,
  requestId: error.$metadata?.requestId,
  attempts: error.$metadata?.attempts,
  isServiceException: error instanceof sagemaker.SageMakerRuntimeServiceException,
  ...Object.fromEntries(
    ERROR_MEMBERS.filter((name) => error[name] !== undefined).map((name) => [name, error[name]]),
  ),
});

const running = new Map();

async function call(client, { id, operation, input }) {
  const abort = new AbortController();
  running.set(id, abort);
  try {
    const command = new sagemaker[`${operation}Command`](mapValues(input, fromWire));
    const { Body: body, ...rest } = await client.send(command, { abortSignal: abort.signal });
    // The client gives null in place of an empty body.
    const streamed = body?.[Symbol.asyncIterator] !== undefined;
    const output = mapValues(rest, toWire);
    if (body && !streamed) output.Body = toWire(body);
    send({ id, event: "output", output });
    if (streamed) {
      for await (const event of body) {
        if (event.PayloadPart === undefined) throw new Error(`unexpected event ${Object.keys(event)}`);
        send({ id, event: "part", bytes: toWire(event.PayloadPart.Bytes).base64 });
      }
      send({ id, event: "end" });
    }
  } catch (error) {
    send({ id, event: "error", error: describeError(error) });
  } finally {
    running.delete(id);
  }
}

let client;
const calls = [];
for await (const text of createInterface({ input: process.stdin })) {
  const line = JSON.parse(text);
  if (client === undefined) client = new sagemaker.SageMakerRuntimeClient(line);
  else if (line.cancel !== undefined) running.get(line.cancel)?.abort();
  else calls.push(call(client, line));
}
await Promise.all(calls);
client?.destroy();
