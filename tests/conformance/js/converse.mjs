// A conversation over HTTP/2 by AWS's JavaScript core.
//
// No package of AWS's has InvokeEndpointWithBidirectionalStream for JavaScript. Its schema is written out below as AWS
// generates them; all that acts is AWS's: serializing, signing, HTTP/2, framing, and the reading of errors.
//
// Reads one JSON object from standard input: {"url", "region", "endpoint", "variant"?, "path"?, "query"?, "steps"}. A
// step is {"text" or "base64", "state"?}: a message to send; {"wait": n}: wait for that many parts in all; or "abort".
// Prints a JSON object: {"parts", "variant"?, "status"?, "error"?, "message"?, "code"?}.
import { Buffer } from "node:buffer";
import { text } from "node:stream/consumers";
import { SageMakerRuntimeClient } from "@aws-sdk/client-sagemaker-runtime";
import { eventStreamPayloadHandlerProvider } from "@aws-sdk/eventstream-handler-node";
import { getEventStreamPlugin, resolveEventStreamConfig } from "@aws-sdk/middleware-eventstream";
import { Command, ServiceException } from "@smithy/core/client";
import { getEndpointPlugin } from "@smithy/core/endpoints";
import { TypeRegistry } from "@smithy/core/schema";
import { NodeHttp2Handler } from "@smithy/node-http-handler";

const NAMESPACE = "com.amazonaws.sagemakerruntimehttp2";
const [STRING, INTEGER, BLOB] = [0, 1, 21];
const [STRUCTURE, UNION, OPERATION, ERROR] = [3, 4, 9, -3];
const [HTTP_LABEL, HTTP_PAYLOAD] = [1, 16];

const registry = TypeRegistry.for(NAMESPACE);
const registered = (name, traits, members) => {
  const schema = [ERROR, NAMESPACE, name, traits, Object.keys(members), Object.values(members)];
  const constructor = class extends ServiceException {
    constructor(options) {
      super({ name, $fault: traits.error, ...options });
      Object.assign(this, options);
    }
  };
  registry.registerError(schema, constructor);
  return schema;
};
const failure = (name, fault, status, members = {}) =>
  registered(name, status === undefined ? { error: fault } : { error: fault, httpError: status }, {
    Message: STRING,
    ErrorCode: STRING,
    ...members,
  });

failure("InputValidationError", "client", 400);
failure("InternalServerError", "server", 500);
failure("ServiceUnavailableError", "server", 503);
failure("ModelError", "client", 424, { OriginalStatusCode: INTEGER, OriginalMessage: STRING, LogStreamArn: STRING });
const modelStreamError = failure("ModelStreamError", "client");
const internalStreamFailure = failure("InternalStreamFailure", "server");

const header = (name) => [STRING, { httpHeader: name }];
const eventHeader = [STRING, { eventHeader: 1 }];
const part = (name) => [
  STRUCTURE, NAMESPACE, name, 0,
  ["Bytes", "DataType", "CompletionState", "P"],
  [[BLOB, { eventPayload: 1 }], eventHeader, eventHeader, eventHeader],
];
const input = [
  STRUCTURE, NAMESPACE, "InvokeEndpointWithBidirectionalStreamInput", 0,
  ["EndpointName", "Body", "TargetVariant", "ModelInvocationPath", "ModelQueryString"],
  [
    [STRING, HTTP_LABEL],
    [[UNION, NAMESPACE, "RequestStreamEvent", { streaming: 1 }, ["PayloadPart"], [part("RequestPayloadPart")]], HTTP_PAYLOAD],
    header("X-Amzn-SageMaker-Target-Variant"),
    header("X-Amzn-SageMaker-Model-Invocation-Path"),
    header("X-Amzn-SageMaker-Model-Query-String"),
  ],
];
const output = [
  STRUCTURE, NAMESPACE, "InvokeEndpointWithBidirectionalStreamOutput", 0,
  ["Body", "InvokedProductionVariant"],
  [
    [
      [
        UNION, NAMESPACE, "ResponseStreamEvent", { streaming: 1 },
        ["PayloadPart", "ModelStreamError", "InternalStreamFailure"],
        [part("ResponsePayloadPart"), modelStreamError, internalStreamFailure],
      ],
      HTTP_PAYLOAD,
    ],
    header("X-Amzn-Invoked-Production-Variant"),
  ],
];

class InvokeEndpointWithBidirectionalStreamCommand extends Command.classBuilder()
  .ep({
    UseFIPS: { type: "builtInParams", name: "useFipsEndpoint" },
    Endpoint: { type: "builtInParams", name: "endpoint" },
    Region: { type: "builtInParams", name: "region" },
    UseDualStack: { type: "builtInParams", name: "useDualstackEndpoint" },
  })
  .m((command, stack, config) => [
    getEndpointPlugin(config, command.getEndpointParameterInstructions()),
    getEventStreamPlugin(config),
  ])
  .s("AmazonSageMakerRuntimeHttp2", "InvokeEndpointWithBidirectionalStream", { eventStream: { input: true, output: true } })
  .n("SageMakerRuntimeHTTP2Client", "InvokeEndpointWithBidirectionalStreamCommand")
  .sc([
    OPERATION, NAMESPACE, "InvokeEndpointWithBidirectionalStream",
    { http: ["POST", "/endpoints/{EndpointName}/invocations-bidirectional-stream", 200] },
    () => input, () => output,
  ])
  .build() {}

const order = JSON.parse(await text(process.stdin));
const client = new SageMakerRuntimeClient({
  endpoint: order.url,
  region: order.region,
  maxAttempts: 1,
  requestHandler: new NodeHttp2Handler(),
  eventStreamPayloadHandlerProvider,
  protocolSettings: { defaultNamespace: NAMESPACE, errorTypeRegistries: [registry] },
});
resolveEventStreamConfig(client.config);

const abort = new AbortController();
const answer = { parts: [] };
let onPart = () => {};

async function* messages() {
  for (const step of order.steps) {
    if (step === "abort") {
      abort.abort();
      return;
    }
    if (step.wait !== undefined) {
      while (answer.parts.length < step.wait) await new Promise((resolve) => (onPart = resolve));
      continue;
    }
    const [Bytes, DataType] =
      step.text === undefined ? [Buffer.from(step.base64, "base64"), "BINARY"] : [Buffer.from(step.text), "UTF8"];
    yield { PayloadPart: { Bytes, DataType, CompletionState: step.state } };
  }
}

try {
  const response = await client.send(
    new InvokeEndpointWithBidirectionalStreamCommand({
      EndpointName: order.endpoint,
      TargetVariant: order.variant,
      ModelInvocationPath: order.path,
      ModelQueryString: order.query,
      Body: messages(),
    }),
    { abortSignal: abort.signal },
  );
  answer.variant = response.InvokedProductionVariant;
  answer.status = response.$metadata.httpStatusCode;
  for await (const { PayloadPart } of response.Body) {
    const data = Buffer.from(PayloadPart.Bytes).toString("base64");
    answer.parts.push([data, PayloadPart.DataType, PayloadPart.CompletionState]);
    onPart();
  }
} catch (error) {
  answer.error = error.name;
  answer.message = error.message;
  answer.code = error.ErrorCode;
  answer.status ??= error.$metadata?.httpStatusCode;
}
process.stdout.write(JSON.stringify(answer));
client.destroy();
