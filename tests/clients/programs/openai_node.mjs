// The official client for Node.js: chat, streams, tools that run, structured output, responses.
import assert from "node:assert";
import OpenAI from "openai";

const [baseUrl, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${baseUrl}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Say hello." }];

const whole = await client.chat.completions.create({ model, messages, max_tokens: 8, temperature: 0 });
let text = "";
for await (const chunk of await client.chat.completions.create({ model, messages, max_tokens: 8, temperature: 0, stream: true })) {
  text += chunk.choices[0]?.delta?.content ?? "";
}
assert.equal(text, whole.choices[0].message.content);

const parameters = {
  type: "object",
  properties: { city: { type: "string", enum: ["Bern", "Rome"] } },
  required: ["city"],
  additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "weather", description: "Of a city.", parameters } }];
const called = await client.chat.completions.create({
  model, messages, tools, tool_choice: "required", max_tokens: 100, temperature: 0,
});
assert.ok(["Bern", "Rome"].includes(JSON.parse(called.choices[0].message.tool_calls[0].function.arguments).city));

let ran = 0;
const runner = client.chat.completions.runTools({
  model, messages, max_tokens: 100, temperature: 0,
  tool_choice: { type: "function", function: { name: "weather" } },
  tools: [{ type: "function", function: { name: "weather", parameters, parse: JSON.parse, function: () => { ran += 1; return "rain"; } } }],
}, { maxChatCompletions: 2 });
await runner.done().catch(() => undefined);
assert.ok(ran >= 1);

const shaped = await client.chat.completions.create({
  model, messages, max_tokens: 40, temperature: 0,
  response_format: { type: "json_schema", json_schema: { name: "city", strict: true, schema: parameters } },
});
assert.ok(JSON.parse(shaped.choices[0].message.content).city);

const answer = await client.responses.create({ model, input: "Say hello.", max_output_tokens: 8, temperature: 0 });
let streamed = "";
for await (const event of await client.responses.create({ model, input: "Say hello.", max_output_tokens: 8, temperature: 0, stream: true })) {
  if (event.type === "response.output_text.delta") streamed += event.delta;
}
assert.equal(streamed, answer.output_text);

const controller = new AbortController();
const endless = await client.chat.completions.create(
  { model, messages, max_tokens: 4000, stream: true }, { signal: controller.signal });
for await (const _ of endless) { controller.abort(); }
